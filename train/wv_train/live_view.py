"""The live view of a run on a terminal: a few lines at the bottom that are drawn anew once a second.

Holds what was last heard and draws it at the terminal's present size, whatever that is. `progress` feeds it; it
measures nothing but time.

    gated  2 d 3 h                                   ends about Sat 14:03
    run        ━━━━━━━━━━━━━━━━━╺━━━━━━━━  43%  172,000/400,000  2 d 20 h
    2/3 gated  ━━━━━━━━╺━━━━━━━━━━━━━━━━━  30%   51,300/170,000  1 d 6 h
    loss 1.234          top-1 61.2%         kept 73.4%
    …
    ! 2 warnings, last: step 12,300: the gate keeps 100 of 2,560 samples
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

_RATE_WINDOW_S = 1800.0
"""An ETA goes by the steps of the last half hour, so validation and saving are in it."""
_QUIET_S = 15.0
"""Without a step for this long, and for five times as long as a step takes, the view says since when."""
_FACT_WIDTH = 19
"""Columns of a fact at least."""
_ECHO_WIDTH = 6
"""Of what a person types meanwhile."""
_COUNTS_WIDTH = 59
"""Columns from which bars have counts beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseLength:
    """What the view knows of a phase beforehand."""

    name: str
    steps: int
    at_most: bool = False
    """It may end sooner, at a plateau."""


class LiveView:
    """A renderable for `rich.live.Live`. Its methods only note things; drawing happens in Live's thread."""

    def __init__(
        self,
        *,
        run: str,
        phases: Sequence[PhaseLength],
        total_steps: int,
        done: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._phases, self._clock = run, tuple(phases), clock
        self._begun = clock()
        self._total = max(1, total_steps)
        self._step, self._phase, self._phase_step = done, "", 0
        self._timed: deque[tuple[float, int]] = deque([(self._begun, done)])  # (when, step), at most one a second
        self._last_step_at = self._begun
        self._train: dict[str, Any] = {}
        self._val: dict[str, Any] = {}
        self._best: float | None = None
        self._saved: tuple[int, float] | None = None
        self._warnings: list[str] = []

    # What is heard

    def step(self, phase: str, step: int, phase_step: int | None) -> None:
        """A step is done; without `phase_step` the phase is taken to have begun when its name was first heard."""
        now = self._clock()
        if phase_step is None:
            phase_step = self._phase_step + step - self._step if phase == self._phase else 1
        if phase != self._phase and self._phase:  # other phases take other times
            self._timed = deque([(now, step)])
        self._phase, self._step, self._phase_step, self._last_step_at = phase, step, phase_step, now
        if now - self._timed[-1][0] >= 1.0:
            self._timed.append((now, step))
        while len(self._timed) > 2 and now - self._timed[0][0] > _RATE_WINDOW_S:
            self._timed.popleft()

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics is finished."""
        if row["kind"] == "train":
            self._train = row
        elif row["kind"] == "val":
            self._val = row
            score = row.get("ema_top1", row["top1"])  # as the trainer chooses its best weights
            self._best = score if self._best is None else max(score, self._best)

    def saved(self, step: int) -> None:
        """A checkpoint of this step is in place, or on its way there."""
        self._saved = (step, self._clock())

    def warn(self, text: str) -> None:
        """Keep a warning in sight."""
        self._warnings.append(text)

    # What is drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = max(12, options.max_width - 1), max(1, console.height - 1)
        lines = self.lines(width, height, ascii_only=options.ascii_only)
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            # The cursor stays behind the last line, and a terminal writes ^C there: it must not wrap.
            room = width if number < len(lines) - 1 else width - _ECHO_WIDTH
            line.rstrip()
            line.truncate(room, overflow="ellipsis")
            yield from line.render(console)

    def lines(self, width: int, height: int, *, ascii_only: bool = False) -> list[Text]:
        """At most `height` lines of `width` columns; what matters least is left out first."""
        warnings = self._warning_lines(width, most=1 if height < 14 else 3)
        head = [self._title(width), *self._bars(width, ascii_only)]
        facts = self._facts(width)
        room = max(0, height - len(head) - len(warnings))
        return [*head, *facts[:room], *warnings][:height]

    def _title(self, width: int) -> Text:
        now = self._clock()
        title = Text(self._run or "run", style="bold")
        title.append(f"  {duration(now - self._begun)}", style="dim")
        if quiet := self._quiet(now):
            end, style = f"no step for {duration(quiet)}", "yellow"
        else:
            left, _ = self._times_left()
            end, style = ("" if left is None else f"ends about {_clock_time(left)}"), "dim"
        title.truncate(max(0, width - len(end) - 2), overflow="ellipsis")
        title.append(" " * max(2, width - title.cell_len - len(end)))
        return title.append(end, style=style)

    def _bars(self, width: int, ascii_only: bool) -> list[Text]:
        """The run's bar, and the phase's where its length is known."""
        left, phase_left = self._times_left()
        number, phase = self._present_phase()
        some_at_most = any(other.at_most for other in self._phases[max(0, number) :])
        rows = [("run", self._step, self._run_steps(), left, some_at_most)]
        if phase is not None:
            name = f"{number + 1}/{len(self._phases)} {phase.name}"
            rows.append((name, self._phase_step, phase.steps, phase_left, phase.at_most))
        elif self._phase:
            rows[0] = (self._phase, *rows[0][1:])
        label_width = min(max(len(row[0]) for row in rows), max(8, width // 4))
        counts = [f"{'≤' if row[4] and not ascii_only else ''}{row[2]:,}" for row in rows]
        counts = [f"{row[1]:,}/{count}" for row, count in zip(rows, counts, strict=True)]
        ends = ["" if row[3] is None else duration(row[3]) for row in rows]
        counts_width, end_width = max(map(len, counts)), max(map(len, ends))
        lines = []
        for (name, done, steps, _, _), count, end in zip(rows, counts, ends, strict=True):
            fraction = min(1.0, done / max(1, steps))
            beside = f" {min(100, int(100 * fraction)):3d}%"
            if width >= _COUNTS_WIDTH:
                beside += f"  {count:>{counts_width}}"
            beside += f"  {end:<{end_width}}" if end_width else ""
            label = Text(name)
            label.truncate(label_width, overflow="ellipsis", pad=True)
            line = Text.assemble(label, " ")
            line.append_text(_bar(fraction, max(4, width - label_width - 1 - len(beside)), ascii_only))
            lines.append(line.append(beside))
        return lines

    def _facts(self, width: int) -> list[Text]:
        """Facts in columns of equal width, the most important first."""
        columns = max(1, min(4, width // _FACT_WIDTH))
        cell_width = width // columns
        cells = self._cells(cell_width)
        lines = []
        for first in range(0, len(cells), columns):
            line = Text()
            for cell in cells[first : first + columns]:
                cell.truncate(cell_width - 1, overflow="ellipsis", pad=True)
                line.append_text(cell).append(" ")
            lines.append(line)
        return lines

    def _cells(self, cell_width: int) -> list[Text]:
        train, val, now = self._train, self._val, self._clock()
        wide = cell_width >= 26
        cells = [
            _cell("loss", _number(train.get("loss"))),
            _cell("top-1", _percent(train.get("top1"))),
            _cell("valid", _percent(val.get("top1"), digits=2)),
        ]
        if val.get("ema_top1") is not None:
            cells.append(_cell("EMA", _percent(val["ema_top1"], digits=2)))
        cells.append(_cell("best", _percent(self._best, digits=2)))
        kept = train.get("kept_fraction")
        cells += [
            _cell("kept", _percent(kept), "red" if kept is not None and kept < 0.1 else ""),
            _cell("threshold" if wide else "thresh", _short(train.get("threshold"))),
        ]
        if train.get("kept_precision") is not None:
            cells.append(_cell("kept right", _percent(train["kept_precision"])))
        cells += [
            _cell("lr body", _short(train.get("lr_backbone"))),
            _cell("lr head", _short(train.get("lr_head"))),
            _cell("img/s", _count(train.get("images_per_s"))),
            _cell("no wait", _count(train.get("images_per_s_without_wait"))),
        ]
        waited = waited_fraction(train)
        cells.append(_cell("waited", _percent(waited), "yellow" if waited is not None and waited > 0.05 else ""))
        if self._saved is None:
            cells.append(_cell("saved", "not yet"))
        else:
            step, when = self._saved
            age = duration(now - when)
            cells.append(_cell("saved", f"{step:,}, {age} ago" if wide else f"{age} ago"))
        return cells

    def _warning_lines(self, width: int, most: int) -> list[Text]:
        """The last warnings, newest last; with fewer lines than warnings, how many there were."""
        if not self._warnings:
            return []
        shown = self._warnings[-most:]
        hidden = len(self._warnings) - len(shown)
        lines = [Text(f"! {text}", style="yellow") for text in shown]
        if hidden:
            count = f"{hidden:,} more before;" if width >= 50 else f"+{hidden:,}"
            lines[0] = Text(f"! {count} {shown[0]}", style="yellow")
        return lines

    # Time

    def _present_phase(self) -> tuple[int, PhaseLength | None]:
        for number, phase in enumerate(self._phases):
            if phase.name == self._phase:
                return number, phase
        return -1, None

    def _run_steps(self) -> int:
        """Steps of the whole run, as far as is known now: a phase may have ended before its length."""
        number, phase = self._present_phase()
        if phase is None:
            return self._total
        return self._step - self._phase_step + sum(other.steps for other in self._phases[number:])

    def _seconds_per_step(self) -> float | None:
        first, last = self._timed[0], (self._last_step_at, self._step)
        return (last[0] - first[0]) / (last[1] - first[1]) if last[1] > first[1] and last[0] > first[0] else None

    def _times_left(self) -> tuple[float | None, float | None]:
        """Seconds to the end of the run, and of the phase."""
        pace = self._seconds_per_step()
        if pace is None:
            return None, None
        _, phase = self._present_phase()
        of_phase = None if phase is None else max(0, phase.steps - self._phase_step) * pace
        return max(0, self._run_steps() - self._step) * pace, of_phase

    def _quiet(self, now: float) -> float | None:
        """Seconds since the last step, where that is unusual: validation, a slow disk, a rank that hangs."""
        since, pace = now - self._last_step_at, self._seconds_per_step() or 0.0
        return since if since > max(_QUIET_S, 5 * pace) else None


def waited_fraction(row: dict[str, Any]) -> float | None:
    """Share of the time of a train row that was waited for data; None in rows of runs that did not tell."""
    rate, without = row.get("images_per_s"), row.get("images_per_s_without_wait")
    return max(0.0, 1.0 - rate / without) if rate is not None and without else None


def duration(seconds: float) -> str:
    """The two largest units: `44 s`, `12 min`, `3 h 12 min`, `2 d 3 h`."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _clock_time(seconds_from_now: float) -> str:
    now, then = time.localtime(), time.localtime(time.time() + seconds_from_now)
    if now[:3] == then[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%a %H:%M" if seconds_from_now < 6 * 86_400 else "%d %b", then)


def _bar(fraction: float, width: int, ascii_only: bool) -> Text:
    full, rest = ("#", "-") if ascii_only else ("━", "━")
    done = int(fraction * width)
    return Text.assemble((full * done, "green"), (rest * (width - done), "bright_black"))


def _cell(label: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{label} ", "dim"), (value, style or "bold"))


def _percent(fraction: float | None, digits: int = 1) -> str:
    return "–" if fraction is None else f"{fraction:.{digits}%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
