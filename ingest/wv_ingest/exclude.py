"""Samples that must not be shown any more, named by their keys: a bit in the overlay `exclude`. No shard is touched.

The keys of millions of samples are read part by part; of what was excluded for other reasons nothing changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wv_ingest.errors import IngestError
from wv_shards import EXCLUDE, EXCLUDE_ASKED, SAMPLES_FILE, CorruptDataError, Manifest, Overlay, lost_exclude

_ASKED = np.uint8(EXCLUDE_ASKED)
_NAMED = 5
"""Unknown keys that a message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """What was done."""

    keys: int
    """Different ones that were given."""
    unknown: int
    """Of them, keys that no sample has."""
    changed: int
    """Samples whose bit was set, or with `undo` cleared."""
    excluded_before: int
    """Samples excluded for whatever reason."""
    excluded_after: int
    samples: int


def exclude_keys(
    directory: Path, keys: Iterable[str], *, undo: bool = False, ignore_unknown: bool = False
) -> Exclusion:
    """Exclude the samples with these keys, or with `undo` show them again unless another reason is left.

    Raises:
        IngestError: some keys are no sample's; nothing is changed, unless `ignore_unknown`.
        ShardsError: no finished data set, or its overlay or table of keys is damaged.
        OSError: the overlay can't be written.
    """
    manifest = Manifest.load(directory)
    refuse_lost(directory, manifest)  # a new overlay would show the duplicates again
    wanted = pa.array(sorted(set(keys)), pa.string())
    ordinals, known = _ordinals(directory / SAMPLES_FILE, manifest.samples, wanted)
    if not known.all() and not ignore_unknown:
        unknown = wanted.filter(pa.array(~known)).to_pylist()
        named = ", ".join(unknown[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
        raise IngestError(
            f"{len(unknown)} of {len(wanted)} keys are no sample's of {directory}: {named}; "
            "correct them, or leave them out with --ignore-unknown; nothing has been changed"
        )
    overlay = _overlay(directory, manifest)
    rows = np.zeros(manifest.samples, dtype=np.uint8) if overlay is None else overlay.array
    before = int(np.count_nonzero(rows))
    has = (rows[ordinals] & _ASKED) != 0
    changed = ordinals[has if undo else ~has]
    if len(changed):
        rows[changed] ^= _ASKED
        info = {} if overlay is None else overlay.info
        Overlay(kind=EXCLUDE, array=rows, manifest_digest=manifest.digest, info=info).save(directory / EXCLUDE)
    return Exclusion(
        keys=len(wanted),
        unknown=int(np.count_nonzero(~known)),
        changed=len(changed),
        excluded_before=before,
        excluded_after=int(np.count_nonzero(rows)),
        samples=manifest.samples,
    )


def refuse_lost(directory: Path, manifest: Manifest) -> None:
    """Refuse a data set that has lost its exclude overlay.

    Raises:
        CorruptDataError: duplicates were excluded, and the overlay that says which is gone.
    """
    if lost := lost_exclude(directory, manifest):
        raise CorruptDataError(lost)


def excluded_rows(directory: Path, manifest: Manifest) -> NDArray[np.uint8] | None:
    """(N,) of the exclude overlay, with a row per sample of `manifest`; None if there is none.

    What an overlay of bools excludes counts as asked for: its reason is not known.

    Raises:
        ShardsError: it is damaged, or of another data set.
    """
    overlay = _overlay(directory, manifest)
    return None if overlay is None else overlay.array


def _overlay(directory: Path, manifest: Manifest) -> Overlay | None:
    """The overlay of which `excluded_rows` gives the array."""
    if not (directory / f"{EXCLUDE}.json").exists():
        return None
    overlay = Overlay.load_onto(directory / EXCLUDE, manifest, kind=EXCLUDE)
    array = overlay.array
    return replace(overlay, array=array * _ASKED if array.dtype == bool else array.astype(np.uint8))


def _ordinals(path: Path, samples: int, keys: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ordinals of the samples with these keys, ascending; and (keys,) whether a sample has it."""
    found: list[NDArray[np.int64]] = []
    known = np.zeros(len(keys), dtype=bool)
    start = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["key"]):
                numbers = pc.index_in(batch.column(0), value_set=keys)
                hit = np.flatnonzero(pc.is_valid(numbers).to_numpy(zero_copy_only=False))
                known[numbers.take(pa.array(hit)).to_numpy(zero_copy_only=False)] = True
                found.append(hit + start)
                start += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise CorruptDataError(f"{path}: not a readable table of keys ({type(error).__name__})") from error
    if start != samples:
        raise CorruptDataError(f"{path}: {start} rows, the manifest says {samples}")
    return np.concatenate([np.empty(0, dtype=np.int64), *found]), known
