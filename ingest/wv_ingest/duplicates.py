"""Which samples show a picture that another sample shows already: arrays in, arrays out. Nothing is read or written.

The rule, within a class: in the order of their keys, a sample is kept unless one that was kept before it is the same
file or lies within the distance. So every copy is near the one that is kept for it (no chains of ever less alike
pictures), and no two that are kept are near one another. Between classes, pictures that resemble one another are in
conflict: a label is wrong, or the picture shows both things; `Conflict` says what becomes of them.

    samples ─► nodes (one class, one hash) ─► pictures (one hash)
                 │ near_pairs within classes     │ near_pairs between classes, at half the distance
                 ▼                               ▼
               kept or copy                    in conflict or not
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wv_ingest.near_search import U64, near_pairs

NEAR_DISTANCE = 8
"""Bits of 64 in which two pictures of one class may differ and be the same; LOG.md has the measurements."""
MAX_NEAR_DISTANCE = 12
"""Beyond this pictures that only share a composition are called the same."""
_NONE = np.iinfo(np.int64).max

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Conflict(StrEnum):
    """What becomes of a picture that stands in several classes."""

    KEEP = "keep"
    """Each class keeps it."""
    DROP = "drop"
    """No class keeps it."""
    REPORT = "report"
    """As `keep`, and a person is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicateOptions:
    """How duplicates are found and what becomes of them."""

    conflict: Conflict = Conflict.KEEP
    near_distance: int | None = NEAR_DISTANCE
    """Bits of the coarse half in which pictures of one class may differ, half as many between classes; None: only equal
    files are copies."""

    @classmethod
    def of(cls, said: dict[str, Any]) -> Self:
        """Those that a manifest's `options` name; where they name none, the default ones."""
        default = cls()
        return cls(
            conflict=Conflict(said.get("conflict", default.conflict)),
            near_distance=said.get("near_distance", default.near_distance),
        )

    def deciding(self) -> dict[str, Any]:
        """As the manifest's `options` has them."""
        return {"conflict": self.conflict.value, "near_distance": self.near_distance}

    def __post_init__(self) -> None:
        if self.near_distance is not None and not 0 <= self.near_distance <= MAX_NEAR_DISTANCE:
            raise ValueError(f"the distance must be within 0 … {MAX_NEAR_DISTANCE}, got {self.near_distance}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hashes:
    """What is known of N samples, row i speaking of ordinal i."""

    labels: NDArray[np.int32]
    content: U64
    """Of the source file."""
    coarse: U64
    fine: U64
    """Halves of the perceptual hash; anything where `hashed` is false."""
    hashed: Bools


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """The copies, by rising ordinal: D rows as DUPLICATES_SCHEMA describes them."""

    ordinal: Ints
    first: Ints
    exact: Bools
    distance: Ints
    same_class: Bools
    excluded: Bools
    cut_short: int
    """Pictures among too many lookalikes to compare with all; see `near_search.BUCKET_REACH`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Nodes:
    """Samples of one class with one hash are one node; nodes with one hash are one picture."""

    members: Ints
    """(N,) ordinals, node by node."""
    starts: Ints
    """(M,) place of each node's first member."""
    labels: Ints
    hashed: Bools
    coarse: U64
    fine: U64
    """(M,) of each node; the content's hash for what has no other."""

    def sizes(self) -> Ints:
        return np.diff(self.starts, append=len(self.members))


def find_duplicates(
    hashes: Hashes,
    ranks_of: Callable[[Ints], Ints],
    options: DuplicateOptions,
    note: Callable[[str], None] = lambda _: None,
) -> Duplicates:
    """Find them; some 100 bytes a sample, and time in proportion to n · log n.

    Args:
        hashes: of all samples.
        ranks_of: the order of some samples' keys: ordinals (n,) to ranks 0 … n − 1 (n,).
        options: distance and rule.
        note: told what is being done.
    """
    nodes = _nodes(hashes, near=options.near_distance is not None)
    pictures, heads = _pictures(nodes)
    edges, links, cut_short = _edges(nodes, heads, options.near_distance, note)

    alike = np.bincount(pictures, minlength=len(heads)) > 1  # the very hash, in several classes
    linked = alike.copy()
    linked[links.ravel()] = True
    in_question = (nodes.sizes() > 1) | linked[pictures]
    in_question[edges.ravel()] = True
    firsts, by_rank, ranks = _first_by_key(nodes, in_question, ranks_of)

    kept = _kept(edges, firsts)
    copies = _copies(nodes, kept, firsts, ranks, by_rank)
    loops = np.flatnonzero(alike)
    both = np.concatenate([links, links[:, ::-1], np.stack([loops, loops], axis=1)])
    conflicts = _conflicts(nodes, pictures, both, kept, firsts)

    other = conflicts != _NONE
    ordinal = np.concatenate([copies[0], by_rank[firsts[other]]])
    first = np.concatenate([copies[1], by_rank[conflicts[other]]])
    same_class = np.arange(len(ordinal)) < len(copies[0])
    order = np.argsort(ordinal)
    ordinal, first, same_class = ordinal[order], first[order], same_class[order]
    exact = hashes.content[ordinal] == hashes.content[first]
    distance = np.bitwise_count(hashes.coarse[ordinal] ^ hashes.coarse[first]).astype(np.int64)
    return Duplicates(
        ordinal=ordinal,
        first=first,
        exact=exact,
        distance=np.where(exact, 0, distance),
        same_class=same_class,
        excluded=same_class | (options.conflict is Conflict.DROP),
        cut_short=cut_short,
    )


def _differ(*columns: NDArray[np.generic]) -> Bools:
    """(n,) whether a row is another one than the row before."""
    new = np.zeros(len(columns[0]), dtype=bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _nodes(hashes: Hashes, *, near: bool) -> _Nodes:
    coarse, fine = hashes.content, np.zeros_like(hashes.content)
    hashed = np.zeros(len(coarse), dtype=bool)
    if near:
        # A file has one hash, whenever and however it was packed: that of its first sample that has one.
        by_content = np.lexsort((~hashes.hashed, hashes.content))
        heads = np.flatnonzero(_differ(hashes.content[by_content]))
        model = np.zeros_like(by_content)
        model[by_content] = np.repeat(by_content[heads], np.diff(heads, append=len(by_content)))
        del by_content, heads
        hashed = hashes.hashed[model]
        coarse, fine = np.where(hashed, hashes.coarse[model], coarse), np.where(hashed, hashes.fine[model], fine)
    members = np.lexsort((fine, coarse, hashed, hashes.labels))
    labels, hashed, coarse, fine = hashes.labels[members], hashed[members], coarse[members], fine[members]
    starts = np.flatnonzero(_differ(labels, hashed, coarse, fine))
    return _Nodes(
        members=members,
        starts=starts,
        labels=labels[starts].astype(np.int64),
        hashed=hashed[starts],
        coarse=coarse[starts],
        fine=fine[starts],
    )


def _pictures(nodes: _Nodes) -> tuple[Ints, Ints]:
    """(M,) the picture of each node, and (pictures,) one node of each."""
    order = np.lexsort((nodes.fine, nodes.coarse, nodes.hashed))
    new = _differ(nodes.hashed[order], nodes.coarse[order], nodes.fine[order])
    pictures = np.zeros(len(order), dtype=np.int64)
    pictures[order] = np.cumsum(new) - 1
    return pictures, order[new]


def _edges(nodes: _Nodes, heads: Ints, distance: int | None, note: Callable[[str], None]) -> tuple[Ints, Ints, int]:
    """(E, 2) nodes of one class that are near one another, (L, 2) pictures that are, whatever the class; cut short."""
    if distance is None:
        none = np.zeros((0, 2), dtype=np.int64)
        return none, none, 0
    own = np.flatnonzero(nodes.hashed)
    within = near_pairs(nodes.coarse[own], nodes.fine[own], distance, groups=nodes.labels[own], note=note)
    edges = own[within.pairs]
    own = np.flatnonzero(nodes.hashed[heads])
    # Between classes there are a thousand times as many pairs to resemble one another by chance.
    between = near_pairs(nodes.coarse[heads[own]], nodes.fine[heads[own]], distance // 2, note=note)
    return edges, own[between.pairs], within.cut_short + between.cut_short


def _first_by_key(nodes: _Nodes, in_question: Bools, ranks_of: Callable[[Ints], Ints]) -> tuple[Ints, Ints, Ints]:
    """(M,) rank of each node's first member by key, (n,) ordinals by rank, (N,) ranks in the order of `members`.

    Only nodes that are in question have ranks; the keys of the others need not be read.
    """
    places = np.flatnonzero(np.repeat(in_question, nodes.sizes()))
    ranks = np.full(len(nodes.members), _NONE)
    ranks[places] = ranks_of(nodes.members[places])
    by_rank = np.zeros(len(places), dtype=np.int64)
    by_rank[ranks[places]] = nodes.members[places]
    firsts = np.minimum.reduceat(ranks, nodes.starts) if len(nodes.starts) else ranks
    return firsts, by_rank, ranks


def _kept(edges: Ints, firsts: Ints) -> Ints:
    """(M,) the node that is kept for each node: itself, or the earliest kept one that is near it.

    In rounds: a node that nothing undecided precedes is kept, and what it precedes is a copy.
    """
    swapped = firsts[edges[:, 0]] > firsts[edges[:, 1]]
    earlier, later = np.where(swapped, edges[:, 1], edges[:, 0]), np.where(swapped, edges[:, 0], edges[:, 1])
    copy = np.zeros(len(firsts), dtype=bool)
    open_earlier, open_later = earlier, later
    while len(open_earlier):
        preceded = np.zeros(len(firsts), dtype=bool)
        preceded[open_later] = True
        decided = ~preceded[open_earlier]
        copy[open_later[decided]] = True
        undecided = ~decided & ~copy[open_earlier] & ~copy[open_later]
        open_earlier, open_later = open_earlier[undecided], open_later[undecided]
    kept = np.arange(len(firsts))
    of_kept = ~copy[earlier]
    earlier, later = earlier[of_kept], later[of_kept]
    order = np.argsort(firsts[earlier], kind="stable")[::-1]
    kept[later[order]] = earlier[order]  # the earliest is written last
    return kept


def _copies(nodes: _Nodes, kept: Ints, firsts: Ints, ranks: Ints, by_rank: Ints) -> tuple[Ints, Ints]:
    """Ordinals of the copies within classes, and of what is kept for each."""
    node_of = np.repeat(np.arange(len(nodes.starts)), nodes.sizes())
    first = firsts[kept[node_of]]
    copy = (first != ranks) & (ranks != _NONE)
    return nodes.members[copy], by_rank[first[copy]]


def _conflicts(nodes: _Nodes, pictures: Ints, links: Ints, kept: Ints, firsts: Ints) -> Ints:
    """(M,) for a node that is kept and stands in other classes too, the rank of the first there; `_NONE` for others.

    A copy's conflicts are those of what is kept for it.
    """
    found = np.full(len(nodes.starts), _NONE)
    if not len(links):
        return found
    ranks = firsts[kept]
    order = np.lexsort((ranks, pictures))
    starts = np.flatnonzero(np.diff(pictures[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    best = order[starts]  # (pictures,) the node with the first rank
    elsewhere = np.where(nodes.labels[order] == np.repeat(nodes.labels[best], sizes), _NONE, ranks[order])
    second = np.minimum.reduceat(elsewhere, starts)  # (pictures,) first rank in another class than that node's
    # Every node of the first picture of a link looks at the second picture.
    counts = sizes[links[:, 0]]
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    node = order[np.repeat(starts[links[:, 0]], counts) + offsets]
    there = np.repeat(links[:, 1], counts)
    rank = np.where(nodes.labels[best[there]] == nodes.labels[node], second[there], ranks[best[there]])
    np.minimum.at(found, kept[node], rank)
    return found
