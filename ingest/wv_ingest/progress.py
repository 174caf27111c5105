"""What a person sees while a build runs: a bar with rate, ETA and rejects; JSON lines where there is no terminal.

Everything goes to stderr. It only looks at counters and decides nothing.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from wv_ingest.pack import BYTES_READ, REJECTS, ROWS

_RATE_SECONDS = 15.0
"""Rates are over the last so many seconds."""
_LINE_SECONDS = 5.0
"""At most one JSON line of progress in this time."""


class Progress:
    """Use as a context manager, so that the bar is taken down whatever happens."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream) if self._stream.isatty() else None
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._counters: Callable[[], tuple[int, ...]] | None = None
        self._base: tuple[int, ...] = ()
        self._total = self._done = self._rejects = 0
        self._history: deque[tuple[float, int, int]] = deque()
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._take_down()

    def note(self, text: str) -> None:
        """What is being done now."""
        self._say("note", text)

    def warn(self, text: str) -> None:
        """Something that a person should know."""
        self._say("warning", text)

    def _say(self, kind: str, text: str) -> None:
        if self._console is None:
            self._line({"event": kind, "message": text})
        else:
            style = "yellow" if kind == "warning" else "dim"
            self._console.print(f"warning: {text}" if kind == "warning" else text, style=style, markup=False)

    def start(
        self,
        *,
        total_rows: int,
        done_rows: int,
        done_rejects: int,
        counters: Callable[[], tuple[int, ...]],
        what: str = "packing",
    ) -> None:
        """Show progress over `total_rows`; `counters` gives what has been done on top of `done_rows`."""
        self._total, self._done, self._rejects, self._counters = total_rows, done_rows, done_rejects, counters
        self._base = counters()
        self._history = deque([(time.monotonic(), 0, 0)])
        self._last_line = time.monotonic()
        if self._console is not None:
            self._bar = RichProgress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(what, total=total_rows, completed=done_rows, rates="")
            self._bar.start()

    def tick(self) -> None:
        """Look at the counters and show them."""
        now = time.monotonic()
        done, read, rejects = self._since_start()
        while len(self._history) > 1 and now - self._history[0][0] > _RATE_SECONDS:
            self._history.popleft()
        then, done_then, read_then = self._history[0]
        self._history.append((now, done, read))
        seconds = max(1e-6, now - then)
        rows_per_s, bytes_per_s = (done - done_then) / seconds, (read - read_then) / seconds
        if self._bar is not None:
            rates = f"{rows_per_s:,.0f} images/s · {decimal(int(bytes_per_s))}/s · {self._rejects + rejects:,} rejects"
            self._bar.update(self._task, completed=self._done + done, rates=rates)
        elif now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            left = self._total - self._done - done
            self._line(
                {
                    "event": "progress",
                    "rows": self._done + done,
                    "total": self._total,
                    "rejects": self._rejects + rejects,
                    "rows_per_s": round(rows_per_s, 1),
                    "bytes_per_s": round(bytes_per_s),
                    "eta_s": round(left / rows_per_s, 1) if rows_per_s else None,
                }
            )

    def stop(self) -> None:
        """All rows are done: show so."""
        self.tick()
        self._take_down()

    def _since_start(self) -> tuple[int, int, int]:
        """Rows, bytes read and rejects that the counters have gained since `start`."""
        assert self._counters is not None
        now = self._counters()
        return tuple(now[i] - self._base[i] for i in (ROWS, BYTES_READ, REJECTS))  # type: ignore[return-value] # three

    def _take_down(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, document: dict[str, object]) -> None:
        print(json.dumps(document), file=self._stream, flush=True)
