"""What a run tells: rows in metrics.jsonl and TensorBoard, a live line on a terminal, JSON lines elsewhere.

Exists on rank 0 only. It measures nothing; the trainer hands it finished rows.
"""

import json
import os
import sys
import warnings
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wv_train.run_directory import RunDirectory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tensorboard's own imports warn of their future
    from torch.utils.tensorboard import SummaryWriter


class Screen:
    """Text for a person goes to stderr; rows go to stdout as JSON lines where nobody watches a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self.console.is_terminal
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """One line for a person."""
        self.console.print(text, markup=False)

    def begin(self, total_steps: int, done: int) -> None:
        """Show the live line, if there is a terminal."""
        if self._live:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            self._bar.start()
            self._bar.add_task("starting", total=total_steps, completed=done, facts="")

    def step(self, phase: str, step: int) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=phase, completed=step)

    def row(self, row: dict[str, Any]) -> None:
        """Show a finished row of metrics."""
        if self._bar is None:
            if not self._live:
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
        elif row["kind"] == "train":
            facts = (
                f"loss {row['loss']:.3f}  top-1 {row['top1']:.1%}  kept {row['kept_fraction']:.0%}  "
                f"{row['images_per_s']:,.0f} img/s  waited {row['wait_s']:.1f} s"
            )
            self._bar.update(self._bar.task_ids[0], facts=facts)
        elif row["kind"] == "val":
            self.say(
                f"step {row['step']} ({row['phase']}): validation top-1 {row['top1']:.2%}, top-5 {row['top5']:.2%}, "
                f"mean per class {row['mean_class_top1']:.2%}, loss {row['loss']:.3f}"
            )

    def end(self) -> None:
        """Take the live line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class RunLog:
    """Appends to a run's metrics; `sync` says how long the file is, for the checkpoint."""

    def __init__(self, run: RunDirectory, screen: Screen, *, step: int) -> None:
        """Go on at `step`: TensorBoard drops what it has from there on. The folder must exist."""
        self.screen = screen
        self._file = open(run.metrics, "ab")  # noqa: SIM115  # open as long as the log; closed by close()
        self._board = SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None)

    def row(self, row: dict[str, Any]) -> None:
        """Write one row everywhere."""
        self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        self._file.flush()
        if row["kind"] != "phase":
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        self.screen.row(row)

    def sync(self) -> int:
        """Make every row durable; the file's length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the files and the live line."""
        self.screen.end()
        self._board.close()
        self._file.close()
