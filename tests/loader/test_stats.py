"""Where the bottleneck is: the slow stage is named, in a time that passes only where a test says that work is done."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wv_loader import Failure, Loader, LoaderStats
from wv_loader.plan import EpochPlan
from wv_loader.stats import STAGES

Cost = tuple[float, float]
"""(seconds of the thread, seconds that pass for those who wait) a sample; of `plan` and `consumer` a batch."""


class WorkClock:
    """No thread's real speed is in it: who works sees the time that it worked; the consumer how long all of it took,
    and who waits for files how long these took. Stages work only while the consumer waits, and files are read only
    while somebody waits for them.
    """

    def __init__(self) -> None:
        self._consumer = threading.current_thread().name
        self._looks = 0
        self._changed = threading.Condition()
        self._own = threading.local()
        self._passed = self._reading = 0.0
        self._files_wanted = False

    def __call__(self) -> float:
        name = threading.current_thread().name
        with self._changed:
            if name == self._consumer:  # looks before and after it plans the epoch, and around each batch it has
                self._looks += 1
            if name == "wv-dispatch":  # looks before and after it waits for a batch's files
                self._files_wanted = not self._files_wanted
            self._changed.notify_all()
            if name == "wv-dispatch":
                return self._reading
            return self._passed if name == self._consumer else getattr(self._own, "worked", 0.0)

    def work(self, cost: Cost, times: int = 1) -> None:
        name = threading.current_thread().name
        with self._changed:
            if name != self._consumer:
                reading = name.startswith("wv-read")
                waiting = lambda: self._looks % 2 == 0 and (self._files_wanted or not reading)  # noqa: E731
                assert self._changed.wait_for(waiting, timeout=30)
                self._reading += cost[1] * times if reading else 0.0
            self._own.worked = getattr(self._own, "worked", 0.0) + cost[0] * times
            self._passed += cost[1] * times


@pytest.fixture
def epoch_stats(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoaderStats]:
    """The figures of an epoch of a loader whose stages cost what is said, through all its real threads."""

    def run(**costs: Cost) -> LoaderStats:
        near = {"prefetch": 1, "read_ahead_batches": 0, "read_ahead_bytes": 1}
        loader = Loader(small_dataset, batch_size=24, size_px=8, threads=1, window=24, **near)
        clock = WorkClock()
        plan, read, decode = EpochPlan.batch, loader.dataset.descriptor, loader.engine.decode
        free = (0.0, 0.0)

        def slow_plan(*arguments: Any) -> Any:
            clock.work(costs.get("plan", free))
            return plan(*arguments)

        def slow_read(shard: int) -> Any:
            clock.work(costs.get("read", free))
            return read(shard)

        def slow_decode(data: Any, *arguments: Any) -> Any:
            clock.work(costs.get("decode", free), sum(item is not None for item in data))
            return decode(data, *arguments)

        monkeypatch.setattr(EpochPlan, "batch", slow_plan)
        monkeypatch.setattr(loader.dataset, "descriptor", slow_read)
        monkeypatch.setattr(loader.engine, "decode", slow_decode)
        if "deliver" in costs:
            loader.transform = lambda _: clock.work(costs["deliver"])
        loader.stats.clock = clock
        for _ in loader:
            clock.work(costs.get("consumer", free))
        loader.close()
        return loader.stats

    return run


@pytest.mark.parametrize("stage", ["plan", "decode", "deliver", "consumer"])
def test_the_slow_stage_is_named(epoch_stats: Callable[..., LoaderStats], stage: str) -> None:
    stats = epoch_stats(**{stage: (1.0, 1.0)})
    assert stats.bottleneck == stage
    busy = dict.fromkeys(STAGES, 0.0) | ({stage: 1.0} if stage != "consumer" else {})
    assert stats.occupancy == pytest.approx(busy)
    assert (stats.wait_fraction > 0) == (stage != "consumer")
    assert f"slow stage: {stage} " in str(stats)


def test_slow_reads_are_named_by_how_late_they_are(epoch_stats: Callable[..., LoaderStats]) -> None:
    stats = epoch_stats(read=(1.0, 1.0))
    assert stats.bottleneck == "read"
    assert stats.occupancy == pytest.approx({**dict.fromkeys(STAGES, 0.0), "read": 1.0})


def test_many_readers_that_are_never_late_are_not_blamed_for_a_busy_decoder() -> None:
    """Sixteen threads that wait for a slow disk ahead of time have more seconds in sum than two busy decoders."""
    stats = LoaderStats(threads={"plan": 1, "read": 1, "decode": 2, "deliver": 1})
    stats.add_wait(60.0)
    stats.add_work(40.0)
    stats.add_read(1_200.0, 1)
    stats.add_late(3.0)
    stats.add_decode(190.0)
    assert stats.occupancy == pytest.approx({"plan": 0.0, "read": 0.03, "decode": 0.95, "deliver": 0.0})
    assert stats.bottleneck == "decode"
    assert "more threads" in stats.advice


def test_a_consumer_that_hardly_waits_is_the_slow_stage_however_busy_the_others_are() -> None:
    stats = LoaderStats(decode_seconds_total=99.0, decode_capacity_seconds_total=100.0)
    stats.wait_seconds_total, stats.busy_seconds_total = 1.9, 98.1
    assert stats.bottleneck == "consumer"
    assert "keeps up" in str(stats)
    stats.wait_seconds_total, stats.busy_seconds_total = 2.1, 97.9
    assert stats.bottleneck == "decode"


def test_a_first_batch_that_is_waited_for_does_not_make_the_loader_slow() -> None:
    stats = LoaderStats()
    stats.add_wait(3.0, first=True)
    stats.add_decode(2.9)
    for _ in range(9):
        stats.add_work(1.0)
        stats.add_wait(0.001)
    assert stats.wait_fraction > 0.2
    assert stats.bottleneck == "consumer"
    assert "keeps up, but for the first batch" in str(stats)


def test_where_everybody_waits_no_stage_is_blamed_and_more_batches_under_way_are_advised() -> None:
    stats = LoaderStats(batches=1, wait_seconds_total=5.0, busy_seconds_total=5.0)
    stats.plan_seconds_total, stats.plan_capacity_seconds_total = 0.7, 10.0
    stats.decode_seconds_total, stats.decode_capacity_seconds_total = 4.9, 10.0
    assert stats.bottleneck == stats.as_dict()["bottleneck"] == "none"
    assert "; no stage stands out (plan busy 7%" in str(stats)
    assert "more batches under way" in str(stats)
    stats.decode_seconds_total = 5.0
    assert "slow stage: decode" in str(stats)
    stats.read_late_seconds_total, stats.read_capacity_seconds_total = 9.0, 10.0
    assert stats.bottleneck == "read"
    assert "a faster disk" in stats.advice


def test_before_anything_is_loaded_nobody_is_praised_or_blamed(small_dataset: Path) -> None:
    with Loader(small_dataset, batch_size=24, size_px=8, threads=1) as loader:
        assert str(loader.stats) == loader.stats.advice == "nothing was loaded yet"
        assert loader.stats.bottleneck == "none"
        next(iter(loader))
        assert "samples in" in str(loader.stats)


def test_a_consumer_that_waits_though_batches_lie_ready_is_not_the_loaders_fault() -> None:
    stats = LoaderStats(wait_seconds_total=1.0, busy_seconds_total=9.0, batches=10, ready_batches_total=10)
    assert stats.bottleneck == "consumer"
    assert "batches lay ready" in stats.advice
    stats.ready_batches_total = 9
    assert stats.bottleneck != "consumer"


def test_an_epochs_figures_are_what_was_added_since_its_start(small_dataset: Path) -> None:
    with Loader(small_dataset, batch_size=24, size_px=8, threads=1) as loader:
        parts = []
        for _ in range(3):
            before = loader.stats.snapshot()
            batches = len(list(loader))
            parts.append(loader.stats.since(before))
            assert parts[-1].batches == batches
            assert parts[-1].samples == loader.num_samples
            assert parts[-1].bytes == int(loader.dataset.index["size"].sum())
        whole, joined = loader.stats.as_dict(), LoaderStats.from_rows([part.as_row() for part in parts])
        assert joined.seconds == pytest.approx(loader.stats.seconds / 3)
        for name in ("batches", "samples", "bytes", "wait_seconds_total", "decode_seconds_total", "wait_fraction"):
            assert joined.as_dict()[name] == pytest.approx(whole[name]), name
        json.dumps(whole)


def test_ranks_are_added_up_before_anything_is_divided() -> None:
    """Three ranks on one busy disk outweigh a fourth that has little to do: a mean of their fractions would not."""
    ranks = [LoaderStats(samples=10, failures=Counter({"checksum": 1})) for _ in range(4)]
    for rank, stats in enumerate(ranks):
        stats.add_wait(3.0 if rank else 0.0)
        stats.add_work(1.0)
        stats.add_read(12.0, 100)
        stats.add_late(3.0 if rank else 0.1)
    whole = LoaderStats.from_rows([stats.as_row() for stats in ranks])
    assert whole.wait_fraction == pytest.approx(9 / 13)
    assert whole.occupancy["read"] == pytest.approx(9.1 / 13)
    assert whole.seconds == pytest.approx(13 / 4)
    assert (whole.samples, whole.bytes, whole.failures) == (40, 400, Counter({"checksum": 4}))
    assert "masked: 4 checksum" in str(whole)
    assert set(LoaderStats().failures) <= {str(failure) for failure in Failure}
