"""What is on disk of a run is whole, belongs together, and costs the training loop a copy."""

from pathlib import Path

import pytest
import torch

from wv_shards import Overlay
from wv_train.checkpoint import Checkpoint
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
