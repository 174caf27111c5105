"""The facts of a report, gathered from a finished data set: counts, sizes, metadata, which samples to show.

It reads index and tables in pieces and keeps sums and a bounded number of examples, whatever the number of samples.
Nothing is decoded and nothing is drawn here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wv_ingest.counts import exclusions, index_chunks, stats_document, table_batches
from wv_ingest.report_copies import Duplicates, read_duplicates
from wv_ingest.report_examples import RejectExamples, reject_examples
from wv_shards import METADATA_SCHEMA, SAMPLES_FILE, CorruptDataError, Dataset, splitmix64

SHEET_CLASSES = 3
"""Classes that are shown, of the smallest, the middle and the largest ones each."""
SHEET_SAMPLES = 6

_SIDE_LIMIT = 1 << 16
_SHAPE_BINS = np.concatenate([[0.0], 2.0 ** (np.arange(-8, 9) / 4), [np.inf]])
"""Edges of width over height, a quarter of an octave apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts between edges."""

    edges: NDArray[np.float64]
    """(B + 1,) rising; a bin holds edge ≤ value < next edge."""
    counts: NDArray[np.int64]
    """(B,)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large the stored images are."""

    sides: Histogram
    """Shorter side, pixels."""
    shapes: Histogram
    """Width over height."""
    bytes: Histogram
    """Of an image file."""
    figures: tuple[tuple[str, float, float, float], ...]
    """(what, smallest, mean, largest) of shorter side, longer side and bytes; empty without samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """All that a page shows, but the pictures."""

    stats: dict[str, Any]
    """`counts.stats_document`"""
    shards: tuple[tuple[str, int | None, int, int, str], ...]
    """(name, band, samples, bytes, checksum) of each."""
    sizes: Sizes
    rejects: dict[str, RejectExamples]
    """By reason."""
    metadata: dict[str, int] | None
    """Column of metadata → samples that have it; None if the data set has no such columns."""
    duplicates: Duplicates | None
    """None: not looked for."""
    sheet: tuple[tuple[int, tuple[int, ...]], ...]
    """(class id, ordinals) of some classes, from the smallest to the largest; ordinals drawn by lot."""
    labels: dict[int, int]
    """Class id of every ordinal that is shown."""
    names: dict[int, tuple[str, str]]
    """(key, path) of every ordinal that is shown."""


def gather(dataset: Dataset) -> ReportData:
    """Read what the report of `dataset` shows.

    Raises:
        ShardsError: a table is missing or can't be read, an overlay is of another data set.
    """
    stats = stats_document(dataset)
    excluded = exclusions(dataset)
    chosen = _sheet_classes(stats["classes"])
    duplicates = read_duplicates(dataset)
    sheet = _drawn(dataset, chosen, excluded)
    shown = {ordinal for _, ordinals in sheet for ordinal in ordinals}
    for group in duplicates.shown if duplicates else ():
        shown |= {group.first, *(copy.ordinal for copy in group.copies)}
    return ReportData(
        stats=stats,
        shards=tuple((s.name, s.band, s.samples, s.bytes, s.checksum) for s in dataset.manifest.shards),
        sizes=_sizes(dataset),
        rejects=reject_examples(dataset),
        metadata=_metadata(dataset),
        duplicates=duplicates,
        sheet=sheet,
        labels={ordinal: int(dataset.index["label"][ordinal]) for ordinal in shown},
        names=_names(dataset, shown),
    )


def _sheet_classes(classes: list[dict[str, Any]]) -> list[int]:
    """Some of the smallest, the middle and the largest classes that have samples to show, the smallest first."""
    shown = [c for c in classes if c["samples"] > c["excluded"]]
    order = [c["class_id"] for c in sorted(shown, key=lambda c: (c["samples"] - c["excluded"], c["class_id"]))]
    middle = max(0, (len(order) - SHEET_CLASSES) // 2)
    places = {
        *range(SHEET_CLASSES),
        *range(middle, middle + SHEET_CLASSES),
        *range(len(order) - SHEET_CLASSES, len(order)),
    }
    return [order[place] for place in sorted(places) if 0 <= place < len(order)]


def _drawn(
    dataset: Dataset, classes: list[int], excluded: NDArray[np.bool_] | None
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Of each class the samples with the smallest hashes: a draw that comes out the same every time."""
    wanted = np.zeros(len(dataset.manifest.classes), dtype=bool)
    wanted[classes] = True
    drawn: dict[int, NDArray[np.int64]] = {c: np.zeros(0, dtype=np.int64) for c in classes}
    for part in index_chunks(dataset.manifest.samples):
        labels = np.asarray(dataset.index["label"][part])
        members = wanted[labels] if excluded is None else wanted[labels] & ~excluded[part]
        found = np.flatnonzero(members)
        for c in np.unique(labels[found]).tolist():
            ordinals = np.concatenate([drawn[c], found[labels[found] == c] + part.start])
            drawn[c] = ordinals[np.argsort(splitmix64(ordinals), kind="stable")][:SHEET_SAMPLES]
    return tuple((c, tuple(drawn[c].tolist())) for c in classes)


def _sizes(dataset: Dataset) -> Sizes:
    """Histograms over all samples, excluded ones too."""
    shorter, octaves = np.zeros(_SIDE_LIMIT, dtype=np.int64), np.zeros(33 * 4, dtype=np.int64)
    shapes = np.zeros(len(_SHAPE_BINS) - 1, dtype=np.int64)
    seen: list[tuple[float, float, float]] = []  # smallest, sum, largest; three a chunk
    for part in index_chunks(dataset.manifest.samples):
        records = dataset.index[part]
        width, height, size = (records[name].astype(np.float64) for name in ("width", "height", "size"))
        shorter += np.bincount(np.minimum(width, height).astype(np.int64), minlength=_SIDE_LIMIT)
        octaves += np.bincount((4 * np.log2(np.maximum(size, 1))).astype(np.int64), minlength=len(octaves))
        shapes += np.histogram(width / np.maximum(height, 1), _SHAPE_BINS)[0]
        sides = np.minimum(width, height), np.maximum(width, height)
        seen += [(float(values.min()), float(values.sum()), float(values.max())) for values in (*sides, size)]
    figures = []
    for place, what in enumerate(("shorter side", "longer side", "bytes")):
        own = seen[place::3]
        if own:
            mean = sum(row[1] for row in own) / dataset.manifest.samples
            figures.append((what, min(row[0] for row in own), mean, max(row[2] for row in own)))
    return Sizes(
        sides=_side_bins(shorter),
        shapes=_cut(Histogram(edges=_SHAPE_BINS, counts=shapes)),
        bytes=_cut(Histogram(edges=2.0 ** (np.arange(len(octaves) + 1) / 4), counts=octaves)),
        figures=tuple(figures),
    )


def _side_bins(counts: NDArray[np.int64]) -> Histogram:
    """At most 32 equal bins over the sides that there are."""
    present = np.flatnonzero(counts)
    low, high = (int(present[0]), int(present[-1]) + 1) if len(present) else (0, 1)
    width = -(-(high - low) // 32)
    edges = np.arange(low, high + width, width)
    sums = np.add.reduceat(np.append(counts, np.zeros(width, np.int64)), edges[:-1])
    # reduceat sums from edge to edge, and from the last edge on: there is nothing beyond it
    return Histogram(edges=edges.astype(np.float64), counts=sums)


def _cut(histogram: Histogram) -> Histogram:
    """Without the empty bins at both ends."""
    present = np.flatnonzero(histogram.counts)
    low, high = (int(present[0]), int(present[-1]) + 1) if len(present) else (0, 0)
    return Histogram(edges=histogram.edges[low : high + 1], counts=histogram.counts[low:high])


def _metadata(dataset: Dataset) -> dict[str, int] | None:
    """How many samples have each column of metadata, from the table's own statistics where it has them."""
    path = dataset.directory / SAMPLES_FILE
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in METADATA_SCHEMA.names if name in file.schema_arrow.names]
            if not names:
                return None
            have = dict.fromkeys(names, 0)
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
                for name in names:
                    have[name] += columns[name].num_values - _nulls(file, number, columns[name], name)
    except (OSError, pa.ArrowException) as error:
        raise CorruptDataError(f"{path}: not a readable table ({type(error).__name__})") from error
    return have


def _nulls(file: pq.ParquetFile, group: int, chunk: Any, name: str) -> int:
    if chunk.statistics is not None and chunk.statistics.has_null_count:
        return int(chunk.statistics.null_count)
    return int(file.read_row_group(group, columns=[name]).column(name).null_count)


def _names(dataset: Dataset, ordinals: Iterable[int]) -> dict[int, tuple[str, str]]:
    """(key, path) of some samples; only the columns' batches are in memory."""
    wanted = np.array(sorted(ordinals), dtype=np.int64)
    found: dict[int, tuple[str, str]] = {}
    start = 0
    for batch in table_batches(dataset.directory / SAMPLES_FILE, ["key", "path"]) if len(wanted) else ():
        here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)]
        rows = batch.take(pa.array(here - start)).to_pylist()
        found.update({int(o): (row["key"], row["path"] or "") for o, row in zip(here, rows, strict=True)})
        start += batch.num_rows
    if len(found) != len(wanted):
        raise CorruptDataError(
            f"{dataset.directory / SAMPLES_FILE}: {start} rows, the manifest says {dataset.manifest.samples}"
        )
    return found
