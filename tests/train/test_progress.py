"""What a run tells: the live view at every size, JSON lines where nobody watches, TensorBoard's names."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from wv_train.live_view import LiveView, PhaseLength, duration, waited_fraction
from wv_train.progress import RunLog, Screen, scalars
from wv_train.run_directory import RunDirectory

PHASES = (
    PhaseLength(name="base", steps=200_000, at_most=True),
    PhaseLength(name="gated", steps=170_000),
    PhaseLength(name="finetune", steps=10_000),
)
TRAIN: dict[str, Any] = {
    "kind": "train",
    "step": 172_000,
    "phase": "gated",
    "epoch": 3,
    "loss": 1.2341,
    "top1": 0.612,
    "kept_fraction": 0.734,
    "kept_by_band": [[None, 0, 0], [12, 100, 40], [15, 300, 270]],
    "kept_precision": 0.91,
    "threshold": 0.1824,
    "lr_backbone": 0.0125,
    "lr_head": 0.125,
    "images_per_s": 1234.0,
    "images_per_s_without_wait": 1300.0,
    "wait_s": 1.0,
    "samples": 10,
}
VAL: dict[str, Any] = {
    "kind": "val",
    "step": 170_000,
    "phase": "gated",
    "epoch": 3,
    "top1": 0.6412,
    "top5": 0.85,
    "mean_class_top1": 0.6,
    "loss": 1.5,
    "samples": 50_000,
    "ema_top1": 0.6499,
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def view_of(clock: Clock, *, phases: tuple[PhaseLength, ...] = PHASES, done: int = 0) -> LiveView:
    return LiveView(run="gated", phases=phases, total_steps=380_000, done=done, clock=clock)


def busy_view(clock: Clock) -> LiveView:
    """In the second phase; the first has ended at a plateau after 120,000 steps. A step takes a second."""
    view = view_of(clock, done=171_000)
    for step in range(171_020, 172_001, 20):
        clock.now += 20
        view.step("gated", step, step - 120_000)
    view.row(TRAIN)
    view.row(VAL)
    view.saved(171_500)
    clock.now += 10
    return view


def text_of(view: LiveView, width: int, height: int) -> list[str]:
    return [line.plain.rstrip() for line in view.lines(width, height)]


@pytest.mark.parametrize(("columns", "rows"), [(60, 10), (60, 15), (120, 30), (80, 24), (30, 6), (12, 2), (300, 80)])
def test_the_view_fits_every_terminal(columns: int, rows: int, clock: Clock) -> None:
    view = busy_view(clock)
    for number in range(30):
        view.warn(f"step {number}: the gate keeps 3 of 320 samples; lower phases.gated.gate.start, or gate a share")
    console = Console(file=io.StringIO(), width=columns, height=rows, force_terminal=True, color_system=None)
    lines = console.render_lines(view, pad=False)
    assert len(lines) < rows, "a region as high as the terminal scrolls"
    for line in lines:
        assert sum(segment.cell_length for segment in line) < columns
    if columns >= 30:
        assert sum(segment.cell_length for segment in lines[-1]) <= columns - len("^C^C"), "an echo would wrap"
    if rows > 4:
        assert "step 29: " in "".join(segment.text for segment in lines[-1]), "the last warning stays in sight"


@pytest.mark.parametrize(("columns", "rows"), [(59, 14), (119, 29)])
def test_the_view_says_everything_of_a_run(columns: int, rows: int, clock: Clock) -> None:
    lines = text_of(busy_view(clock), columns, rows)
    said = " ".join(lines)
    for part in (
        *(
            "gated  16 min",
            "loss 1.234",
            "top-1 61.2%",
            "valid 64.12%",
            "best 64.99%",
            "EMA 64.99%",
            "kept 73.4%",
            "0.182",
        ),
        *(
            "lr body 0.0125",
            "lr head 0.125",
            "img/s 1,234",
            "no wait 1,300",
            "waited 5.1%",
            "kept right 91.0%",
            "10 s ago",
        ),
        *("172,000/300,000", "52,000/170,000", "2/3 gated"),
    ):
        assert part in said, part


def test_the_end_is_foretold_by_the_pace_of_the_phase_and_by_what_is_left(clock: Clock) -> None:
    """120,000 steps of the first phase are done, not 200,000: 300,000 in all, 128,000 left, a second each."""
    run, phase = text_of(busy_view(clock), 119, 29)[1:3]
    assert run.startswith("run")
    assert "57%" in run
    assert "172,000/300,000" in run, "no plateau is ahead: the number is exact"
    assert run.endswith(duration(128_000))
    assert phase.startswith("2/3 gated")
    assert "30%" in phase
    assert phase.endswith(duration(118_000))


def test_a_phase_that_may_end_sooner_says_so(clock: Clock) -> None:
    view = view_of(clock)
    view.step("base", 1, 1)
    assert all("≤" in line for line in text_of(view, 119, 29)[1:3])
    assert all(ord(character) < 128 for character in view.lines(119, 29, ascii_only=True)[1].plain)


def test_without_phases_there_is_one_bar_by_the_total(clock: Clock) -> None:
    view = view_of(clock, phases=())
    view.step("base", 95_000, None)
    lines = text_of(view, 119, 29)
    assert lines[1].startswith("base ")
    assert "95,000/380,000" in lines[1]
    assert " 25%" in lines[1]


def test_silence_is_shown_when_it_is_long_for_this_run(clock: Clock) -> None:
    view = view_of(clock)
    for step in range(1, 11):
        clock.now += 6
        view.step("base", step, step)
    clock.now += 29
    assert "no step" not in text_of(view, 79, 23)[0], "a step takes 6 s"
    clock.now += 2
    assert text_of(view, 79, 23)[0].endswith("no step for 31 s")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99.4, "99 s"), (100, "1 min"), (3599, "59 min"), (11_520, "3 h 12 min"), (183_600, "2 d 3 h")],
)
def test_durations_have_two_units_at_most(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_waiting_is_unknown_where_a_run_did_not_tell() -> None:
    assert waited_fraction({"images_per_s": 90.0, "images_per_s_without_wait": 100.0}) == pytest.approx(0.1)
    assert waited_fraction({"images_per_s": 90.0}) is None
    assert waited_fraction({"images_per_s": 0.0, "images_per_s_without_wait": 0.0}) is None


# The screen


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[Screen, io.StringIO]:
    """A screen on a terminal of 80 columns that remembers all that was written to it."""
    screen, written = Screen(), io.StringIO()
    screen.console = Console(file=written, width=80, height=24, force_terminal=True, soft_wrap=True, highlight=False)
    screen._watched = True
    return screen, written


def test_where_nobody_watches_rows_are_json_and_warnings_text(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.begin(100, 0, run="r", phases=PHASES)
    screen.step("base", 1, 1)
    guard = {"kind": "guard", "step": 1200, "phase": "gated", "text": "the threshold was lowered"}
    for row in (TRAIN, VAL, guard):
        screen.row(row)
    screen.saved(1)
    screen.end()
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [TRAIN, VAL, guard]
    assert err == "warning: step 1,200: the threshold was lowered\n"


def test_a_terminal_is_left_with_its_cursor_and_without_the_view(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen, written = watched(monkeypatch)
    screen.begin(380_000, 0, run="a-run", phases=PHASES)
    assert written.getvalue().rfind("\x1b[?25h") > written.getvalue().rfind("\x1b[?25l"), "even if it is killed now"
    screen.step("base", 1, 1)
    screen.row(TRAIN)
    screen.row(VAL)
    screen.row({"kind": "warning", "step": 7, "phase": "base", "text": "little is kept"})
    screen.row({"kind": "phase", "step": 9, "phase": "base", "event": "end", "reason": "plateau"})
    assert screen._live is not None
    screen._live.refresh()
    screen.end()
    screen.say("goodbye")
    text = written.getvalue()
    for line in (
        "step 170,000 (gated): validation top-1 64.12%, top-5 85.00%, mean per class 60.00%, loss 1.500; EMA 64.99%",
        "warning: step 7: little is kept",
        "step 9: phase base: end (plateau)",
        "! step 7: little is kept",
        "loss 1.234",
    ):
        assert line in re.sub(r"\x1b\[[\d;]*m", "", text), line
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
    tail = text[text.rindex("loss ") :]
    assert tail.count("\x1b[1A\x1b[2K") >= 7, "every line of the view is erased"
    assert text.endswith("goodbye\n")


def test_rows_go_to_a_pipe_also_beside_a_live_view(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen, written = watched(monkeypatch)
    screen.begin(10, 0)
    screen.row(TRAIN)
    screen.end()
    assert json.loads(capsys.readouterr().out) == TRAIN
    assert "{" not in written.getvalue()


# Metrics


def test_tensorboard_has_kind_and_field_and_a_name_for_every_band() -> None:
    assert dict(scalars(TRAIN)) == {
        **{
            f"train/{name}": TRAIN[name]
            for name in TRAIN
            if name not in ("kind", "step", "phase", "epoch", "kept_by_band")
        },
        "train/kept/band_12": 0.4,
        "train/kept/band_15": 0.9,
    }
    assert not list(scalars({"kind": "phase", "step": 3, "phase": "base", "event": "start"}))


def test_a_log_writes_rows_everywhere_and_its_texts_once(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    make_log: Callable[..., RunLog],
) -> None:
    # TensorBoard reads files by name: second, then a counter as text, in which 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    log = make_log(0)
    log.row({**TRAIN, "step": 5})
    length = log.sync()
    log.row({**TRAIN, "step": 10})
    log.close()
    again = make_log(5)
    again.row({**TRAIN, "step": 10})
    again.close()
    assert (tmp_path / "metrics.jsonl").read_text().index('"step": 10') > length
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/kept/band_15")] == [5, 10]
    (text,) = board.Tensors("recipe/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    model = 1\n    \n    [a]"


@pytest.fixture
def make_log(tmp_path: Path) -> Callable[..., RunLog]:
    def make(step: int) -> RunLog:
        return RunLog(RunDirectory(tmp_path), Screen(), step=step, texts={"recipe": "model = 1\n\n[a]\n"})

    return make
