"""Reading: neighbours as one extent, every sample checked, and exactly what is broken is lost."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_loader import read
from wv_loader.read import Extents, Failure, read_samples
from wv_shards import Dataset


class CountingReads:
    """Stands in for `os.preadv`: counts, and fails like a disk with a bad sector."""

    def __init__(self, bad: tuple[int, int] | None = None) -> None:
        self.sizes: list[int] = []
        self._bad = bad
        self._preadv = os.preadv

    def __call__(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        size = len(buffers[0])
        self.sizes.append(size)
        if self._bad is not None and offset < self._bad[1] and self._bad[0] < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._preadv(descriptor, buffers, offset)


@pytest.fixture(scope="module")
def shards(draw_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 40 samples."""
    return draw_dataset(tmp_path_factory.mktemp("read") / "shards", [60, 60], shard_samples=40)


@given(picks=st.lists(st.integers(-1, 119), max_size=60))
def test_every_order_of_samples_gives_what_single_reads_give(shards: Path, picks: list[int]) -> None:
    with Dataset.open(shards) as dataset:
        samples = read_samples(dataset, np.array(picks, dtype=np.int64))
        assert [None if s is None else bytes(s) for s in samples] == [
            None if ordinal < 0 else dataset.read(ordinal) for ordinal in picks
        ]


def test_neighbours_are_one_read_and_strangers_are_not(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Dataset.open(shards) as dataset:
        whole = np.arange(40)
        reads = CountingReads()
        monkeypatch.setattr(os, "preadv", reads)
        read_samples(dataset, np.random.default_rng(1).permutation(whole))
        assert len(reads.sizes) == 1
        read_samples(dataset, np.array([0, 40, 41]))  # of two shards
        assert len(reads.sizes) == 3
        monkeypatch.setattr(read, "MAX_GAP_BYTES", 0)
        assert len(Extents(dataset, whole)) == len(whole)
        monkeypatch.setattr(read, "MAX_GAP_BYTES", 1 << 40)
        assert len(Extents(dataset, whole[[0, -1]])) == 1


def test_an_extent_ends_at_its_limit(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Dataset.open(shards) as dataset:
        whole = np.arange(40)
        largest = int(dataset.index["size"].max())
        monkeypatch.setattr(read, "MAX_EXTENT_BYTES", 10_000)
        extents = Extents(dataset, whole)
        assert len(extents) > 3
        assert extents.sizes.max() <= 10_000 + largest
        assert all(bytes(s) == dataset.read(i) for s, i in zip(read_samples(dataset, whole), whole, strict=True))


def test_a_bad_sector_costs_the_samples_that_lie_on_it(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Dataset.open(shards) as dataset:
        ordinals = np.arange(40, 60)
        start, stop = (int(dataset.index[int(ordinals[i])]["offset"]) for i in (5, 7))
        monkeypatch.setattr(os, "preadv", CountingReads(bad=(start + 10, stop + 1)))
        samples = read_samples(dataset, ordinals)
    assert [i for i, s in enumerate(samples) if s is Failure.IO_ERROR] == [5, 6, 7]
    assert all(isinstance(samples[i], memoryview) for i in (*range(5), *range(8, 20)))


def test_a_read_that_stops_early_is_continued(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Dataset.open(shards) as dataset:
        expected = [dataset.read(i) for i in range(5)]
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:100]], offset))
        assert [bytes(s) for s in read_samples(dataset, np.arange(5)) if isinstance(s, memoryview)] == expected


def shrink(path: Path, offset: int) -> None:
    os.truncate(path, offset + 1)


def overwrite(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 40)


def vanish(path: Path, offset: int) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("change", "reason", "lost"),
    [(shrink, Failure.SHORT_READ, [3, 4, 5]), (overwrite, Failure.CHECKSUM, [3]), (vanish, None, [])],
)
def test_a_file_that_changes_while_it_is_open_costs_what_changed(
    shards: Path,
    tmp_path: Path,
    change: Callable[[Path, int], None],
    reason: Failure | None,
    lost: list[int],
) -> None:
    with Dataset.open(shutil.copytree(shards, tmp_path / "copy")) as dataset:
        ordinals = np.arange(34, 40)
        read_samples(dataset, ordinals[:1])  # opens the shard
        change(dataset.shard_path(0), int(dataset.index[int(ordinals[3])]["offset"]))
        samples = read_samples(dataset, ordinals)
    assert [i for i, s in enumerate(samples) if isinstance(s, Failure)] == lost
    assert {s for s in samples if isinstance(s, Failure)} == ({reason} if reason else set())
