"""The facts of a report, gathered from a finished data set: sizes, rejects, duplicates, which samples to show.

It reads index and tables in pieces and keeps sums and a bounded number of examples, whatever the number of samples.
Nothing is decoded and nothing is drawn here.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wv_ingest.check import Reason
from wv_ingest.counts import exclusions, index_chunks, stats_document, table_batches
from wv_shards import (
    DUPLICATES_FILE,
    METADATA_SCHEMA,
    REJECTS_FILE,
    SAMPLES_FILE,
    CorruptDataError,
    Dataset,
    splitmix64,
)

EXAMPLES = 5
"""Paths that are shown of a reason."""
GROUPS = 8
"""Groups of duplicates that are shown, of each kind: the largest, the largest of several classes, of near ones."""
COPIES = 5
"""Copies that are shown of a group, besides the first."""
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


@dataclass(kw_only=True, slots=True)
class RejectExamples:
    """What is known of one reason."""

    details: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, int, str]] = field(default_factory=list)
    """(path, label, detail) of the first rows, of every detail if there is room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """One sample that is a copy of another."""

    ordinal: int
    kind: str
    distance: int
    same_class: bool
    excluded: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyGroup:
    """A sample and its copies."""

    first: int
    copies: tuple[Copy, ...]
    """Some of them."""
    size: int
    """How many copies there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """What `duplicates.parquet` says."""

    counts: dict[tuple[str, bool], tuple[int, int]]
    """(kind, same class) → samples, and how many of them are excluded."""
    groups: int
    """Samples that have copies."""
    shown: tuple[CopyGroup, ...]
    """Some groups, the largest first."""


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
        rejects=_reject_examples(dataset),
        metadata=_metadata(dataset),
        duplicates=duplicates,
        sheet=sheet,
        labels={ordinal: int(dataset.index["label"][ordinal]) for ordinal in shown},
        names=_names(dataset, shown),
    )


def read_duplicates(dataset: Dataset) -> Duplicates | None:
    """Sums over the table of duplicates, and its largest groups; None if there is no such table.

    Raises:
        CorruptDataError: it can't be read.
    """
    path = dataset.directory / DUPLICATES_FILE
    if not path.exists():
        return None
    counts: dict[tuple[str, bool], tuple[int, int]] = {}
    pieces = []
    for batch in table_batches(path, ["first", "kind", "same_class", "excluded"]):
        pieces.append(batch.column("first").to_numpy())
        table = pa.Table.from_batches([batch])
        for row in (
            table.group_by(["kind", "same_class"]).aggregate([("excluded", "sum"), ([], "count_all")]).to_pylist()
        ):
            name = row["kind"], row["same_class"]
            samples, hidden = counts.get(name, (0, 0))
            counts[name] = samples + row["count_all"], hidden + (row["excluded_sum"] or 0)
    firsts, sizes = np.unique(np.concatenate(pieces or [np.zeros(0, np.int64)]), return_counts=True)
    chosen = _chosen_groups(dataset, firsts, sizes)
    return Duplicates(counts=counts, groups=len(firsts), shown=_copy_groups(dataset, chosen))


def _chosen_groups(dataset: Dataset, firsts: NDArray[np.int64], sizes: NDArray[np.int64]) -> dict[int, int]:
    """First sample → copies: the largest groups of all, of those of several classes, of those with near copies."""
    apart, near = np.zeros(len(firsts), dtype=bool), np.zeros(len(firsts), dtype=bool)
    for batch in table_batches(dataset.directory / DUPLICATES_FILE, ["first", "kind", "same_class"]):
        places = np.searchsorted(firsts, batch.column("first").to_numpy())
        apart[places[~batch.column("same_class").to_numpy(zero_copy_only=False)]] = True
        near[places[pc.not_equal(batch.column("kind"), "exact").to_numpy(zero_copy_only=False)]] = True
    chosen = set()
    for group in (np.ones(len(firsts), dtype=bool), apart, near):
        places = np.flatnonzero(group)
        chosen |= set(places[np.argsort(-sizes[places], kind="stable")][:GROUPS].tolist())
    return {int(firsts[place]): int(sizes[place]) for place in sorted(chosen, key=lambda p: (-sizes[p], p))}


def _copy_groups(dataset: Dataset, chosen: dict[int, int]) -> tuple[CopyGroup, ...]:
    copies: dict[int, list[Copy]] = {first: [] for first in chosen}
    wanted = pa.array(list(chosen), pa.int64())
    columns = ["ordinal", "first", "kind", "distance", "same_class", "excluded"]
    for batch in table_batches(dataset.directory / DUPLICATES_FILE, columns) if chosen else ():
        for row in batch.filter(pc.is_in(batch.column("first"), wanted)).to_pylist():
            group = copies[row.pop("first")]
            # Copies in another class are rare and tell most: they go before those of the same class.
            group.append(Copy(**row))
            group.sort(key=lambda copy: (copy.same_class, copy.ordinal))
            del group[COPIES:]
    return tuple(CopyGroup(first=first, copies=tuple(copies[first]), size=size) for first, size in chosen.items())


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


def _reject_examples(dataset: Dataset) -> dict[str, RejectExamples]:
    """The first rows of each reason; of each detail one before any has a second. `filtered` ones have no examples."""
    found: dict[str, RejectExamples] = {}
    if not dataset.manifest.rejects:
        return found
    for batch in table_batches(dataset.directory / REJECTS_FILE, ["reason", "detail", "path", "label"]):
        for row in (
            pa.Table.from_batches([batch]).group_by(["reason", "detail"]).aggregate([([], "count_all")]).to_pylist()
        ):
            reason, detail = row["reason"], row["detail"] or ""
            group = found.setdefault(reason, RejectExamples())
            new = not group.details[detail]
            group.details[detail] += row["count_all"]
            if reason == Reason.FILTERED or not (new or len(group.examples) < EXAMPLES):
                continue
            own = pc.and_(pc.equal(batch.column("reason"), reason), pc.equal(batch.column("detail"), row["detail"]))
            for example in batch.filter(own).slice(0, EXAMPLES).to_pylist():
                group.examples.append((example["path"], example["label"], detail))
            group.examples = _spread(group.examples)
    return found


def _spread(examples: Sequence[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    """EXAMPLES of them, taken in turn from every detail, in their order."""
    turns = Counter[str]()
    ranked = []
    for place, example in enumerate(examples):
        ranked.append((turns[example[2]], place))
        turns[example[2]] += 1
    return [examples[place] for _, place in sorted(sorted(ranked)[:EXAMPLES], key=lambda item: item[1])]


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
