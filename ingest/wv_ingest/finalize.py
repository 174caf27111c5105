"""Puts a data set together from finished shards: index, tables, tars in their place, and last the manifest.

It streams shard by shard, so memory does not grow with the samples, only with the rejects; the search for duplicates
alone takes some 100 bytes a sample. Every row of the source is accounted for here, or nothing is finished.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wv_ingest.build_state import REPEATED_FILE, BuildState, filtered_rows, remove_build_dir
from wv_ingest.duplicates import DuplicateOptions
from wv_ingest.mark_duplicates import MARK_FILES, mark_duplicates
from wv_ingest.outcomes import packed, read_outcomes, read_summary, records_of, rejected
from wv_ingest.pack import outcomes_path
from wv_ingest.progress import Progress
from wv_shards import (
    INDEX_FILE,
    METADATA_SCHEMA,
    REJECTS_FILE,
    REJECTS_SCHEMA,
    SAMPLES_FILE,
    SAMPLES_SCHEMA,
    TABLE_COMPRESSION,
    TABLE_GROUP_ROWS,
    ClassInfo,
    IndexArray,
    Manifest,
    OriginInfo,
    ShardInfo,
    UnlistedInfo,
    atomic_file,
    band_of,
    file_checksum,
    fsync_directory,
    table_checksums,
    write_index,
    write_timm_info,
)


class _Account:
    """Running totals over all outcomes: nothing may be lost, nothing counted twice."""

    def __init__(self, state: BuildState) -> None:
        self.seen = np.zeros(state.rows, dtype=bool)
        self.class_samples: NDArray[np.int64] = np.zeros(len(state.class_rows), dtype=np.int64)
        self.origin_samples: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()
        self._rejected: list[pa.Table] = []

    def add(self, outcomes: pa.Table, samples: pa.Table) -> None:
        """Count one file's outcomes, `samples` being those that were packed."""
        rows = outcomes.column("row").to_numpy()
        assert not self.seen[rows].any(), "a row of the source has two outcomes"
        self.seen[rows] = True
        assert int(self.seen[rows].sum()) == len(rows), "a row of the source has two outcomes in one shard"
        self.class_samples += np.bincount(samples.column("label").to_numpy(), minlength=len(self.class_samples))
        for counted in pc.value_counts(samples.column("source")).to_pylist():
            self.origin_samples[counted["values"]] += counted["counts"]
        bad = rejected(outcomes)
        self.rejects.update(bad.column("reason").to_pylist())
        self._rejected.append(bad.select(["row", *REJECTS_SCHEMA.names]))

    def all_rejects(self, filtered: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """All rejects in the source's order, of REJECTS_SCHEMA; `filtered` rows, in that order too, stream through."""
        own = pa.concat_tables(self._rejected).replace_schema_metadata().sort_by("row")
        numbers = own.column("row").to_numpy()
        taken = 0
        for part in filtered:
            rows = part.column("row").to_numpy()
            assert not self.seen[rows].any(), "a row of the source has two outcomes"
            self.seen[rows] = True
            self.rejects.update(part.column("reason").to_pylist())
            upto = int(np.searchsorted(numbers, rows[-1]))
            yield pa.concat_tables([own.slice(taken, upto - taken), part]).sort_by("row").select(REJECTS_SCHEMA.names)
            taken = upto
        yield own.slice(taken).select(REJECTS_SCHEMA.names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What became of a plan's rows; index and tables are written."""

    shards: tuple[ShardInfo, ...]
    """Those with samples, in the plan's order."""
    samples: int
    class_samples: tuple[int, ...]
    origin_samples: Counter[str]
    rejects: dict[str, int]
    """By reason."""
    metadata_gaps: dict[str, int]
    """By reason."""


def finalize(out: Path, build_dir: Path, state: BuildState, progress: Progress) -> Manifest:
    """Finish the data set in `out`; all shards' outcomes are in `build_dir`.

    Raises:
        OSError: no space left; the build can be resumed.
    """
    tables = write_tables(build_dir, state, progress)
    manifest = manifest_of(build_dir, state, tables)
    manifest = mark_duplicates(build_dir, manifest, DuplicateOptions.of(manifest.options), progress)
    move_into_place(build_dir, out, tables.shards)
    write_timm_info(out, manifest)
    manifest.save(out)
    remove_build_dir(build_dir)
    return manifest


def manifest_of(build_dir: Path, state: BuildState, tables: Tables, *, bands: bool = True) -> Manifest:
    """The manifest of a plan's shards, whose index and tables lie in `build_dir`.

    Args:
        bands: whether the shards were packed by band.
    """
    classes = (class_of(state, tables, class_id) for class_id in range(len(state.class_names)))
    return Manifest(
        seed=state.identity.seed,
        split=state.identity.split,
        classes=tuple(info if bands else replace(info, band=None) for info in classes),
        shards=tables.shards,
        samples=tables.samples,
        rows=state.rows,
        rejects=tables.rejects,
        sources={
            name: OriginInfo(rows=rows, samples=tables.origin_samples[name]) for name, rows in state.origin_rows.items()
        },
        unlisted=unlisted_of(state),
        metadata_gaps=tables.metadata_gaps,
        index_checksum=file_checksum(build_dir / INDEX_FILE),
        tables=table_checksums(build_dir),
        options=state.identity.options,
        codecs=state.identity.codecs,
    )


def class_of(state: BuildState, tables: Tables, class_id: int) -> ClassInfo:
    """A class that has no other rows than the plan's."""
    rows = state.class_rows[class_id]
    return ClassInfo(
        class_id=class_id,
        name=state.class_names[class_id],
        rows=rows,
        samples=tables.class_samples[class_id],
        band=band_of(rows),
        original_id=None if state.original_ids is None else state.original_ids[class_id],
    )


def unlisted_of(state: BuildState) -> UnlistedInfo | None:
    """What was found of files that no list names."""
    return None if state.unlisted is None else UnlistedInfo(files=state.unlisted[0], first=tuple(state.unlisted[1]))


def write_tables(build_dir: Path, state: BuildState, progress: Progress) -> Tables:
    """Write index.npy, samples.parquet and rejects.parquet of the plan's rows into `build_dir`.

    Raises:
        OSError: no space left; the build can be resumed.
    """
    progress.note("writing index and tables")
    infos, gaps = [], Counter[str]()
    for shard in state.shards:
        summary = read_summary(outcomes_path(build_dir, shard))
        gaps.update(summary.metadata_gaps)
        if summary.info is not None:
            infos.append(summary.info)
    account = _Account(state)
    repeated = read_outcomes(build_dir / REPEATED_FILE)
    account.add(repeated, packed(repeated))
    samples = sum(info.samples for info in infos)
    write_index(build_dir / INDEX_FILE, _gather(build_dir, state, account), samples)
    rejects = _write_table(build_dir / REJECTS_FILE, account.all_rejects(filtered_rows(build_dir)))
    assert account.seen.all(), "a row of the source has no outcome"
    assert samples + rejects == state.rows, "packed and rejected rows do not add up"
    return Tables(
        shards=tuple(infos),
        samples=samples,
        class_samples=tuple(account.class_samples.tolist()),
        origin_samples=account.origin_samples,
        rejects=dict(sorted(account.rejects.items())),
        metadata_gaps=dict(sorted(gaps.items())),
    )


def _gather(build_dir: Path, state: BuildState, account: _Account) -> Iterator[IndexArray]:
    """Index records shard by shard; on the way samples.parquet is written and the account kept."""
    schema = pa.schema([*SAMPLES_SCHEMA, *METADATA_SCHEMA]) if state.metadata else SAMPLES_SCHEMA
    with (
        atomic_file(build_dir / SAMPLES_FILE) as file,
        pq.ParquetWriter(file, schema, compression=TABLE_COMPRESSION) as writer,
    ):
        group: list[pa.Table] = []
        for shard in state.shards:
            outcomes = read_outcomes(outcomes_path(build_dir, shard))
            assert outcomes.num_rows == shard.stop - shard.start, f"outcomes of {shard.name} are not its rows"
            samples = packed(outcomes)
            account.add(outcomes, samples)
            group.append(samples.select(schema.names).replace_schema_metadata())
            if sum(part.num_rows for part in group) >= TABLE_GROUP_ROWS:
                writer.write_table(pa.concat_tables(group).combine_chunks())
                group = []
            yield records_of(samples)
        if group:
            writer.write_table(pa.concat_tables(group).combine_chunks())


def _write_table(path: Path, parts: Iterator[pa.Table]) -> int:
    """Write the table of rejects part by part; returns its rows."""
    rows = 0
    with atomic_file(path) as file, pq.ParquetWriter(file, REJECTS_SCHEMA, compression=TABLE_COMPRESSION) as writer:
        for part in parts:
            if part.num_rows:
                writer.write_table(part.combine_chunks(), row_group_size=TABLE_GROUP_ROWS)
                rows += part.num_rows
    return rows


def move_into_place(build_dir: Path, out: Path, infos: Sequence[ShardInfo]) -> None:
    """Give everything its place. Repeated after a kill, it moves what has not been moved yet."""
    names = [f"{info.name}{suffix}" for info in infos for suffix in (".idx", ".tar")]
    for name in [*names, INDEX_FILE, SAMPLES_FILE, REJECTS_FILE, *MARK_FILES]:
        if (build_dir / name).exists():
            os.replace(build_dir / name, out / name)
    fsync_directory(out)
