"""Runs: what a shard is cut into, and how their phases are spread."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_loader.rates import ONE
from wv_loader.runs import MAX_RUN_BYTES, Layout, Runs


def layout_of(shards: list[list[int]], bands: list[int]) -> Layout:
    """Shards of samples of the sizes given, all of one class."""
    sizes = [size for shard in shards for size in shard]
    return Layout(
        labels=np.zeros(len(sizes), dtype=np.int32),
        sizes=np.array(sizes, dtype=np.uint32),
        shard_starts=np.cumsum([0, *map(len, shards)]),
        shard_bands=np.array(bands),
        num_classes=1,
    )


SHARDS = st.lists(st.lists(st.integers(1, MAX_RUN_BYTES + 5_000_000), max_size=40), min_size=1, max_size=6).filter(any)


@given(SHARDS, st.integers(1, 50))
def test_a_run_lies_in_one_shard_and_is_short_in_samples_and_bytes(shards: list[list[int]], length: int) -> None:
    layout = layout_of(shards, list(range(len(shards))))
    runs = Runs(layout, length=length, seed=0)
    assert runs.starts[0] == 0
    assert runs.starts[-1] == len(layout.labels)
    assert set(layout.shard_starts.tolist()) <= set(runs.starts.tolist())
    ends = np.concatenate([[0], np.cumsum(layout.sizes, dtype=np.int64)])
    for first, last, band in zip(runs.starts[:-1], runs.starts[1:], runs.bands, strict=True):
        assert 1 <= last - first <= length
        assert ends[last] - ends[first] <= MAX_RUN_BYTES or last - first == 1
        assert layout.shard_starts[band] <= first < last <= layout.shard_starts[band + 1]


@pytest.mark.parametrize(("samples", "length"), [(1, 1), (1_000, 1), (20_000, 4), (2_000_000, 256)])
def test_small_sets_are_sampled_by_single_images_and_large_ones_by_runs(samples: int, length: int) -> None:
    assert Runs(layout_of([[9] * samples], [0]), length=None, seed=0).length == length


def test_what_is_excluded_does_not_count_for_the_length() -> None:
    layout = layout_of([[9] * 20_000], [0])
    excluded = np.arange(20_000) % 2 == 0
    half = replace(layout, excluded=excluded)
    assert Runs(half, length=None, seed=0).length == 2
    assert Runs(half, length=None, seed=0).class_counts.tolist() == [10_000]


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=60), st.integers(0, 2**63 - 1))
def test_the_phases_of_a_band_are_spread_evenly_in_an_order_of_their_own(bands: list[int], seed: int) -> None:
    runs = Runs(layout_of([[9] for _ in bands], bands), length=1, seed=seed)
    for band in set(bands):
        phases = np.sort(runs.phases[runs.bands == band])
        assert 0 <= phases[0] <= phases[-1] < ONE
        assert (np.abs(np.diff(phases) - ONE / len(phases)) <= 1).all()


def test_phases_do_not_follow_the_order_of_the_shards() -> None:
    runs = Runs(layout_of([[9]] * 500, [4] * 500), length=1, seed=1)
    other = Runs(layout_of([[9]] * 500, [4] * 500), length=1, seed=2)
    assert abs(np.corrcoef(runs.phases, np.arange(500))[0, 1]) < 0.2
    assert abs(np.corrcoef(runs.phases, other.phases)[0, 1]) < 0.2


def test_nothing_to_show_is_refused() -> None:
    layout = layout_of([[9, 9]], [0])
    everything = replace(layout, excluded=np.ones(2, bool))
    with pytest.raises(ValueError, match="no sample is left to show: the data set is empty, or everything in it is ex"):
        Runs(everything, length=None, seed=0)
