"""Law 6 in one process: stop after any step, resume, and have the very same run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.recfunctions import repack_fields

from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig
from wv_train.distributed import World
from wv_train.errors import CheckpointError, NonFiniteLossError, RunDirectoryError
from wv_train.evaluation import EvalConfig, evaluate_run, open_lockstep
from wv_train.job import Job, run_job
from wv_train.ledger import LEDGER_DTYPE, history_of
from wv_train.lockstep import ValidationData
from wv_train.recipe import recipe_from_table
from wv_train.run_directory import RunDirectory
from wv_train.signals import Stopped
from wv_train.trained import load_trained

TIMES = ("images_per_s", "images_per_s_without_wait", "kept_images_per_s", "wait_s")

# 15 base steps, 12 gated steps, at most 40 (a plateau ends it), 6 to fine-tune.
PLATEAU = {
    "name": "settle",
    "until": "plateau",
    "max_steps": 40,
    "lr": 0.02,
    "mixup_alpha": 0.3,
    "plateau": {"window_steps": 4, "patience_windows": 2, "min_drop_fraction": 0.3},
}


def _job(table: dict[str, Any], shards: Path, val: Path | None, out: Path, *, resume: bool = False) -> Job:
    data = DataConfig(shards=shards, val=val, loader_threads=1)
    return Job(recipe=recipe_from_table(table), data=data, out=out, resume=resume, device="cpu", threads=1)


def _rows(out: Path) -> list[dict[str, Any]]:
    """Without times, and without rows that are of nothing else."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] != "loader"]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimiser, ledger, position and metrics, bit for bit."""
    a, b = (Checkpoint.load(out / "checkpoints" / "last.pt") for out in (one, other))
    assert a.position == b.position
    for name, value in a.model.items():
        assert torch.equal(value, b.model[name]), name
    for key, state in a.optimizer["state"].items():
        assert torch.equal(state["momentum_buffer"], b.optimizer["state"][key]["momentum_buffer"])
    assert a.ema is not None
    assert b.ema is not None
    assert all(torch.equal(value, b.ema[name]) for name, value in a.ema.items())
    assert str(a.trainer) == str(b.trainer)
    assert torch.equal(a.trainer["targets"]["rows"], b.trainer["targets"]["rows"])
    assert a.plateau == b.plateau
    assert torch.equal(a.ledger, b.ledger)
    assert (np.load(one / "ledger.npy") == np.load(other / "ledger.npy")).all()
    assert a.best_top1 == b.best_top1
    assert _rows(one) == _rows(other)


@pytest.fixture(scope="module")
def table(tiny_table: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Every kind of state: averaged weights, clipping, a gate that comes to two passes, mixup, a gate by the past; the
    memory of elr before and after a phase without it."""
    table = tiny_table("validate_every_steps=7", "ema_decay=0.9", "clip_norm=3.0", "phases.gated.gate.start=0.6")
    for phase in table["phases"][1:]:
        phase["loss"] = {"kind": "elr", "elr_top_k": 4}
    table["phases"].insert(2, PLATEAU)
    table["phases"][-1]["gate"] = {"kind": "label_past", "unit": "share", "start": 0.5, "end": 0.3}
    return table


@pytest.fixture(scope="module")
def whole(
    table: dict[str, Any], small_dataset: Path, val_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_job(_job(table, small_dataset, val_dataset, out))
    return out


def test_the_run_goes_through_its_phases(whole: Path) -> None:
    rows = _rows(whole)
    events = [(row["phase"], row["event"]) for row in rows if row["kind"] == "phase"]
    names = ["base", "gated", "settle", "finetune"]
    assert events == [(name, event) for name in names for event in ("start", "end")]
    ends = {row["phase"]: row["step"] for row in rows if row["kind"] == "phase" and row["event"] == "end"}
    assert (ends["base"], ends["gated"]) == (15, 27)
    assert 27 < ends["settle"] < 67  # the plateau ended it
    assert ends["finetune"] == ends["settle"] + 6
    train = [row for row in rows if row["kind"] == "train"]
    assert any(row["kept_fraction"] < 1 for row in train if row["phase"] == "gated")
    assert all(row["kept_fraction"] == 1 for row in train if row["phase"] in ("base", "settle"))
    assert any(row["two_pass_steps"] for row in train if row["phase"] == "gated")
    assert all(row["kept_fraction"] < 1 for row in train if row["phase"] == "finetune")
    assert all(row["grad_norm"] > 0 for row in train if not row["zero_steps"])
    assert {row["step"] for row in rows if row["kind"] == "val"} >= {7, 14, 15, 22, 27, ends["finetune"]}
    ledger = np.load(whole / "ledger.npy")
    shown = train[-1]["samples"]
    assert ledger["seen"].sum() < shown  # what the past shuts out is not looked at
    assert ledger["seen"].sum() + ledger["gated"].sum() >= shown
    last, best = (Checkpoint.load(whole / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    assert last.trainer["targets"]["rows"].any()
    assert "targets" not in best.trainer  # no run goes on from it


@pytest.mark.parametrize("stop", [1, 7, 14, 15, 16, 27, 29, 36])
def test_stopped_after_any_step_and_resumed_it_is_the_same_run(
    stop: int,
    table: dict[str, Any],
    whole: Path,
    small_dataset: Path,
    val_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[pytest.MonkeyPatch, int | None], None],
) -> None:
    out = tmp_path / "run"
    stop_after(monkeypatch, stop)
    with pytest.raises(Stopped) as caught:
        run_job(_job(table, small_dataset, val_dataset, out))
    assert caught.value.exit_code == 143
    assert Checkpoint.load(out / "checkpoints" / "last.pt").position["step"] == stop
    stop_after(monkeypatch, None)
    run_job(_job(table, small_dataset, val_dataset, out, resume=True))
    assert_same_run(whole, out)


def test_a_validation_row_speaks_of_the_weights_at_its_step(
    table: dict[str, Any],
    whole: Path,
    small_dataset: Path,
    val_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[pytest.MonkeyPatch, int | None], None],
) -> None:
    out = tmp_path / "run"
    stop_after(monkeypatch, 7)
    with pytest.raises(Stopped):
        run_job(_job(table, small_dataset, val_dataset, out))
    world = World(rank=0, size=1, device=torch.device("cpu"))
    trained = load_trained(out, checkpoint="last", weights="model", device=world.device)
    config = EvalConfig(data=ValidationData(shards=val_dataset, loader_threads=1))
    with open_lockstep([trained], config, world) as shown:
        result = evaluate_run(trained, config, shown, world)
    row = next(row for row in _rows(whole) if row["kind"] == "val" and row["step"] == 7)
    assert (row["top1"], row["loss"]) == (result["top1"], pytest.approx(result["loss"]))


def test_a_run_stopped_again_and_again_is_the_same_run(
    table: dict[str, Any],
    whole: Path,
    small_dataset: Path,
    val_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[pytest.MonkeyPatch, int | None], None],
) -> None:
    out, stops = tmp_path / "run", 0
    while True:
        stop_after(monkeypatch, 11)
        try:
            run_job(_job(table, small_dataset, val_dataset, out, resume=stops > 0))
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert_same_run(whole, out)


def test_what_was_written_after_the_checkpoint_is_cut_and_made_again(
    table: dict[str, Any], whole: Path, small_dataset: Path, val_dataset: Path, tmp_path: Path
) -> None:
    """As after kill -9: metrics run ahead of the checkpoint, the ledger overlay is of another step."""
    out = tmp_path / "run"
    job = _job(table, small_dataset, val_dataset, out)
    real_save, saves = Checkpoint.save, 0

    def save_then_die(self: Checkpoint, path: Path) -> None:
        nonlocal saves
        if path.name == "last.pt":
            saves += 1
            if saves == 5:
                raise KeyboardInterrupt
        real_save(self, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            run_job(job)
    before = Checkpoint.load(out / "checkpoints" / "last.pt")
    assert before.metrics_bytes < (out / "metrics.jsonl").stat().st_size
    (out / "ledger.npy").write_bytes(b"half a ledger")
    run_job(_job(table, small_dataset, val_dataset, out, resume=True))
    assert_same_run(whole, out)


def test_a_run_saved_in_format_1_goes_on_to_the_same_weights(
    tiny_table: Callable[..., dict[str, Any]],
    small_dataset: Path,
    val_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[pytest.MonkeyPatch, int | None], None],
) -> None:
    """Its ledger has no history of the visits before, and no gate had a guard."""
    table = tiny_table("phases.gated.steps=4", "phases.finetune.steps=2")
    whole, out = tmp_path / "whole", tmp_path / "run"
    run_job(_job(table, small_dataset, val_dataset, whole))
    stop_after(monkeypatch, 14)
    with pytest.raises(Stopped):
        run_job(_job(table, small_dataset, val_dataset, out))
    last = out / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    rows = state["ledger"].numpy().view(LEDGER_DTYPE)
    old = [name for name in LEDGER_DTYPE.names or () if name != "history"]
    state["ledger"] = torch.from_numpy(repack_fields(rows[old]).view(np.uint8))
    del state["ema"], state["trainer"]
    torch.save({**state, "format_version": 1}, last)
    stop_after(monkeypatch, None)
    run_job(_job(table, small_dataset, val_dataset, out, resume=True))
    a, b = (Checkpoint.load(run / "checkpoints" / "last.pt") for run in (whole, out))
    assert all(torch.equal(value, b.model[name]) for name, value in a.model.items())
    one, other = np.load(whole / "ledger.npy"), np.load(out / "ledger.npy")
    assert (one[old] == other[old]).all()
    assert np.isnan(history_of(other)).sum() > np.isnan(history_of(one)).sum()


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    table: dict[str, Any], whole: Path, small_dataset: Path, val_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", _die)
        with pytest.raises(KeyboardInterrupt):
            run_job(_job(table, small_dataset, val_dataset, out))
    assert not (out / "checkpoints" / "last.pt").exists()
    run_job(_job(table, small_dataset, val_dataset, out, resume=True))
    assert_same_run(whole, out)


def test_resuming_a_finished_run_changes_nothing(
    table: dict[str, Any], whole: Path, small_dataset: Path, val_dataset: Path
) -> None:
    before = {path.name: path.read_bytes() for path in whole.rglob("*") if path.suffix in (".jsonl", ".pt", ".npy")}
    run_job(_job(table, small_dataset, val_dataset, whole, resume=True))
    assert before == {
        path.name: path.read_bytes() for path in whole.rglob("*") if path.suffix in (".jsonl", ".pt", ".npy")
    }


def test_a_broken_loss_stops_with_its_samples_saved(
    tiny_table: Callable[..., dict[str, Any]], small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    table = tiny_table("phases.base.lr=1e30", "phases.base.warmup_steps=0")
    with pytest.raises(NonFiniteLossError, match="phase base: the loss is NaN or infinite 3 times in a row; lower"):
        run_job(_job(table, small_dataset, None, out))
    saved = json.loads((out / "nonfinite_batches.json").read_text())
    steps = [batch["step"] for batch in saved["batches"]]
    assert steps == list(range(steps[0], steps[0] + 3))
    assert all(len(batch["keys"]) == len(batch["ordinals"]) > 0 for batch in saved["batches"])
    assert saved["batches"][0]["keys"][0].startswith("c00")
    warnings = [row["text"] for row in _rows(out) if row["kind"] == "warning"]
    assert len([text for text in warnings if "nothing was learned from it" in text]) == 2


def test_two_trainings_do_not_share_a_folder(
    tiny_table: Callable[..., dict[str, Any]], small_dataset: Path, tmp_path: Path
) -> None:
    """A job that was queued again while the one before it lives on; in one process, as locks are of open files."""
    out = tmp_path / "run"
    table = tiny_table("phases.base.epochs=1")
    table["phases"] = table["phases"][:1]
    with RunDirectory(out).held():
        with pytest.raises(RunDirectoryError, match=r"a training is at work here \(process \d+ on "):
            run_job(_job(table, small_dataset, None, out))
        RunDirectory(out).write_info({"recipe": table, "engine_description": "", "engine": ""})
        with pytest.raises(RunDirectoryError, match="a training is at work here"):
            run_job(_job(table, small_dataset, None, out, resume=True))
        assert not (out / "metrics.jsonl").exists()
    (out / "run.json").unlink()
    run_job(_job(table, small_dataset, None, out))
    assert (out / "checkpoints" / "last.pt").exists()


def test_a_checkpoint_of_another_run_is_refused(
    tiny_table: Callable[..., dict[str, Any]], whole: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """Same data, same network, another recipe: its numbers would be filed under the wrong run."""
    other = tmp_path / "other"
    table = tiny_table("phases.base.lr=0.01")
    table["phases"] = table["phases"][:1]
    run_job(_job(table, small_dataset, None, other))
    last = str(other / "checkpoints" / "last.pt")
    with pytest.raises(CheckpointError, match=r"a checkpoint of another run than .*: .* there, .* here"):
        load_trained(whole, checkpoint=last, weights="auto", device=torch.device("cpu"))


def _die(_self: Checkpoint, _path: Path) -> None:
    raise KeyboardInterrupt
