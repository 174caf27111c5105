"""An option that can't be is refused in one line, by name, with what was found; numbers of NumPy and torch are fine."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wv_loader import Augment, Loader, LoaderError, OptionError, StateMismatchError

NAN, INF = float("nan"), float("inf")
WRONG: dict[str, list[Any]] = {
    "batch_size": ["8", None, 2.5, 8.0, True, 0, -8, 2**40, [8], np.array([8])],
    "size_px": [3.5, 0, -1, 20_000, "32", None],
    "seed": [1.5, -1, 2**63, None],
    "balance": ["0.5", "01", None, {0.5}, [], [0.5, "1"], -0.1, 1.1, NAN, [0.5, True], True, b"0", torch.zeros(2, 2)],
    "max_repeat": [0.5, 40_000, NAN, INF, "16", None],
    "streams": [2.0, 5, 0, "4"],
    "window": [2.5, 0, None, 10**30],
    "run_length": [0, 1.5],
    "train": ["no", None, 1],
    "exclude": [None, 3, [3]],
    "augment": [{}, Augment],
    "crop_position": [None, 0.5, (0.5,), (0.5, 1.1), (-0.1, 0.5), (NAN, 0.5), ("0", 0), (True, 0.5)],
    "transform": [3],
    "device": [3.5, "warp"],
    "rank": ["0", -1],
    "threads": [-1, 0, "2", 1.5],
    "processes": [-1, 1.0, None, True],
    "prefetch": [-3, 0, 1.5, None],
    "read_ahead_batches": [-1, 2.5, None],
    "read_ahead_bytes": [-1, 1.5, "1G"],
    "bad_budget": [NAN, True, -1, -0.1, 1.5, "0.5"],
    "quarantine": [3],
}
WRONG_EFFECTS: dict[str, list[Any]] = {
    "crop_scale": [0.5, (0.5,), (0.0, 1.0), (NAN, 1.0)],
    "crop_ratio": [(1, INF), (1, NAN), (0, 1), 1.0, ("1", "2")],
    "flip": ["0.5", NAN, True],
    "hue": [None],
    "brightness": [INF, "1"],
    "randaugment_operations": [2.5, True, 10**6],
    "randaugment_magnitude": [9.0],
    "erase_color": [(1, 2), (1, 2, 3, 4), 124, (1.5, 2, 3), "abc"],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}-{value!r}") for name, values in table.items() for value in values]


def loading(directory: Any, **options: Any) -> Loader:
    return Loader(directory, **{"batch_size": 24, "size_px": 8, "threads": 1, **options})


@pytest.mark.parametrize(("name", "value"), cases(WRONG))
def test_an_option_that_cannot_be_is_refused_by_name(small_dataset: Path, name: str, value: Any) -> None:
    others = {"world_size": 2} if name == "rank" else {}
    with pytest.raises(OptionError, match=rf"^{name}\b") as raised:
        loading(small_dataset, **{name: value}, **others)
    assert isinstance(raised.value, LoaderError)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(("name", "value"), cases(WRONG_EFFECTS))
def test_an_effect_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=rf"^{name}\b"):
        Augment(**{name: value})


@pytest.mark.parametrize("directory", [None, 3])
def test_a_folder_that_is_none_is_refused_by_name(directory: Any) -> None:
    with pytest.raises(OptionError, match=r"^directory: expected a path, got"):
        loading(directory)


def test_numbers_of_numpy_and_torch_are_those_numbers(small_dataset: Path) -> None:
    options: dict[str, Any] = {
        "batch_size": np.int64(24),
        "size_px": np.int32(8),
        "seed": np.uint64(3),
        "balance": torch.tensor(0.5),
        "max_repeat": 16,
        "streams": torch.tensor(4),
        "threads": np.int8(1),
        "train": np.bool_(True),
        "bad_budget": np.float32(0.5),
        "augment": Augment(crop_scale=[0.5, np.float32(1)], flip=1, erase_color=np.array([1, 2, 3])),  # type: ignore[arg-type, list-item]
    }
    with loading(small_dataset, **options) as odd:
        state = odd.state_dict()
        assert odd.augment == Augment(crop_scale=(0.5, 1.0), flip=1.0, erase_color=(1, 2, 3))
        first = next(iter(odd))
    plain: dict[str, Any] = {"seed": 3, "balance": 0.5, "streams": 4, "augment": odd.augment}
    with loading(small_dataset, **plain) as loader:
        loader.load_state_dict(state)
        assert torch.equal(next(iter(loader)).images, first.images)
    for balance in ([1.0, 0.5], np.array([1.0, 0.5]), torch.tensor([1.0, 0.5])):
        assert loading(small_dataset, balance=balance).options.balance == (1.0, 0.5)


def test_one_excluded_path_is_one_path_and_not_its_letters(small_dataset: Path, tmp_path: Path) -> None:
    for exclude in (str(tmp_path / "none"), tmp_path / "none"):
        with pytest.raises(Exception, match=f"{tmp_path.name}/none"):
            loading(small_dataset, exclude=exclude)


@pytest.mark.parametrize("epoch", [1.5, -1, "1", None, True, 10**30])
def test_an_epoch_that_cannot_be_is_refused(small_dataset: Path, epoch: Any) -> None:
    with loading(small_dataset) as loader:
        with pytest.raises(OptionError, match=r"^epoch: expected a whole number from 0 to \d+, got"):
            loader.set_epoch(epoch)
        with pytest.raises(StateMismatchError, match="epoch"):
            loader.load_state_dict({**loader.state_dict(), "epoch": epoch})
        assert loader.state_dict()["epoch"] == 0


@pytest.mark.parametrize("max_repeat", [1.0, 16.0, 32768.0])
def test_the_last_epoch_that_may_be_can_be_planned(small_dataset: Path, max_repeat: float) -> None:
    with loading(small_dataset, max_repeat=max_repeat, balance=0.0) as loader:
        loader.set_epoch(loader.options.last_epoch)
        assert loader.epoch_samples == pytest.approx(loader.num_samples, rel=0.2)
        visits = (loader.options.last_epoch + 1) * int(max_repeat * 2**32) + 2**32 - 1  # as the plan counts them
        assert 2**62 < visits < 2**63


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ({"batch_size": 97, "processes": 2}, ["batch_size=96", "streams=97"]),
        ({"batch_size": 24, "processes": 2, "streams": 1}, ["streams=2"]),
        ({"batch_size": 24, "processes": 5, "streams": 1}, ["streams=6"]),
        ({"batch_size": 22, "processes": 12, "rank": 0, "world_size": 2}, ["batch_size=24"]),
        ({"batch_size": 100, "processes": 30, "rank": 1, "world_size": 2}, ["batch_size=120", "streams=100"]),
        ({"batch_size": 22, "processes": 100}, []),
    ],
)
def test_where_the_batch_size_gives_too_few_streams_it_is_named_and_what_is_proposed_works(
    small_dataset: Path, options: dict[str, int], choices: list[str]
) -> None:
    with pytest.raises(LoaderError, match=f"batch_size {options['batch_size']} is read as") as raised:
        loading(small_dataset, **options)
    found = re.findall(r"(batch_size|streams)=(\d+)", str(raised.value))
    assert [f"{name}={value}" for name, value in found] == choices
    for name, value in found:
        loading(small_dataset, **{**options, name: int(value)}).close()
