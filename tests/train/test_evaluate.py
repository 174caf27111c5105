"""Evaluation: the sums are right, whoever shares them; the run's own bands; one line for every mistake."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from wv_loader import EngineError, Loader
from wv_train.cli_eval import command
from wv_train.data import DataConfig, open_phase_loader, open_validation_loader
from wv_train.distributed import World
from wv_train.errors import ClassMismatchError
from wv_train.evaluate import ClassSums, evaluate
from wv_train.job import Job, run_job
from wv_train.recipe import recipe_from_table

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Believes the same of every image: class 0 most, then 1, 2, …"""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(-torch.arange(float(classes)))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_every_sample_counts_once_and_the_padding_not_at_all(small_dataset: Path) -> None:
    """239 samples in batches of 32: the last batch is padded."""
    model = Fixed(6).train()
    with Loader(small_dataset, batch_size=32, size_px=16, train=False, rank=0, world_size=1) as loader:
        counts = np.bincount(loader.labels, minlength=6)
        sums = evaluate(model, loader, World(rank=0, size=1, device=CPU))
    assert model.training
    assert sums.samples.tolist() == counts.tolist()
    assert sums.top1.tolist() == [counts[0], 0, 0, 0, 0, 0]
    assert sums.top5.tolist() == [*counts[:5].tolist(), 0]
    overall = sums.overall()
    assert overall["top1"] == counts[0] / 239
    assert overall["mean_class_top1"] == pytest.approx(1 / 6)
    losses = -torch.log_softmax(-torch.arange(6.0), 0).numpy()
    assert overall["loss"] == pytest.approx((losses * counts).sum() / 239, rel=1e-5)


def test_ranks_sums_add_up_to_the_whole(small_dataset: Path) -> None:
    model, sums = Fixed(6), []
    for rank, size in ((0, 1), (0, 4), (1, 4), (2, 4), (3, 4)):
        with Loader(small_dataset, batch_size=32, size_px=16, train=False, rank=rank, world_size=size) as loader:
            sums.append(evaluate(model, loader, World(rank=0, size=1, device=CPU)))
    parts = sum(part.samples for part in sums[1:])
    assert (parts == sums[0].samples).all()
    assert all(part.samples.sum() > 0 for part in sums)


def test_bands_and_classes_divide_sums_last() -> None:
    sums = ClassSums(
        samples=np.array([10.0, 30.0, 5.0, 0.0]),
        top1=np.array([5.0, 30.0, 0.0, 0.0]),
        top5=np.array([10.0, 30.0, 5.0, 0.0]),
        loss=np.zeros(4),
    )
    assert sums.by_band([4, 4, 2, None]) == [
        {"band": None, "classes": 1, "samples": 0, "top1": None},
        {"band": 2, "classes": 1, "samples": 5, "top1": 0.0},
        {"band": 4, "classes": 2, "samples": 40, "top1": 35 / 40},
    ]
    assert [row["top1"] for row in sums.by_class(["a", "b", "c", "d"])] == [0.5, 1.0, 0.0, None]
    assert sums.overall()["mean_class_top1"] == pytest.approx(0.5)  # class d has no sample


@pytest.fixture(scope="module")
def run(
    tiny_table: Callable[..., dict[str, Any]],
    small_dataset: Path,
    val_dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp("eval") / "run"
    table = tiny_table("phases.gated.steps=2", "phases.finetune.steps=2")
    data = DataConfig(shards=small_dataset, val=val_dataset, loader_threads=1)
    run_job(Job(recipe=recipe_from_table(table), data=data, out=out, device="cpu"))
    return out


def test_wv_eval_agrees_with_the_run_s_own_validation(run: Path, val_dataset: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "val"][-1]
    done = CliRunner().invoke(command, ["--run", str(run), "--shards", str(val_dataset), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    result = json.loads((run / "eval.json").read_text())
    assert {name: result[name] for name in ("top1", "top5", "mean_class_top1", "samples")} == {
        name: last[name] for name in ("top1", "top5", "mean_class_top1", "samples")
    }
    assert result["loss"] == pytest.approx(last["loss"])
    assert (result["checkpoint"], result["step"], len(result["per_class"])) == ("last", 19, 6)
    info = json.loads((run / "run.json").read_text())
    assert {row["band"] for row in result["per_band"]} == set(info["class_bands"])
    assert "mean per class" in done.output

    small = ["--checkpoint", "best", "--batch-size", "7", "--json", str(tmp_path / "best.json")]
    again = CliRunner().invoke(command, ["--run", str(run), "--shards", str(val_dataset), "--device", "cpu", *small])
    assert again.exit_code == 0, again.output
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["top1"] == max(row["top1"] for row in rows if row["kind"] == "val")


def test_a_validation_set_with_other_classes_is_refused(
    run: Path, draw_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = draw_dataset(tmp_path / "other", [5, 5])
    with pytest.raises(ClassMismatchError, match="6 classes in training, 2 here"):
        CliRunner().invoke(
            command, ["--run", str(run), "--shards", str(other), "--device", "cpu"], catch_exceptions=False
        )


def test_evaluation_draws_nothing(tmp_path: Path, draw_dataset: Callable[..., Path]) -> None:
    """Two evaluations of one model are the same numbers."""
    shards = draw_dataset(tmp_path / "shards", [9, 4])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    losses = []
    for _ in range(2):
        with Loader(shards, batch_size=4, size_px=16, train=False, rank=0, world_size=1) as loader:
            losses.append(evaluate(model, loader, World(rank=0, size=1, device=CPU)).loss.tolist())
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("engine", "loss_tolerance"), [("turbo", 1e-3), ("dali-cpu", 1e-2)])
def test_engines_give_a_model_the_same_top1(
    run: Path, val_dataset: Path, tmp_path: Path, request: pytest.FixtureRequest, engine: str, loss_tolerance: float
) -> None:
    if engine == "dali-cpu":
        request.getfixturevalue("dali")
    elif find_spec("wv_loader._turbo") is None:
        pytest.skip("the turbo engine's kernel is not built here (see setup.py)")
    results = []
    for name in ("pillow", engine):
        out = tmp_path / f"{name}.json"
        options = ["--shards", str(val_dataset), "--device", "cpu", "--engine", name, "--json", str(out)]
        done = CliRunner().invoke(command, ["--run", str(run), *options])
        assert done.exit_code == 0, done.output
        assert done.stderr.startswith(f"engine {name} (")
        results.append(json.loads(out.read_text()))
        assert results[-1].pop("engine") == name
    assert results[0].pop("loss") == pytest.approx(results[1].pop("loss"), rel=loss_tolerance)
    for result in results:  # of confidences, which differ a little as the loss does
        del result["expected_calibration_error"], result["calibration"]
    assert results[0] == results[1]


def test_an_engine_for_a_gpu_is_refused_on_a_cpu(run: Path, val_dataset: Path) -> None:
    options = ["--shards", str(val_dataset), "--device", "cpu", "--engine", "dali-gpu"]
    done = CliRunner().invoke(command, ["--run", str(run), *options])
    assert isinstance(done.exception, EngineError)
    assert "it decodes on a GPU, found device cpu" in str(done.exception)


def test_both_loaders_bring_their_batches_to_the_device_of_the_model(
    small_dataset: Path, val_dataset: Path, tiny_table: Callable[..., dict[str, Any]]
) -> None:
    recipe, world = recipe_from_table(tiny_table()), World(rank=0, size=1, device=CPU)
    with open_phase_loader(DataConfig(shards=small_dataset), recipe, 0, world) as training:
        assert training.device == CPU
        with open_validation_loader(val_dataset, recipe, world, classes=training.class_names) as validation:
            assert validation.device == CPU
