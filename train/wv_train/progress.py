"""What a run tells: rows in metrics.jsonl and TensorBoard, a live view on a terminal, JSON lines elsewhere.

Exists on rank 0 only. It measures nothing; the trainer hands it finished rows. `live_view` draws.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live

from wv_train.live_view import LiveView, PhaseLength
from wv_train.run_directory import RunDirectory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tensorboard's own imports warn of their future
    from torch.utils.tensorboard import SummaryWriter

_DRAWN_PER_S = 1.0
"""A frame costs some milliseconds, in a thread that takes turns with the training loop."""
_WARNING = "warning: "


class Screen:
    """Text for a person goes to stderr; rows go to stdout as JSON lines where nobody watches a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._watched = self.console.is_terminal and not self.console.is_dumb_terminal
        self._json = not (self._watched and sys.stdout.isatty())
        self._live: Live | None = None
        self._view: LiveView | None = None

    def say(self, text: str) -> None:
        """One line for a person. What begins with `warning: ` also stays in sight."""
        if self._view is not None and text.startswith(_WARNING):
            self._view.warn(text.removeprefix(_WARNING))
        self.console.print(text, markup=False)

    def begin(self, total_steps: int, done: int, *, run: str = "", phases: Sequence[PhaseLength] = ()) -> None:
        """Show the live view, if there is a terminal.

        Args:
            total_steps: of the whole run, at most.
            done: steps that a resumed run had behind it.
            run: its name.
            phases: all of them in order; without them there is one bar.
        """
        if not self._watched:
            return
        self._view = LiveView(run=run, phases=phases, total_steps=total_steps, done=done)
        self._live = Live(
            self._view,
            console=self.console,
            refresh_per_second=_DRAWN_PER_S,
            transient=True,
            redirect_stdout=not self._json,  # else stdout is a pipe or a file and gets the rows
            vertical_overflow="crop",
        )
        self._live.start()
        self.console.show_cursor()  # hidden by Live: a process that is killed would leave the shell without one

    def step(self, phase: str, step: int, phase_step: int | None = None) -> None:
        """One more step is done: number `step` of the run, `phase_step` of its phase."""
        if self._view is not None:
            self._view.step(phase, step, phase_step)

    def saved(self, step: int) -> None:
        """The checkpoint of this step is in place, or on its way there."""
        if self._view is not None:
            self._view.saved(step)

    def row(self, row: dict[str, Any]) -> None:
        """Show a finished row of metrics."""
        if self._json:
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
        if row["kind"] in ("guard", "warning"):
            self.say(f"{_WARNING}step {row['step']:,}: {row['text']}")
        elif self._view is not None:
            self._view.row(row)
            if sentence := _SENTENCES.get(row["kind"]):
                self.say(sentence(row))

    def end(self) -> None:
        """Take the live view away."""
        if self._live is not None:
            self._live.stop()
        self._live = self._view = None


class RunLog:
    """Appends to a run's metrics; `sync` says how long the file is, for the checkpoint."""

    def __init__(self, run: RunDirectory, screen: Screen, *, step: int, texts: Mapping[str, str] | None = None) -> None:
        """Go on at `step`: TensorBoard drops what it has from there on. The folder must exist.

        `texts` are shown in TensorBoard as they are, by name; a run that goes on has them already.
        """
        self.screen = screen
        self._file = open(run.metrics, "ab")  # noqa: SIM115  # open as long as the log; closed by close()
        self._board = SummaryWriter(str(run.tensorboard), purge_step=step + 1 if step else None)
        if not step:
            for name, text in (texts or {}).items():
                self._board.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), 0)  # not Markdown

    def row(self, row: dict[str, Any]) -> None:
        """Write one row everywhere."""
        self._file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        self._file.flush()
        for name, value in scalars(row):
            self._board.add_scalar(name, value, row["step"])
        self.screen.row(row)

    def sync(self) -> int:
        """Make every row durable; the file's length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the files and the live view."""
        self.screen.end()
        self._board.close()
        self._file.close()


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What TensorBoard plots of a row: kind/field, and kind/kept/band_b for each band that was shown."""
    kind = row["kind"]
    if kind == "phase":
        return
    for name, value in row.items():
        if name == "kept_by_band":
            for band, samples, kept in value:
                if samples:
                    yield f"{kind}/kept/band_{'none' if band is None else band}", kept / samples
        elif isinstance(value, (int, float)) and name not in ("step", "epoch"):
            yield f"{kind}/{name}", value


def _val_sentence(row: dict[str, Any]) -> str:
    ema = f"; EMA {row['ema_top1']:.2%}" if row.get("ema_top1") is not None else ""
    return (
        f"step {row['step']:,} ({row['phase']}): validation top-1 {row['top1']:.2%}, top-5 {row['top5']:.2%}, "
        f"mean per class {row['mean_class_top1']:.2%}, loss {row['loss']:.3f}{ema}"
    )


def _phase_sentence(row: dict[str, Any]) -> str:
    reason = f" ({row['reason']})" if row.get("reason") else ""
    return f"step {row['step']:,}: phase {row['phase']}: {row['event']}{reason}"


_SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {"val": _val_sentence, "phase": _phase_sentence}
