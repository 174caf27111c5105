"""One loop at a time: the position is that of the latest, and who goes on with an older one is told."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from wv_loader import Batch, Loader, LoaderError

ENDED = "this loop over the loader has been ended by another one, set_epoch, load_state_dict or close"


@pytest.fixture(params=[{}, {"processes": 2}, {"transform": lambda batch: batch}], ids=["threads", "processes", "hook"])
def make(small_dataset: Path, request: pytest.FixtureRequest) -> Callable[[], Loader]:
    return lambda: Loader(small_dataset, batch_size=24, size_px=8, seed=3, threads=2, **request.param)


@pytest.fixture
def expected(small_dataset: Path) -> list[list[int]]:
    """Ordinals by batch, of the first epoch."""
    with Loader(small_dataset, batch_size=24, size_px=8, seed=3, threads=2) as loader:
        return [batch.ordinals.tolist() for batch in loader]


def ordinals(batches: list[Batch]) -> list[list[int]]:
    return [batch.ordinals.tolist() for batch in batches]


def test_a_new_loop_goes_on_where_an_older_one_is_and_ends_it(
    make: Callable[[], Loader], expected: list[list[int]]
) -> None:
    with make() as loader:
        forgotten = iter(loader)
        got = [next(forgotten), next(forgotten)]
        newer = iter(loader)
        got.append(next(newer))
        with pytest.raises(LoaderError, match=ENDED):
            next(forgotten)
        assert loader.state_dict()["batches"] == 3
        got += newer  # which does not notice
        assert ordinals(got) == expected
        assert loader.state_dict()["epoch"] == 1
        assert list(newer) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wv-")]


def test_two_loops_in_step_are_refused_and_the_position_is_right(
    make: Callable[[], Loader], expected: list[list[int]]
) -> None:
    with make() as loader:
        got: list[Batch] = []
        with pytest.raises(LoaderError, match=ENDED):
            got.extend(itertools.chain.from_iterable(zip(loader, loader, strict=True)))
        assert ordinals(got) == expected[:2]
        assert ordinals(got + list(loader)) == expected


def test_a_loop_that_had_all_batches_ends_as_usual(make: Callable[[], Loader]) -> None:
    with make() as loader:
        done = iter(loader)
        for _ in range(len(loader)):
            next(done)
        assert next(iter(loader)).index == 0
        assert loader.state_dict()["epoch"] == 1
        assert list(done) == []
        assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (1, 1)


def test_who_moves_the_position_within_a_loop_ends_it(make: Callable[[], Loader]) -> None:
    with make() as loader:
        running = iter(loader)
        next(running)
        state = loader.state_dict()
        loader.set_epoch(3)
        assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (3, 0)
        with pytest.raises(LoaderError, match=ENDED):
            next(running)
        assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (3, 0)
        running = iter(loader)
        next(running)
        next(running)
        loader.load_state_dict(state)
        with pytest.raises(LoaderError, match=ENDED):
            next(running)
        assert loader.state_dict() == state
        running = iter(loader)
        assert next(running).index == 1
        loader.close()
        with pytest.raises(LoaderError, match=ENDED):
            next(running)
        assert next(iter(loader)).index == 2
