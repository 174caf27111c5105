"""Slow and broken storage behind a whole loader: hidden by what is read ahead, or told to the consumer."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from wv_loader import Loader
from wv_shards import Dataset

BATCH = 24
WAIT_S = 30.0
"""After which a test that would hang fails."""


class SlowStorage(Dataset):
    """Shards that can't be opened before they are let go."""

    def prepare(self, hold: Callable[[int], bool], until_waiting: int | None = None) -> None:
        """Hold reads of some shards until `let_go`, or until so many wait at once."""
        self.hold, self.until_waiting = hold, until_waiting
        self.changed = threading.Condition()
        self.open_gate = False
        self.waiting: set[int] = set()

    def let_go(self) -> None:
        with self.changed:
            self.open_gate = True
            self.changed.notify_all()

    @contextmanager
    def descriptor(self, shard: int) -> Iterator[int]:
        if self.hold(shard):
            with self.changed:
                self.waiting.add(shard)
                if self.until_waiting is not None and len(self.waiting) >= self.until_waiting:
                    self.open_gate = True
                self.changed.notify_all()
                assert self.changed.wait_for(lambda: self.open_gate, WAIT_S), "nobody else came"
        with super().descriptor(shard) as descriptor:
            yield descriptor


@pytest.fixture(scope="module")
def shards(draw_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards, each of the samples of one batch of evaluation."""
    return draw_dataset(tmp_path_factory.mktemp("slow") / "shards", [10 * BATCH], shard_samples=BATCH)


@pytest.fixture
def evaluate(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Loader, SlowStorage]]:
    monkeypatch.setattr("wv_loader.loader.Dataset", SlowStorage)

    def make(**options: object) -> tuple[Loader, SlowStorage]:
        settings = {"batch_size": BATCH, "window": BATCH, "size_px": 16, "threads": 1, **options}
        loader = Loader(shards, train=False, **settings)  # type: ignore[arg-type]
        assert isinstance(loader.dataset, SlowStorage)
        return loader, loader.dataset

    return make


@pytest.mark.parametrize("lead", [0, 1, 4])
def test_as_many_reads_are_outstanding_as_batches_are_ahead(
    evaluate: Callable[..., tuple[Loader, SlowStorage]], lead: int
) -> None:
    loader, storage = evaluate(prefetch=2, read_ahead_batches=lead)
    ahead = 2 + max(lead, 2)  # two parts at least
    storage.prepare(lambda _: True, until_waiting=ahead)
    batches = iter(loader)
    next(batches)  # comes only if all of them are asked for before one is answered
    batches.close()  # type: ignore[attr-defined]
    assert storage.waiting <= set(range(ahead + 1))


def test_batches_that_are_read_come_while_the_storage_stands_still(
    evaluate: Callable[..., tuple[Loader, SlowStorage]],
) -> None:
    loader, storage = evaluate(prefetch=2, read_ahead_batches=4)
    storage.prepare(lambda shard: shard >= 6)
    got = []
    for batch in loader:
        got.append(batch)
        if len(got) == 6:
            with storage.changed:
                assert storage.changed.wait_for(lambda: storage.waiting >= {6, 7, 8, 9}, WAIT_S)
            storage.let_go()
    assert torch.cat([b.ordinals for b in got]).tolist() == list(range(10 * BATCH))
    assert all(b.valid.all() for b in got)


def test_an_exception_while_reading_reaches_the_consumer_at_its_batch_and_ends_all_threads(
    evaluate: Callable[..., tuple[Loader, SlowStorage]],
) -> None:
    loader, storage = evaluate()

    def explode(shard: int) -> bool:
        if shard == 3:
            raise RuntimeError("cable pulled")
        return False

    storage.prepare(explode)
    batches = iter(loader)
    assert [next(batches).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="cable pulled") as raised:
        next(batches)
    assert "in batch 3 of the loader" in raised.value.__notes__
    assert not [t for t in threading.enumerate() if t.name.startswith("wv-")]


def test_an_exception_while_planning_reaches_the_consumer_at_its_batch(
    evaluate: Callable[..., tuple[Loader, SlowStorage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, storage = evaluate()
    storage.prepare(lambda _: False)
    batch_of = loader._sequential.batch

    def explode(number: int, slots: range) -> object:
        if number == 2:
            raise RuntimeError("no plan survives")
        return batch_of(number, slots)

    monkeypatch.setattr(loader._sequential, "batch", explode)
    batches = iter(loader)
    assert [next(batches).index, next(batches).index] == [0, 1]
    with pytest.raises(RuntimeError, match="no plan survives") as raised:
        next(batches)
    assert raised.value.__notes__ == ["in batch 2 of the loader"]
    assert not [t for t in threading.enumerate() if t.name.startswith("wv-")]
