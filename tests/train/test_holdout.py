"""wv-train --holdout: what is validated on is not trained on, and which samples that are follows from their keys."""

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wv_loader import Loader
from wv_shards import Dataset, Manifest, Overlay
from wv_train import cli
from wv_train import job as job_module
from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig, open_phase_loader, open_validation_loader
from wv_train.distributed import World
from wv_train.errors import RecipeError
from wv_train.evaluation import EvalConfig, evaluate_run, open_lockstep
from wv_train.holdout import HeldOut, held_out
from wv_train.job import Job, run_job
from wv_train.lockstep import ValidationData
from wv_train.recipe import Recipe, recipe_from_table
from wv_train.signals import Stopped
from wv_train.trained import load_trained

CPU = World(rank=0, size=1, device=torch.device("cpu"))
FRACTION = 0.2


def _keys(shards: Path, fraction: float) -> set[str]:
    with Dataset.open(shards) as dataset:
        mask = held_out(dataset, fraction)
        assert mask.shape == (dataset.manifest.samples,)
        return set(dataset.keys(np.flatnonzero(mask).tolist()))


def _recipe(tiny_table: Callable[..., dict[str, Any]], *overrides: str, steps: int = 0) -> Recipe:
    table = tiny_table(*overrides)
    table["phases"] = table["phases"][:1]
    if steps:
        del table["phases"][0]["epochs"]
        table["phases"][0]["steps"] = steps
    return recipe_from_table(table)


def _shown(loader: Loader) -> set[int]:
    with closing(loader):
        return {int(ordinal) for batch in loader for ordinal in batch.ordinals if ordinal >= 0}


def test_held_out_and_trained_are_all_that_is_not_excluded_and_disjoint(
    small_dataset: Path, tmp_path: Path, tiny_table: Callable[..., dict[str, Any]]
) -> None:
    """As collected, an epoch shows every sample that it may."""
    excluded = np.zeros(239, dtype=bool)
    excluded[::7] = True
    overlay = Overlay(kind="exclude", array=excluded, manifest_digest=Manifest.load(small_dataset).digest)
    overlay.save(tmp_path / "copies")
    data = DataConfig(shards=small_dataset, exclude=(tmp_path / "copies",), holdout=FRACTION, loader_threads=1)
    sides = set()
    for seed in (0, 1):
        recipe = _recipe(tiny_table, f"seed={seed}", "phases.base.balance=1.0")
        trained = _shown(open_phase_loader(data, recipe, 0, CPU))
        shards, exclude = data.validated_on()
        names = [one.name for one in Manifest.load(small_dataset).classes]
        held = _shown(open_validation_loader(shards, recipe, CPU, classes=names, exclude=exclude))
        assert not held & trained
        assert held | trained == set(np.flatnonzero(~excluded).tolist())
        sides.add(frozenset(held))
    assert len(sides) == 1
    assert 20 < len(held) < 65


def test_which_samples_depends_on_their_keys_alone(draw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """Not on the order of the shards, nor on what else is in them; a smaller fraction is a part of a larger one."""
    one = draw_dataset(tmp_path / "one", [100, 40], seed=0)
    other = draw_dataset(tmp_path / "other", [100, 90], seed=5)
    keys, others = _keys(one, 0.1), _keys(other, 0.1)
    assert keys == {key for key in others if key.startswith("c000") or int(key[-5:]) < 40}
    assert keys < _keys(one, 0.3)


def test_about_the_fraction_is_held_out(draw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    shards = draw_dataset(tmp_path / "shards", [400, 100])
    for fraction in (0.05, 0.1, 0.5):
        spread = (500 * fraction * (1 - fraction)) ** 0.5
        assert abs(len(_keys(shards, fraction)) - 500 * fraction) < 4 * spread


def test_a_held_out_run_is_stopped_resumed_and_evaluated(
    small_dataset: Path,
    val_dataset: Path,
    tmp_path: Path,
    tiny_table: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[pytest.MonkeyPatch, int | None], None],
) -> None:
    def job(name: str, *, resume: bool = False, holdout: float | None = FRACTION) -> Job:
        data = DataConfig(shards=small_dataset, holdout=holdout, loader_threads=1)
        recipe = _recipe(tiny_table, steps=8)
        return Job(recipe=recipe, data=data, out=tmp_path / name, resume=resume, device="cpu", threads=1)

    run_job(job("whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stopped):
            run_job(job("stopped"))
    for other in (None, 0.3):
        with pytest.raises(RecipeError, match=f"holdout: the run in .* has 0.2, asked for was {other}: samples that"):
            run_job(job("stopped", resume=True, holdout=other))
    run_job(job("stopped", resume=True))
    one, two = (Checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "stopped"))
    assert all(torch.equal(value, two.model[name]) for name, value in one.model.items())
    assert (one.best_top1, one.position) == (two.best_top1, two.position)

    with Dataset.open(small_dataset) as dataset:
        held = held_out(dataset, FRACTION)
    seen = np.load(tmp_path / "stopped" / "ledger.npy")["seen"]
    assert (seen[held] == 0).all()
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {row["samples"] for row in rows if row["kind"] == "val"} == {held.sum()}
    info = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert (info["holdout"], info["val"], sum(info["class_counts"])) == (FRACTION, None, (~held).sum())

    trained = load_trained(tmp_path / "whole", checkpoint="best", weights="auto", device=CPU.device)
    config = EvalConfig(data=ValidationData(shards=val_dataset, loader_threads=1))
    with open_lockstep([trained], config, CPU) as shown:
        assert evaluate_run(trained, config, shown, CPU)["samples"] == 60


def test_a_class_that_is_held_out_whole_is_warned_about(draw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    shards = draw_dataset(tmp_path / "shards", [60, 1, 1, 1, 1, 1, 1, 1, 1])
    with Dataset.open(shards) as dataset:
        held = held_out(dataset, 0.5)
    with Loader(shards, batch_size=4, size_px=16, train=False, exclude=~held) as validation:
        counts = np.bincount(validation.labels[~held], minlength=9)
        found = HeldOut.of(0.5, counts.tolist(), validation)
    lost = [f"class {k}" for k in range(9) if counts[k] == 0]
    assert 0 < len(lost) < 8
    assert list(found.without_training) == lost
    assert found.without_validation == 8 - len(lost)
    warning = next(line for line in found.lines() if line.startswith("warning"))
    assert f"leaves no sample to train on in {len(lost)} classes (class " in warning


def test_holdout_is_an_option_of_its_own_and_remembered(
    small_dataset: Path, val_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(cli, "run_job", jobs.append)

    def refused(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["wv-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        return str(capsys.readouterr().err)

    start = ("--shards", small_dataset, "--recipe", "demo", "--out", tmp_path / "run", "--holdout")
    assert "expected a fraction of more than 0 and at most 0.5, found 0.6" in refused(*start, 0.6)
    assert "found 0" in refused(*start, 0)
    assert "found nan" in refused(*start, "nan")
    assert "expected one of them: either is the set that the run is validated on" in refused(
        *start, 0.1, "--val", val_dataset
    )
    cli.command.main([str(one) for one in (*start, 0.1)], standalone_mode=False)
    run = job_module.RunDirectory(tmp_path / "run")
    info = {"recipe": job_module.to_table(jobs[0].recipe), "shards": str(small_dataset), "val": None, "exclude": []}
    run.write_info({**info, "engine": "pillow", "holdout": 0.1})
    cli.command.main(["--resume", "--out", str(run.path)], standalone_mode=False)
    assert [job.data.holdout for job in jobs] == [0.1, 0.1]
    assert "expected one of them" in refused("--resume", "--out", run.path, "--val", val_dataset)
