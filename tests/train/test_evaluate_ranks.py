"""Evaluation over ranks: every sample once, the same numbers for any number of ranks; samples that can't be shown."""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from wv_shards import Dataset
from wv_train import trained
from wv_train.checkpoint import Checkpoint
from wv_train.cli_eval import command
from wv_train.crops import crop_positions
from wv_train.distributed import World
from wv_train.errors import CheckpointError, TrainError
from wv_train.evaluation import EvalConfig, evaluate_ensemble, evaluate_run, open_lockstep
from wv_train.gather import gather_rows
from wv_train.lockstep import ValidationData
from wv_train.trained import load_trained

CPU = torch.device("cpu")


class Meeting:
    """Where ranks that are threads of one process exchange tensors."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60)
        self._slots: list[Tensor] = [torch.zeros(0)] * size

    def exchange(self, rank: int, tensor: Tensor) -> Tensor:
        self._slots[rank] = tensor
        self._barrier.wait()
        joined = torch.stack(self._slots)  # ranks with other shapes fail here
        self._barrier.wait()
        return joined


@dataclass(frozen=True, kw_only=True)
class ThreadWorld(World):
    """A rank that is a thread."""

    meeting: Meeting

    def all_gather(self, rows: Tensor) -> Tensor:
        return self.meeting.exchange(self.rank, rows)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        return values.copy_(self.meeting.exchange(self.rank, values.clone()).sum(dim=0))


def on_ranks(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What each of some ranks gets."""
    meeting = Meeting(size)
    worlds = [ThreadWorld(rank=rank, size=size, device=CPU, meeting=meeting) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(work, world) for world in worlds]]


def assert_alike(one: Any, other: Any, path: str = "") -> None:
    """Counts are equal, numbers that were divided or summed in another order nearly so."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one.keys() - {"world_size"}:
            assert_alike(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_alike(a, b, f"{path}[{i}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5), path
    else:
        assert one == other, path


def damage(shards: Path, ordinals: list[int]) -> list[str]:
    """Flip a byte of some samples; their keys."""
    with Dataset.open(shards) as dataset:
        for ordinal in ordinals:
            path = dataset.shard_path(int(dataset.shard_of(ordinal)))
            with path.open("r+b") as file:
                file.seek(int(dataset.index[ordinal]["offset"]) + 30)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 255]))
        return dataset.keys(ordinals)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, draw_dataset: Callable[..., Path]) -> tuple[Path, list[str]]:
    """61 samples, three of which are not what was written."""
    shards = draw_dataset(tmp_path_factory.mktemp("damaged") / "shards", [11] + [10] * 5, seed=6)
    return shards, damage(shards, [3, 30, 57])


def test_rows_of_ranks_are_joined_in_order_whatever_their_numbers() -> None:
    def work(world: World) -> Tensor:
        return gather_rows(world, torch.full((2 * world.rank, 3), world.rank, dtype=torch.int64))

    for joined in on_ranks(3, work):
        assert joined[:, 0].tolist() == [1, 1, 2, 2, 2, 2]


def test_two_ranks_count_what_one_counts_and_every_sample_once(
    two_runs: tuple[Path, Path], damaged: tuple[Path, list[str]]
) -> None:
    shards, keys = damaged
    config = EvalConfig(data=ValidationData(shards=shards, loader_threads=1, batch_size=8), positions=crop_positions(5))

    def work(world: World) -> dict[str, Any]:
        one = load_trained(two_runs[0], checkpoint="last", weights="auto", device=CPU)
        with open_lockstep([one], config, world) as shown:
            return evaluate_run(one, config, shown, world)

    alone, *others = on_ranks(1, work) + on_ranks(2, work)
    assert alone["invalid"] == {"samples": 3, "keys": keys}
    assert alone["samples"] == sum(row["samples"] for row in alone["per_class"]) == 58
    assert sum(row["samples"] for row in alone["calibration"]) == 58
    wrong = sum(row["samples"] for row in alone["most_confused"])
    assert wrong == alone["mistakes"] == 58 - round(58 * alone["top1"])
    assert sum(group["classes"] for group in alone["count_groups"]) == 6
    assert alone["crops"]["positions"][0]["top1"] == alone["top1"]
    assert len({row["top1"] for row in alone["crops"]["positions"]} | {alone["crops"]["averaged"]["loss"]}) > 1
    for other in others:
        assert other["world_size"] == 2
        assert_alike(alone, other)


def test_weights_fitted_on_two_ranks_are_those_of_one(
    two_runs: tuple[Path, Path], damaged: tuple[Path, list[str]]
) -> None:
    config = EvalConfig(data=ValidationData(shards=damaged[0], loader_threads=1, batch_size=8))

    def work(world: World) -> dict[str, Any]:
        members = [load_trained(run, checkpoint="last", weights="auto", device=CPU) for run in two_runs]
        with open_lockstep(members, config, world) as shown:
            return evaluate_ensemble(members, np.array([0.25, 0.75]), config, shown, world, fit=True)

    alone, *others = on_ranks(1, work) + on_ranks(2, work)
    assert [row["weights_from"] for row in alone["mixtures"]] == ["fitted", "given", "equal"]
    assert alone["fit"]["samples"] + alone["samples"] == 58
    assert alone["invalid"]["samples"] == 3
    for result in (alone, *others):
        result["fit"]["iterations"] = 0  # of sums in another order
        result["fit"]["gap"] = 0.0
        for row in (*result["members"], *result["mixtures"]):  # weights as exact as the gap makes them
            row.pop("weight", None)
            row.pop("weights", None)
    for other in others:
        assert_alike(alone, other)


def test_two_processes_give_the_numbers_of_one(
    two_runs: tuple[Path, Path],
    damaged: tuple[Path, list[str]],
    tmp_path: Path,
    start_ranks: Callable[..., list[BaseProcess]],
) -> None:
    options = ["-r", str(two_runs[1]), "--shards", str(damaged[0]), "--device", "cpu", "--loader-threads", "1"]
    done = CliRunner().invoke(command, [*options, "--json", str(tmp_path / "one.json")])
    assert done.exit_code == 0, done.output
    main = "from wv_train.cli_eval import main\nmain()\n"
    ranks = start_ranks(2, main, *options, "--json", tmp_path / "two.json", stderr=tmp_path / "stderr")
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0], (tmp_path / "stderr").read_text()
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert_alike(one, two)


def test_a_checkpoint_may_be_any_file_of_the_run_and_no_other_run_s(
    two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = two_runs
    kept = tmp_path / "kept.pt"
    kept.write_bytes((a / "checkpoints" / "last.pt").read_bytes())
    for checkpoint in ("last", "last.pt", str(kept)):
        assert load_trained(a, checkpoint=checkpoint, weights="model", device=CPU).step == 15
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_trained(a, checkpoint="none.pt", weights="auto", device=CPU)
    with pytest.raises(CheckpointError, match=f"a checkpoint of another run than {a}: model is "):
        load_trained(a, checkpoint=str(b / "checkpoints" / "last.pt"), weights="auto", device=CPU)
    state = torch.load(kept, weights_only=True)
    torch.save(state | {"manifest_digest": "0" * 32}, kept)
    with pytest.raises(CheckpointError, match="trained on other data"):
        load_trained(a, checkpoint=str(kept), weights="auto", device=CPU)
    with pytest.raises(CheckpointError, match="no moving average"):
        load_trained(a, checkpoint="last", weights="ema", device=CPU)


def test_auto_takes_the_moving_average_where_there_is_one(
    two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Any:
        """A checkpoint whose average is the weights, doubled; it has no buffers."""
        state = Checkpoint.load(path)
        values = {item.name: getattr(state, item.name) for item in fields(state)}
        average = {name: 2 * value for name, value in state.model.items() if "running" not in name}
        return SimpleNamespace(**values | {"ema": average})

    plain = load_trained(two_runs[0], checkpoint="last", weights="model", device=CPU)
    monkeypatch.setattr(trained, "Checkpoint", SimpleNamespace(load=load))
    for weights, taken, factor in (("auto", "ema", 2), ("ema", "ema", 2), ("model", "model", 1)):
        one = load_trained(two_runs[0], checkpoint="last", weights=weights, device=CPU)  # type: ignore[arg-type]
        assert one.weights == taken
        for (name, value), expected in zip(
            one.model.state_dict().items(), plain.model.state_dict().values(), strict=True
        ):
            assert torch.equal(value, expected if "running" in name else factor * expected), name


def test_weights_that_give_nan_are_refused(two_runs: tuple[Path, Path], val_dataset: Path, tmp_path: Path) -> None:
    state = torch.load(two_runs[0] / "checkpoints" / "last.pt", weights_only=True)
    name = next(name for name, value in state["model"].items() if value.is_floating_point())
    state["model"][name].fill_(float("nan"))
    torch.save(state, tmp_path / "broken.pt")
    arguments = ["--run", str(two_runs[0]), "--checkpoint", str(tmp_path / "broken.pt"), "--shards", str(val_dataset)]
    done = CliRunner().invoke(command, [*arguments, "--device", "cpu", "--json", str(tmp_path / "out.json")])
    assert isinstance(done.exception, TrainError)
    assert "are NaN or infinite" in str(done.exception)
    assert not (tmp_path / "out.json").exists()
