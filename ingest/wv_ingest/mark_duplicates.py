"""Looks for duplicates in a data set and writes what it found: the exclude overlay, and the table of duplicates.

It needs `samples.parquet` alone. Which samples are copies is decided in `duplicates`; the caller writes the manifest.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wv_ingest.concatenate import refuse_damaged_tables
from wv_ingest.duplicates import DuplicateOptions, Duplicates, Hashes, Ints, find_duplicates
from wv_ingest.exclude import excluded_rows
from wv_ingest.progress import Progress
from wv_shards import (
    DUPLICATES_FILE,
    DUPLICATES_SCHEMA,
    EXCLUDE,
    EXCLUDE_ASKED,
    EXCLUDE_DUPLICATE,
    SAMPLES_FILE,
    TABLE_COMPRESSION,
    CorruptDataError,
    DuplicatesInfo,
    Manifest,
    Overlay,
    atomic_file,
    file_checksum,
)

MARK_FILES = (f"{EXCLUDE}.npy", f"{EXCLUDE}.json", DUPLICATES_FILE)
"""What is written, in the order in which it has to be moved."""
_TALKATIVE_SAMPLES = 1 << 20
"""Fewer are searched in a moment: then no pass of the search is worth a word."""


def mark_duplicates(
    folder: Path,
    manifest: Manifest,
    options: DuplicateOptions,
    progress: Progress,
    asked: NDArray[np.uint8] | None = None,
) -> Manifest:
    """Find the duplicates of `folder`/samples.parquet; beside it write the exclude overlay and duplicates.parquet.

    Of a validation set they are listed and none is excluded.

    Args:
        folder: of the data set, or of its unfinished build.
        manifest: of the data set; it need not be written yet.
        options: what is a copy, and what becomes of it.
        progress: told what is being done.
        asked: (N,) of an earlier exclude overlay: its `EXCLUDE_ASKED` bits stay.

    Returns:
        The manifest with the counts and the rule, to be written by the caller. Its digest is the same.

    Raises:
        CorruptDataError: samples.parquet lacks the hashes, or can't be read.
        OSError: no space left.
    """
    progress.note("looking for duplicates")
    table = folder / SAMPLES_FILE
    hashes = _read_hashes(table, manifest.samples)
    talk = manifest.samples >= _TALKATIVE_SAMPLES
    note = (lambda text: progress.note(f"near-duplicates: {text}")) if talk else (lambda _: None)
    found = find_duplicates(hashes, lambda ordinals: _ranks(table, ordinals), options, note)
    if manifest.split == "val":  # or results would be of other images than everybody's
        found = replace(found, excluded=np.zeros_like(found.excluded))
    bits = np.zeros(manifest.samples, dtype=np.uint8)
    if asked is not None:
        bits |= asked & np.uint8(EXCLUDE_ASKED)
    bits[found.ordinal[found.excluded]] |= np.uint8(EXCLUDE_DUPLICATE)
    info = _counts(found, options)
    _write_table(folder / DUPLICATES_FILE, found)
    overlay = Overlay(kind=EXCLUDE, array=bits, manifest_digest=manifest.digest, info={"duplicates": asdict(info)})
    overlay.save(folder / EXCLUDE)
    return replace(
        manifest,
        duplicates=info,
        tables={**manifest.tables, DUPLICATES_FILE: file_checksum(folder / DUPLICATES_FILE)},
        options={**manifest.options, **options.deciding()},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """A finished data set that was searched anew."""

    manifest: Manifest
    shown_before: int
    """Samples that no reason excluded."""
    shown_now: int


def mark_again(directory: Path, options: DuplicateOptions, progress: Progress) -> Marked:
    """Search a finished data set anew; what was excluded by key stays so.

    Raises:
        ShardsError: no finished data set, or its table or overlay is damaged.
        OSError: the files can't be written.
    """
    manifest = Manifest.load(directory)
    refuse_damaged_tables(directory, manifest)
    before = excluded_rows(directory, manifest)
    manifest = mark_duplicates(directory, manifest, options, progress, before)
    manifest.save(directory)
    now = excluded_rows(directory, manifest)
    shown = [manifest.samples - (0 if rows is None else int(np.count_nonzero(rows))) for rows in (before, now)]
    return Marked(manifest=manifest, shown_before=shown[0], shown_now=shown[1])


def _read_hashes(path: Path, samples: int) -> Hashes:
    """The columns that matter, as arrays."""
    labels, hashed = np.zeros(samples, dtype=np.int32), np.zeros(samples, dtype=bool)
    hashes = {name: np.zeros(samples, dtype=np.uint64) for name in ("content_hash", "phash", "phash_fine")}
    start = 0
    try:
        with pq.ParquetFile(path) as file:
            if lacking := hashes.keys() - set(file.schema_arrow.names):
                raise CorruptDataError(
                    f"{path}: has no column {min(lacking)}, by which duplicates are found; build the shards again"
                )
            for batch in file.iter_batches(columns=["label", *hashes]):
                here = slice(start, start + batch.num_rows)
                labels[here] = batch.column("label").to_numpy()
                for name, array in hashes.items():
                    array[here] = pc.fill_null(batch.column(name), 0).to_numpy()
                hashed[here] = batch.column("phash").is_valid().to_numpy(zero_copy_only=False)
                start = here.stop
    except (OSError, pa.ArrowException, ValueError) as error:
        raise CorruptDataError(
            f"{path}: not a readable table of {samples} rows ({type(error).__name__}); build the shards again"
        ) from None
    if start != samples:
        raise CorruptDataError(f"{path}: {start} rows, the manifest says {samples}; build the shards again")
    return Hashes(
        labels=labels,
        content=hashes["content_hash"],
        coarse=hashes["phash"],
        fine=hashes["phash_fine"],
        hashed=hashed,
    )


def _ranks(path: Path, ordinals: Ints) -> Ints:
    """(n,) ranks of some samples' keys in bytewise order; only their keys are held."""
    order = np.argsort(ordinals)
    wanted = ordinals[order]
    parts, start = [pa.array([], pa.large_string())], 0
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            if len(here):
                keys = file.read_row_group(group, columns=["key"]).column("key")
                parts.append(keys.take(pa.array(here)).combine_chunks().cast(pa.large_string()))
            start = stop
    keys = pa.concat_arrays([part if isinstance(part, pa.Array) else part.combine_chunks() for part in parts])
    ranks = np.zeros(len(ordinals), dtype=np.int64)
    ranks[order[pc.sort_indices(keys).to_numpy()]] = np.arange(len(ordinals))  # Arrow sorts text bytewise
    return ranks


def _counts(found: Duplicates, options: DuplicateOptions) -> DuplicatesInfo:
    return DuplicatesInfo(
        conflict=options.conflict.value,
        near_distance=options.near_distance,
        exact=int((found.same_class & found.exact).sum()),
        near=int((found.same_class & ~found.exact).sum()),
        conflicts=int((~found.same_class).sum()),
        excluded=int(found.excluded.sum()),
        cut_short=found.cut_short,
    )


def _write_table(path: Path, found: Duplicates) -> None:
    columns = {
        "ordinal": found.ordinal,
        "first": found.first,
        "kind": pa.array(["near", "exact"]).take(pa.array(found.exact.astype(np.int8))),
        "distance": found.distance.astype(np.int32),
        "same_class": found.same_class,
        "excluded": found.excluded,
    }
    with atomic_file(path) as file:
        pq.write_table(pa.table(columns, schema=DUPLICATES_SCHEMA), file, compression=TABLE_COMPRESSION)
