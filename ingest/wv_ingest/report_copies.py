"""What a report says of duplicates: sums over their table, and which groups of it to show. It searches nothing."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wv_ingest.counts import table_batches
from wv_shards import DUPLICATES_FILE, Dataset

GROUPS = 8
"""Groups of duplicates that are shown, of each kind: the largest, the largest of several classes, of near ones."""
COPIES = 4
"""Copies that are shown of a group, besides the first."""


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
