"""Phases that begin with a newly drawn head: what is drawn, what begins anew, and law 6 across their borders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wv_shards import Manifest, Overlay
from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig
from wv_train.errors import CheckpointError, TrainError
from wv_train.job import Job, run_job
from wv_train.models import make_model
from wv_train.new_head import draw_head
from wv_train.recipe import recipe_from_table
from wv_train.signals import Stopped
from wv_train.trained import load_trained


@pytest.mark.parametrize("name", ["wv_resnet_16_32_64", "test_vit"])
def test_a_new_head_is_of_seed_and_phase_and_leaves_the_rest_alone(name: str) -> None:
    models = [make_model(name, 5) for _ in range(3 if name.startswith("wv") else 1)]
    before = {key: value.clone() for key, value in models[0].state_dict().items()}
    parameters = {key: id(parameter) for key, parameter in models[0].named_parameters()}
    state = torch.get_rng_state()
    for model, phase in zip(models, (1, 1, 2), strict=False):
        draw_head(model, name, 7, seed=3, phase_index=phase)
    assert torch.equal(torch.get_rng_state(), state)
    after = models[0].state_dict()
    renewed = {key for key in before if after[key].shape != before[key].shape}
    assert renewed
    for key, value in before.items():
        if key not in renewed:
            assert torch.equal(value, after[key])
    assert {key for key, parameter in models[0].named_parameters() if id(parameter) != parameters[key]} == renewed
    assert all(after[key].shape[0] == 7 for key in renewed)
    if len(models) > 1:
        assert torch.equal(models[1].state_dict()["fc.weight"], after["fc.weight"])
        assert not torch.equal(models[2].state_dict()["fc.weight"], after["fc.weight"])


@pytest.fixture(scope="module")
def overlays(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory, save_overlays: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("overlays")
    save_overlays(small_dataset, folder)
    return folder


@pytest.fixture(scope="module")
def table(tiny_table: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """clusters (4) → classes (6) with a curriculum → a new head on a frozen backbone with soft labels, 3 steps each."""
    table = tiny_table("ema_decay=0.9", "checkpoint_every_steps=0", "validate_every_steps=2", "validate_every_epochs=0")
    gate = {"start": 0.2, "kind": "label_average"}
    table["phases"] = [
        {"name": "grouped", "steps": 3, "lr": 0.05, "labels": "clusters", "gate": gate},
        {"name": "base", "steps": 3, "lr": 0.05, "gate": gate, "curriculum": {"max_tier": 2}},
        {"name": "head", "steps": 3, "lr": 0.05, "new_head": True, "backbone_factor": 0.0, "teacher": {}},
    ]
    return table


@pytest.fixture(scope="module")
def train(table: dict[str, Any], small_dataset: Path, val_dataset: Path, overlays: Path) -> Callable[..., None]:
    def start(out: Path, *, resume: bool = False, folder: Path = overlays) -> None:
        data = DataConfig(shards=small_dataset, val=val_dataset, overlays=folder, loader_threads=1)
        run_job(Job(recipe=recipe_from_table(table), data=data, out=out, resume=resume, device="cpu", threads=1))

    return start


@pytest.fixture(scope="module")
def whole(train: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    return out


def _rows(out: Path) -> list[dict[str, Any]]:
    """Of metrics, without times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] != "loader"]
    return [{key: value for key, value in row.items() if not key.endswith("_s") and "_s_" not in key} for row in rows]


def _assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit."""
    a, b = (Checkpoint.load(out / "checkpoints" / "last.pt") for out in (one, other))
    assert a.ema is not None
    assert b.ema is not None
    momenta = [
        {str(key): state["momentum_buffer"] for key, state in last.optimizer["state"].items()} for last in (a, b)
    ]
    for mine, theirs in ((a.model, b.model), (a.ema, b.ema), (momenta[0], momenta[1])):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert torch.equal(a.ledger, b.ledger)
    assert (str(a.trainer), a.plateau, a.position, a.best_top1) == (str(b.trainer), b.plateau, b.position, b.best_top1)
    assert _rows(one) == _rows(other)


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_stopped_within_or_between_label_sets_and_resumed_it_is_the_same_run(
    stop: int,
    whole: Path,
    train: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[pytest.MonkeyPatch, int | None], None],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stopped):
            train(out)
    last = Checkpoint.load(out / "checkpoints" / "last.pt")
    assert last.model["fc.weight"].shape[0] == (4 if stop <= 3 else 6)
    if stop == 2:
        with pytest.raises(CheckpointError, match="phase grouped, which learns the clusters of clusters and no"):
            load_trained(out, checkpoint="last", weights="auto", device=torch.device("cpu"))
    train(out, resume=True)
    _assert_same_run(whole, out)


def test_what_speaks_of_other_labels_is_not_kept_and_not_validated(whole: Path, small_dataset: Path) -> None:
    rows = _rows(whole)
    assert {row["phase"] for row in rows if row["kind"] == "val"} == {"base", "head"}
    assert {row["phase"] for row in rows if row.get("labels") == "clusters"} == {"grouped"}
    ledger = np.load(whole / "ledger.npy")
    assert ledger["seen"].sum() == 6 * 16  # the clusters' three steps are forgotten
    assert np.load(whole / "ledger.npy")["prediction"].max() < 6
    info = json.loads((whole / "run.json").read_text())
    assert sum(info["class_counts"]) == 239  # whatever the first phase leaves out
    assert set(info["overlay_checksums"]) == {"clusters", "tiers", "teacher"}
    last = Checkpoint.load(whole / "checkpoints" / "last.pt")
    assert last.trainer["overlay_checksums"] == info["overlay_checksums"]
    assert last.trainer["guard"]["kept_share"].shape == (6,)
    assert last.trainer["ema_updates"] == 3


def test_a_changed_overlay_is_refused_by_name(
    train: Callable[..., None],
    small_dataset: Path,
    whole: Path,
    tmp_path: Path,
    save_overlays: Callable[..., dict[str, NDArray[Any]]],
) -> None:
    changed = save_overlays(small_dataset, tmp_path)["tiers"].copy()
    changed[0] = 1 + changed[0] % 3
    Overlay(kind="tiers", array=changed, manifest_digest=Manifest.load(small_dataset).digest).save(tmp_path / "tiers")
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(TrainError, match=r"overlay tiers: the run in .* began with checksum"):
        train(whole, resume=True, folder=tmp_path)
    assert (whole / "metrics.jsonl").read_bytes() == before
