"""What is on disk of a run is whole, belongs together, and costs the training loop a copy."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wv_shards import Overlay
from wv_train.checkpoint import Checkpoint
from wv_train.errors import CheckpointError
from wv_train.keeper import CheckpointKeeper
from wv_train.ledger import Ledger
from wv_train.run_directory import RunDirectory

DIGEST = "a" * 32


def _checkpoint(step: int, ledger: Ledger) -> Checkpoint:
    return Checkpoint(
        manifest_digest=DIGEST,
        classes=["cat", "dog"],
        recipe={},
        position={"step": step},
        model={"weight": torch.full((3,), float(step))},
        optimizer={"state": {0: {"momentum_buffer": torch.full((3,), float(step))}}, "param_groups": [{"lr": 0.1}]},
        scaler={},
        loader=None,
        ledger=ledger.state(),
        totals={},
        plateau={},
        metrics_bytes=0,
        best_top1=None,
        torch_threads=1,
        world_size=1,
    )


class _Run:
    """A run that saves: its ledger's `seen` is the step."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.run = RunDirectory(folder)
        self.folder = self.run.last.parent
        self.ledger = Ledger(5)
        self.keeper = CheckpointKeeper(self.run, **options)  # type: ignore[arg-type]  # two options, of two types

    def last(self, step: int) -> None:
        self.ledger.rows["seen"] = step
        self.keeper.save_last(_checkpoint(step, self.ledger), self.ledger, DIGEST, step)

    def best(self, step: int, score: float) -> None:
        self.keeper.save_best(_checkpoint(step, self.ledger), score, step)

    def files(self) -> dict[str, int]:
        """Name → step of its weights, of what is on disk."""
        self.keeper.wait()
        return {path.name: int(Checkpoint.load(path).model["weight"][0]) for path in self.folder.iterdir()}


@pytest.mark.parametrize("background", [True, False])
def test_last_and_the_ledger_beside_it_are_of_one_step(background: bool, tmp_path: Path) -> None:
    run = _Run(tmp_path, background=background)
    for step in (1, 2):
        run.last(step)
    run.ledger.rows["seen"] = 99  # training goes on while the thread writes
    run.keeper.close()
    loaded = Checkpoint.load(run.run.last)
    overlay = Overlay.load(run.run.ledger, manifest_digest=DIGEST, kind="ledger")
    assert (loaded.position["step"], overlay.info["step"]) == (2, 2)
    assert overlay.array["seen"].tolist() == [2] * 5
    again = Ledger(5)
    again.load_state(loaded.ledger)
    assert (again.rows == overlay.array).all()


@given(keep_best=st.integers(1, 3), events=st.lists(st.sampled_from([*range(6), "last", "kill"]), max_size=12))
@example(keep_best=1, events=[1, "last", 3, "kill"])
@example(keep_best=2, events=[2, 2, 2, "last"])
@settings(max_examples=10)
def test_best_files_are_those_that_last_lists_or_better(keep_best: int, events: list[int | str]) -> None:
    """Numbers are scores. A kill forgets what came after last.pt, and nothing else."""
    with TemporaryDirectory() as folder:
        run = _Run(Path(folder), keep_best=keep_best, background=False)
        run.last(0)
        best: list[tuple[int, int]] = []  # (−score, step), best first
        listed = list(best)
        for step, event in enumerate(events, start=1):
            if event == "last":
                run.last(step)
                listed = best
            elif event == "kill":
                run = _Run(Path(folder), keep_best=keep_best, background=False)
                run.keeper.restore(Checkpoint.load(run.run.last))
                best = listed
            else:
                run.best(step, score=int(event))
                best = sorted([*best, (-int(event), step)])[:keep_best]
            files = run.files()
            del files["last.pt"]
            assert files.pop("best.pt", None) == (best[0][1] if best else None)
            at_most = {f"best-{of}.pt": of for _, of in (*best, *listed)}
            assert files == at_most
            if event in ("last", "kill"):
                assert len(files) == len(best)


def test_the_loop_goes_on_while_the_thread_writes_and_hears_of_its_failure_later(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    run.last(1)
    run.keeper.wait()
    pipe = run.folder / "last.pt.tmp"
    os.mkfifo(pipe)  # whoever opens it to write waits for a reader
    run.last(2)
    run.keeper.check()
    pipe.open("rb").close()
    with pytest.raises(CheckpointError, match=r"last\.pt: not saved: .*; the checkpoint before it is still whole"):
        run.last(3)
    assert run.files() == {"last.pt": 1}
    run.last(4)  # an error is told once
    assert run.files() == {"last.pt": 4}
    run.keeper.close()


def test_on_a_full_disk_what_was_saved_before_stays_and_saving_fails_in_one_line(small_disk: Path) -> None:
    run = _Run(small_disk)
    run.last(1)
    run.best(1, 0.5)
    run.keeper.wait()
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    for save in (lambda: run.last(2), lambda: run.best(2, 0.9)):
        save()
        with pytest.raises(CheckpointError, match="not saved") as caught:
            run.keeper.wait()
        assert "\n" not in str(caught.value)
    assert run.files() == {"last.pt": 1, "best.pt": 1, "best-1.pt": 1}
    assert Overlay.load(run.run.ledger, manifest_digest=DIGEST).info["step"] == 1
    (small_disk / "ballast").unlink()
    run.keeper.restore(Checkpoint.load(run.run.last))
    run.last(3)
    assert run.files()["last.pt"] == 3


@pytest.mark.slow
def test_killed_while_it_writes_the_last_whole_checkpoint_stays(tmp_path: Path) -> None:
    """kill -9 of a real process within a write."""
    saves = (
        "import sys, pathlib, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_keeper import _Run, _checkpoint\n"
        "run = _Run(pathlib.Path(sys.argv[1]))\n"
        "run.ledger = type(run.ledger)(100_000)\n"
        "for step in range(1, 10_000):\n"
        "    run.best(step, step / 10_000)\n"
        "    run.last(step)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", saves, str(tmp_path)])
    run = _Run(tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (run.run.last.exists() and run.run.last.with_name("last.pt.tmp").exists()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    last = Checkpoint.load(run.run.last)
    assert last.position["step"] >= 1
    Overlay.load(run.run.ledger, manifest_digest=DIGEST, kind="ledger")
    run.keeper.restore(last)
    run.last(last.position["step"] + 1)
    files = run.files()
    assert files.pop("last.pt") == last.position["step"] + 1
    assert set(files) == {"best.pt", *(f"best-{step}.pt" for step, _ in last.trainer["best"])}


def test_a_best_checkpoint_holds_weights_and_no_state_of_training(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    averaged = {"weight": torch.full((3,), 7.0)}
    run.keeper.save_best(replace(_checkpoint(3, run.ledger), ema=averaged, trainer={"warned": 2}), 0.25, 3)
    run.keeper.close()
    best = Checkpoint.load(run.run.best)
    assert best.model["weight"].tolist() == [3.0] * 3
    assert best.ema is not None
    assert best.ema["weight"].tolist() == [7.0] * 3
    assert (best.position["step"], best.trainer["score"], best.trainer["warned"]) == (3, 0.25, 2)
    assert (best.optimizer, best.scaler, best.ledger.numel()) == ({}, {}, 0)
    with pytest.raises(CheckpointError, match=r"resume from last\.pt"):
        Ledger(5).load_state(best.ledger)


@pytest.mark.parametrize(("step_of_best", "kept"), [(2, True), (9, False)])
def test_the_best_of_a_run_of_format_1_stays_unless_it_is_newer_than_last(
    step_of_best: int, kept: bool, tmp_path: Path
) -> None:
    run = _Run(tmp_path)
    _checkpoint(step_of_best, run.ledger).save(run.run.best)
    run.keeper.restore(replace(_checkpoint(5, run.ledger), best_top1=0.5))
    assert run.run.best.exists() is kept
    assert run.keeper.wants(0.4) is not kept
    run.best(6, 0.6)
    assert run.files()["best.pt"] == 6
    run.last(6)
    assert set(run.files()) == {"last.pt", "best.pt", "best-6.pt"}


def test_a_snapshot_keeps_values_and_layout_and_uses_its_memory_again(tmp_path: Path) -> None:
    run = _Run(tmp_path)
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    checkpoint = replace(_checkpoint(1, run.ledger), model={"weight": weight, "empty": torch.empty(0)})
    sizes = []
    for _ in range(2):
        run.keeper.save_last(checkpoint, run.ledger, DIGEST, 1)
        sizes.append(run.keeper.snapshot_bytes)
    run.keeper.close()
    loaded = Checkpoint.load(run.run.last).model["weight"]
    assert torch.equal(loaded, weight)
    assert loaded.is_contiguous(memory_format=torch.channels_last)
    assert sizes == [weight.nbytes + 12 + 5 * 36] * 2
    assert run.keeper.snapshot_bytes == 0
