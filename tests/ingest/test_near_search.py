"""The search for near hashes finds what comparing each with each finds."""

from itertools import combinations
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_ingest import near_search
from wv_ingest.near_search import near_pairs


def brute_force(coarse: np.ndarray, fine: np.ndarray, distance: int, groups: np.ndarray | None) -> list[list[int]]:
    return [
        [i, j]
        for i, j in combinations(range(len(coarse)), 2)
        if (int(coarse[i]) ^ int(coarse[j])).bit_count() <= distance
        and (int(fine[i]) ^ int(fine[j])).bit_count() <= 2 * distance
        and (groups is None or groups[i] == groups[j])
    ]


def draw_hashes(rng: np.random.Generator, count: int, originals: int, flips: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes that scatter around a few originals, up to so many bits away, twice as many in the fine half."""
    halves = []
    for most in (flips, 2 * flips):
        base = rng.integers(0, 2**64, originals, dtype=np.uint64)[rng.integers(0, originals, count)]
        for _ in range(most):
            flipped = np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
            base = np.where(rng.random(count) < 0.6, base ^ flipped, base)
        halves.append(base)
    return halves[0], halves[1]


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 120),
    originals=st.integers(1, 8),
    distance=st.integers(0, 12),
    grouped=st.booleans(),
    chunk=st.sampled_from([1, 7, 1 << 18]),
)
def test_the_search_finds_every_near_pair_and_no_other(
    seed: int, count: int, originals: int, distance: int, grouped: bool, chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    coarse, _ = draw_hashes(rng, count, originals, distance)
    fine = draw_hashes(rng, count, 1, distance // 2 + 1)[1]
    groups = rng.integers(0, 3, count) if grouped else None
    with mock.patch.multiple(near_search, _CHUNK=chunk, MOST_NEAR=count):
        found = near_pairs(coarse, fine, distance, groups=groups)
    assert found.pairs.tolist() == brute_force(coarse, fine, distance, groups)
    assert found.cut_short == 0


@pytest.mark.parametrize("blocks", [5, 6, 9])
def test_every_cut_into_blocks_misses_nothing(blocks: int) -> None:
    """The cut is chosen by cost; here each is forced."""
    rng = np.random.default_rng(blocks)
    coarse, _ = draw_hashes(rng, 200, 3, 4)
    fine = np.zeros(200, dtype=np.uint64)
    with (
        mock.patch.object(near_search, "_blocks_for", return_value=blocks),
        mock.patch.object(near_search, "MOST_NEAR", 200),
    ):
        assert near_pairs(coarse, fine, 4).pairs.tolist() == brute_force(coarse, fine, 4, None)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_in_a_crowd_of_lookalikes_it_is_counted_who_was_cut_short(chunk: int) -> None:
    coarse, alike, unlike = (np.zeros(50, dtype=np.uint64) for _ in range(3))
    unlike |= np.uint64(1) << np.arange(50, dtype=np.uint64)
    with mock.patch.multiple(near_search, BUCKET_REACH=10, MOST_NEAR=50, _CHUNK=chunk):
        assert len(near_pairs(coarse, unlike, 0).pairs) == 0
        reached = near_pairs(coarse, alike, 0)
    with mock.patch.multiple(near_search, MOST_NEAR=10, _CHUNK=chunk):
        full = near_pairs(coarse, alike, 0)
    for found in (reached, full):
        assert len(found.pairs) == sum(min(10, 49 - i) for i in range(50))
        assert found.cut_short == 39


@pytest.mark.parametrize(("distance", "group", "most"), [(4, 16e6, 150), (8, 10e3, 500), (8, 16e6, 5000)])
def test_at_16_million_a_hash_is_handled_far_less_often_than_there_are_hashes(
    distance: int, group: float, most: int
) -> None:
    """Sorted once a pass, and compared with what shares its bucket by chance; all pairs would be 8 million each."""
    masks = near_search._masks(distance, group)
    agreeing = min(int(mask).bit_count() for mask in masks)
    assert len(masks) * (1 + group / 2**agreeing / 2) < most
