"""All pairs of hashes that differ in few bits, without comparing each with each: multi-index hashing.

The bits are cut into blocks. Two hashes within d bits of one another agree in all but d of m blocks at least, so for
every choice of m − d blocks those that agree in them are brought together by sorting, and only they are compared.
After Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012, and Manku, Jain and
Das Sarma, "Detecting Near-Duplicates for Web Crawling", 2007.

Arrays in, arrays out; what a pair means is decided in `duplicates`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from wv_ingest.phash import HALF_BITS
from wv_shards import splitmix64

U64 = NDArray[np.uint64]
Pairs = NDArray[np.int64]

BUCKET_REACH, MOST_NEAR = 1000, 32
"""In a pass a hash is compared with so many that follow it in its bucket, and no further once so many were near: bounds
for crowds of lookalikes, whose pairs grow with the square of their number."""

_MAX_BLOCKS = 16
_SORT_COST, _COMPARE_COST = 40.0, 4.0
"""Nanoseconds an entry and a pair, measured: they decide into how many blocks the bits are cut, and nothing else."""
_CHUNK = 1 << 18
"""Entries compared at a time: what fits the processor's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearPairs:
    """What a search found."""

    pairs: Pairs
    """(P, 2) places of hashes that are near one another, the smaller first; sorted, without repeats."""
    cut_short: int
    """Hashes whose search a bound ended. 0: every pair within the distances was found."""


def near_pairs(
    coarse: U64,
    fine: U64,
    distance: int,
    *,
    groups: NDArray[np.int64] | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> NearPairs:
    """Pairs whose coarse halves differ in at most `distance` bits, and whose fine halves in at most twice as many.

    Args:
        coarse: (n,) halves by which is searched.
        fine: (n,) halves that confirm.
        distance: 0 … 15.
        groups: (n,) only pairs of one group are wanted; None: all are one group.
        note: told before each pass.
    """
    if not 0 <= distance < _MAX_BLOCKS:
        raise ValueError(f"a distance must be within 0 … {_MAX_BLOCKS - 1} bits, got {distance}")
    count = len(coarse)
    found, cut_short = np.zeros(0, dtype=np.uint64), np.zeros(count, dtype=bool)
    place_bits = np.uint64(max(1, count.bit_length()))
    masks = _masks(distance, _mean_group(count, groups))
    for number, mask in enumerate(masks, 1):
        note(f"distance {distance}, pass {number} of {len(masks)}")
        keys = coarse & mask
        if groups is not None:
            keys ^= splitmix64(groups.astype(np.uint64))
        # Bucket above, place below, in one integer: sorting integers is much faster than sorting their places.
        entries = (splitmix64(keys) >> place_bits << place_bits) | np.arange(count, dtype=np.uint64)
        del keys
        entries.sort()
        places = (entries & ((np.uint64(1) << place_bits) - np.uint64(1))).astype(np.int64)
        buckets = entries >> place_bits
        del entries
        passed = _near_in_buckets(buckets, places, coarse, fine, groups, distance, cut_short)
        found = np.unique(np.concatenate([found, *passed]))
    pairs = np.stack([found >> np.uint64(32), found & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)
    return NearPairs(pairs=pairs, cut_short=int(cut_short.sum()))


def _mean_group(count: int, groups: NDArray[np.int64] | None) -> float:
    """Size of the group that a hash finds itself in, on average."""
    if groups is None or not count:
        return float(count)
    _, sizes = np.unique(groups, return_counts=True)
    return float((sizes.astype(np.float64) ** 2).sum() / count)


def _masks(distance: int, group: float) -> list[np.uint64]:
    """Which bits must agree, in each of the passes that together miss nothing."""
    blocks = _blocks_for(distance, group)
    edges = [round(HALF_BITS * i / blocks) for i in range(blocks + 1)]
    of_block = [((1 << (stop - start)) - 1) << start for start, stop in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(of_block, blocks - distance)]


def _blocks_for(distance: int, group: float) -> int:
    """Into how many blocks to cut: the more, the fewer hashes agree in what is left, and the more passes there are."""

    def cost(blocks: int) -> float:
        agreeing = HALF_BITS * (blocks - distance) / blocks
        return math.comb(blocks, distance) * (_SORT_COST + _COMPARE_COST * group / 2**agreeing / 2)

    return min(range(distance + 1, _MAX_BLOCKS + 1), key=cost)


def _near_in_buckets(
    buckets: U64,
    places: NDArray[np.int64],
    coarse: U64,
    fine: U64,
    groups: NDArray[np.int64] | None,
    distance: int,
    cut_short: NDArray[np.bool_],
) -> Iterator[U64]:
    """Near pairs within buckets, each as one integer with the smaller place above; notes whose search is cut short."""
    for start in range(0, len(buckets), _CHUNK):
        stop = min(len(buckets), start + _CHUNK)
        here = slice(start, min(len(buckets), stop + BUCKET_REACH + 1))
        bucket, place = buckets[here], places[here]
        hashes = coarse[place]
        left, matches = np.arange(stop - start), np.zeros(stop - start, dtype=np.int64)
        for step in range(1, BUCKET_REACH + 2):
            left = left[: np.searchsorted(left, len(bucket) - step)]
            left = left[bucket[left] == bucket[left + step]]
            done = matches[left] >= MOST_NEAR if step <= BUCKET_REACH else np.ones(len(left), dtype=bool)
            if done.any():
                cut_short[place[left[done]]] = True
                left = left[~done]
            if not len(left):
                break
            near = left[np.bitwise_count(hashes[left] ^ hashes[left + step]) <= distance]
            first, second = place[near], place[near + step]
            same = np.bitwise_count(fine[first] ^ fine[second]) <= 2 * distance
            if groups is not None:
                same &= groups[first] == groups[second]  # two groups can share a bucket
            if same.any():
                matches[near[same]] += 1
                first, second = first[same], second[same]
                low, high = np.minimum(first, second), np.maximum(first, second)
                yield low.astype(np.uint64) << np.uint64(32) | high.astype(np.uint64)
