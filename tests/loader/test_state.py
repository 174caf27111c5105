"""A state is a few integers: what it continues, on how many ranks, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wv_loader import Batch, Loader, LoaderError, StateMismatchError
from wv_shards import Overlay

Make = Callable[..., Loader]


@pytest.fixture
def make(small_dataset: Path) -> Make:
    """Loaders of eight streams."""
    options = {
        "batch_size": 24,
        "size_px": 8,
        "seed": 3,
        "threads": 1,
        "streams": 8,
        "balance": (0.3, 0.8),
        "prefetch": 1,
    }

    def make_loader(directory: Path = small_dataset, **changed: Any) -> Loader:
        return Loader(directory, **{**options, **changed})

    return make_loader


def states_of(loader: Loader, epochs: int) -> tuple[list[dict[str, Any]], list[Batch]]:
    """The state before each batch of some epochs, through JSON, and the batches."""
    states, batches = [], []
    for _ in range(epochs):
        state = loader.state_dict()
        for batch in loader:
            states.append(json.loads(json.dumps(state)))
            batches.append(batch)
            state = loader.state_dict()
    return states, batches


def following(
    make: Make, state: dict[str, Any], count: int, world_size: int
) -> tuple[list[Batch], list[dict[str, Any]]]:
    """The next `count` batches after a state, joined over ranks, crossing epochs; and every rank's state after them."""
    parts, states = [], []
    for rank in range(world_size):
        loader = make(rank=rank, world_size=world_size)
        loader.load_state_dict(state)
        parts.append([])
        while len(parts[-1]) < count:
            for batch in loader:
                parts[-1].append(batch)
                if len(parts[-1]) == count:
                    states.append(json.loads(json.dumps(loader.state_dict())))
                    break
    return [join(part) for part in zip(*parts, strict=True)], states


def join(parts: tuple[Batch, ...]) -> Batch:
    names = ("images", "labels", "ordinals", "valid")
    return Batch(**{n: torch.cat([getattr(p, n) for p in parts]) for n in names}, index=parts[0].index)


def same(a: Batch, b: Batch) -> bool:
    names = ("images", "labels", "ordinals", "valid")
    return a.index == b.index and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_stopped_at_any_batch_eight_ranks_become_two_then_four_and_three_are_refused(make: Make) -> None:
    states, expected = states_of(make(), epochs=3)
    on_eight, _ = states_of(make(rank=5, world_size=8), epochs=3)
    assert on_eight == states  # a state knows nothing of ranks
    for stop in range(len(expected) - 3):
        two, after_two = following(make, states[stop], 2, world_size=2)
        assert all(state == states[stop + 2] or epoch_turned(state, states[stop + 2]) for state in after_two)
        with pytest.raises(LoaderError, match="3 ranks can't share 8 streams evenly: choose 1, 2, 4 or 8 ranks"):
            make(rank=0, world_size=3)
        four, _ = following(make, after_two[1], 1, world_size=4)
        assert all(same(a, b) for a, b in zip([*two, *four], expected[stop : stop + 3], strict=True))


def epoch_turned(state: dict[str, Any], next_epoch: dict[str, Any]) -> bool:
    """Whether a state stands behind the last batch of an epoch and the other before the first of the next."""
    return next_epoch["batches"] == 0 and state["epoch"] + 1 == next_epoch["epoch"]


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"seed": 4}, ["seed was 3, is 4"]),
        ({"batch_size": 48}, ["batch_size was 24, is 48"]),
        ({"batch_size": 48, "streams": 16}, ["batch_size was 24, is 48", "streams was 8, is 16"]),
        ({"streams": 12}, ["streams was 8, is 12"]),
        ({"balance": 0.3}, [r"balance was \[0.3, 0.8\], is \[0.3\]"]),
        ({"balance": (0.3, 0.7)}, [r"balance was \[0.3, 0.8\], is \[0.3, 0.7\]"]),
        ({"window": 10}, ["window was 1024, is 10"]),
        ({"run_length": 9}, ["run_length was 1, is 9"]),
        ({"max_repeat": 2}, ["max_repeat was 16.0, is 2.0"]),
        ({"train": False}, ["train was True, is False"]),
    ],
)
def test_a_state_of_another_plan_is_refused_by_name(make: Make, changed: dict[str, Any], names: list[str]) -> None:
    state = make().state_dict()
    loader = make(**changed)
    before = loader.state_dict()
    with pytest.raises(StateMismatchError, match=r"belongs to another plan: " + "; ".join(names) + "; use the same"):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


def test_a_state_of_another_data_set_or_other_exclusions_is_refused_by_name(
    make: Make, draw_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    loader = make()
    with pytest.raises(StateMismatchError, match="another plan: manifest_digest was"):
        make(draw_dataset(tmp_path / "other", [120, 61, 30, 17, 8, 3], seed=1)).load_state_dict(loader.state_dict())
    gone = np.zeros(loader.num_samples, dtype=bool)
    gone[5] = True
    Overlay(kind="exclude", array=gone, manifest_digest=loader.manifest_digest).save(tmp_path / "gone")
    without = make(exclude=[tmp_path / "gone"])
    with pytest.raises(StateMismatchError, match="another plan: exclusions was ''"):
        without.load_state_dict(loader.state_dict())
    with pytest.raises(StateMismatchError, match=r"another plan: exclusions was '[0-9a-f]{32}', is ''"):
        loader.load_state_dict(without.state_dict())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: {**state, "version": 99}, "version 99"),
        (lambda _: {}, "not a state"),
        (lambda _: [1, 2], "not a state"),
        (lambda state: {**state, "plan": None}, "not a state"),
        (lambda state: {**state, "plan": {**state["plan"], "plan_version": 0}}, "plan_version was 0"),
        (lambda state: {**state, "plan": {**state["plan"], "colour": 1}}, "colour was 1, is None"),
        (lambda state: {**state, "epoch": -1}, "epoch -1"),
        (lambda state: {**state, "batches": "7"}, "batches '7'"),
        (lambda state: {k: v for k, v in state.items() if k != "batches"}, "batches None"),
        (lambda state: {**state, "batches": 1000}, r"batch 1000 of epoch 0, which has \d+"),
    ],
)
def test_a_damaged_state_is_refused_in_one_line(make: Make, damage: Callable[[Any], Any], message: str) -> None:
    loader = make()
    with pytest.raises(StateMismatchError, match=message) as raised:
        loader.load_state_dict(damage(loader.state_dict()))
    assert "\n" not in str(raised.value)


def test_run_lengths_that_cut_the_same_runs_are_one_plan(make: Make) -> None:
    make(run_length=1).load_state_dict(make(run_length=None).state_dict())


def test_a_state_is_a_few_integers_and_digests(make: Make) -> None:
    state = make().state_dict()
    assert len(json.dumps(state)) < 500
    assert {type(value) for value in state.values()} == {int, dict}


def test_every_rank_has_as_many_batches_as_len_says_in_every_epoch(make: Make) -> None:
    loaders = [make(rank=rank, world_size=8) for rank in range(8)]
    for epoch in range(3):
        for loader in loaders:
            loader.set_epoch(epoch)
        said = {len(loader) for loader in loaders}
        assert said == {sum(1 for _ in loader) for loader in loaders}
        assert len(said) == 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8, 12, 24])
def test_evaluation_shows_every_sample_once_on_every_world_size(make: Make, world_size: int) -> None:
    loaders = [make(train=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [join(parts) for parts in zip(*(list(loader) for loader in loaders), strict=True)]
    assert {len(loader) for loader in loaders} == {len(batches)}
    shown = torch.cat([batch.ordinals for batch in batches])
    valid = torch.cat([batch.valid for batch in batches])
    samples = loaders[0].num_samples
    assert shown[:samples].tolist() == list(range(samples))
    assert valid.tolist() == [True] * samples + [False] * (len(batches) * 24 - samples)
    assert (shown[samples:] == -1).all()
    assert not batches[-1].images[~batches[-1].valid].any()
