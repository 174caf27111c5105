"""What is read when: every stream's samples in the order of their showing, in time, within the memory allowed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_loader.parts import Parts, ReadAheadSize
from wv_loader.plan import EpochPlan, Layout, Plan, PlanOptions


def plan_of(samples: int, batch_size: int, window: int) -> EpochPlan:
    labels = (np.arange(samples) % 7).astype(np.int32)
    layout = Layout(
        labels=labels,
        sizes=np.full(samples, 1000, dtype=np.uint32),
        shard_starts=np.array([0, samples // 2, samples]),
        shard_bands=np.array([-1, -1]),
        num_classes=7,
    )
    return Plan(layout, PlanOptions(batch_size=batch_size, window=window)).epoch(2)


class Reader:
    """Follows a loop over some streams of an epoch, and keeps account of what is in memory."""

    def __init__(self, plan: EpochPlan, first_batch: int, longest: int, ranks: int = 1) -> None:
        self.plan = plan
        everything = range(plan.plan.options.resolved_streams)
        self.streams = everything[: len(everything) // ranks]  # of the first rank
        self.row_slots = [plan.plan.options.batch_size // len(everything)] * len(self.streams)
        self.parts = Parts(self.window_of, self.row_slots, first_batch=first_batch, part=longest)
        self.read: list[list[int]] = [[] for _ in self.row_slots]
        self.lengths: list[int] = []
        self.ends: list[list[int]] = [[] for _ in self.row_slots]
        """Of each row's parts, counted in samples from the first batch on."""

    def window_of(self, row: int, position: int) -> tuple[np.ndarray, int]:
        ordinals, first, _ = self.plan.window_of(self.streams[row], position)
        return ordinals, first

    def batch(self, number: int) -> int:
        """Samples that are read for a batch."""
        ordinals = self.plan.batch(number, self.streams)
        parts = self.parts.of(number, ordinals)
        for row, part in parts:
            self.read[row] += part.tolist()
            self.lengths.append(len(part))
            self.ends[row].append(len(self.read[row]))
        return sum(len(part) for _, part in parts)

    def held(self, batches: int) -> int:
        """Samples of all parts that are not shown to their end after some batches."""
        total = 0
        for ends, slots in zip(self.ends, self.row_slots, strict=True):
            shown = max((end for end in ends if end <= batches * slots), default=0)
            total += ends[-1] - shown
        return total


@given(
    samples=st.integers(1, 700),
    batch_size=st.sampled_from([1, 4, 12, 30]),
    window=st.sampled_from([1, 5, 32, 1024]),
    longest=st.sampled_from([1, 3, 16, 1024]),
    data=st.data(),
)
def test_parts_are_the_streams_in_order_and_each_comes_with_the_batch_that_needs_it(
    samples: int, batch_size: int, window: int, longest: int, data: st.DataObject
) -> None:
    plan = plan_of(samples, batch_size, window)
    first = data.draw(st.integers(0, plan.batches - 1))
    reader = Reader(plan, first, longest)
    shown: list[list[int]] = [[] for _ in reader.row_slots]
    for number in range(first, plan.batches):
        rows = plan.batch(number, reader.streams).reshape(len(reader.streams), -1)
        reader.batch(number)
        for row, ordinals in enumerate(rows):
            shown[row] += ordinals[ordinals >= 0].tolist()
            assert reader.read[row][: len(shown[row])] == shown[row]
    assert reader.read == shown
    assert max(reader.lengths) <= longest


def test_the_first_batch_waits_for_its_own_samples_and_no_batch_for_many() -> None:
    plan = plan_of(64 * 1024 * 4, 1024, 1024)
    for first in (0, 37):
        reader = Reader(plan, first, 1024)
        counts = [reader.batch(number) for number in range(first, plan.batches)]
        assert counts[0] == 1024
        assert max(counts) <= 6 * 1024
        assert max(reader.lengths) > 900  # in the end whole windows


@pytest.mark.parametrize("budget_mb", [3, 10, 40, 1000])
@pytest.mark.parametrize(("batch_size", "window"), [(64, 256), (128, 1024), (16, 256)])
@pytest.mark.parametrize("ranks", [1, 8])
def test_what_is_read_and_not_used_fits_into_the_budget(
    budget_mb: int, batch_size: int, window: int, ranks: int
) -> None:
    plan = plan_of(60_000, batch_size, window)
    streams = plan.plan.options.resolved_streams
    size = ReadAheadSize.within(
        budget_mb * 1_000_000,
        sample_bytes=1000.0,
        rows=streams // ranks,
        row_slots=batch_size // streams,
        window=window,
        lead=8,
        streams=streams,
    )
    assert 1 <= size.part <= window
    assert size.lead >= 8
    reader = Reader(plan, 0, size.part, ranks)
    peak = 0
    for number in range(plan.batches):
        reader.batch(number)
        peak = max(peak, reader.held(max(0, number - size.lead)))
    least = (size.lead + 2) * len(reader.streams) * (batch_size // streams)
    assert peak <= max(budget_mb * 1_000_000 / (1000 + 4096), least)
    if budget_mb == 1000:
        assert size.part == window


def test_a_small_budget_is_kept_to_the_batches_that_are_ahead_anyhow() -> None:
    size = ReadAheadSize.within(1, sample_bytes=1000.0, rows=4, row_slots=16, window=1024, lead=8, streams=64)
    assert size == ReadAheadSize(part=16, lead=8)
