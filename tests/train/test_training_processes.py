"""Laws 6 and 8 with real processes: torchrun, 1 to 4 ranks, ranks killed, stopped or failing, SIGTERM, Ctrl-C.

Each process costs 4 to 5 s of CPU before its first step, and torchrun is one more: each launch shows all that it can
show, ranks whose launcher does not matter have none, and where it does not matter how a Python begins and ends they are
forked off a warm one.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig
from wv_train.job import Job, run_job
from wv_train.recipe import load_recipe
from wv_train.run_directory import RunDirectory

pytestmark = pytest.mark.slow

StartRanks = Callable[..., list[BaseProcess]]

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
TRAIN = [sys.executable, "-m", "wv_train"]
MAIN = "from wv_train.cli import main\nmain()\n"
OPTIONS = ("--device", "cpu", "--loader-threads", "1")
SHORT = ("phases.base.lr=0.02", "phases.gated.lr=0.02", "phases.gated.steps=8", "phases.finetune.steps=2")
KILL_ONE_RANK = -1
LONG = ("phases.gated.steps=60", "phases.gated.gate.end=0.1", "validate_every_epochs=5")


def _torchrun(ranks: int, *options: str) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *options]
    return [*run, "-m", "wv_train"]


def _two_ranks(port: int) -> list[str]:
    """Two ranks that no torchrun watches: each ends by itself, or not at all."""
    script = (
        f"export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}\n"
        'RANK=0 LOCAL_RANK=0 "$@" & first=$!\n'
        'RANK=1 LOCAL_RANK=1 "$@" & second=$!\n'
        "wait $first; code=$?; wait $second; exit $((code | $?))"
    )
    return ["sh", "-c", script, "sh", *TRAIN]


def _run(start: list[str], *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*start, *(str(argument) for argument in arguments), *OPTIONS]
    variables = {**ENVIRONMENT, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)


def _with_every_python_running(code: str, folder: Path) -> dict[str, str]:
    """Variables for processes in which Python runs `code` as it starts."""
    (folder / "sitecustomize.py").write_text(code)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _interrupt(start: list[str], out: Path, number: int, *arguments: object, timeout_s: float = 30) -> tuple[int, str]:
    """Start a run, send it a signal when it is well under way, wait for its end; exit code, stderr."""
    command = [*start, *(str(argument) for argument in arguments), *OPTIONS]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _await_rows(out, 8, lambda: process.poll() is None)
    if number == KILL_ONE_RANK:
        *_, last = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(last), signal.SIGKILL)
    else:
        process.send_signal(number)
    try:
        _, stderr = process.communicate(timeout=timeout_s)  # it ends soon, whatever its threads and ranks are at
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert _alive_in_session(process.pid) == []
    return process.returncode, stderr


def _await_rows(out: Path, rows: int, alive: Callable[[], bool]) -> None:
    """Wait until a run is well under way: it has written more than so many rows."""
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > rows):
        assert alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _exit_codes(ranks: list[BaseProcess]) -> list[int | None]:
    """Of ranks that are about to end; None: it has not."""
    for rank in ranks:
        rank.join(30)
    return [rank.exitcode for rank in ranks]


def _alive_in_session(session: int) -> list[str]:
    """Command lines of the processes that a run has left behind; what is dead and not yet buried does not count."""
    alive = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = status.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                alive.append((status.parent / "cmdline").read_text())
        except OSError:  # it has just ended
            continue
    return alive


def _last(out: Path) -> Checkpoint:
    return Checkpoint.load(out / "checkpoints" / "last.pt")


def _assert_bit_for_bit(one: Path, other: Path) -> None:
    a, b = _last(one), _last(other)
    assert a.position == b.position
    assert all(torch.equal(value, b.model[name]) for name, value in a.model.items())
    assert torch.equal(a.ledger, b.ledger)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    """Without batch statistics, so that ranks can be compared; long enough to be hit in its middle."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "long.toml", "model=wv_resnet_16_32_64_gn", *LONG)


def _here(recipe: Path, shards: Path, val: Path | None, out: Path, *overrides: str, resume: bool = False) -> None:
    """The same run in this process, with as many threads as the others have."""
    data = DataConfig(shards=shards, val=val, loader_threads=1)
    loaded = load_recipe(str(recipe), overrides)
    run_job(Job(recipe=loaded, data=data, out=out, resume=resume, device="cpu", threads=1))


@pytest.fixture(scope="module")
def whole(recipe: Path, small_dataset: Path, val_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    _here(recipe, small_dataset, val_dataset, out)
    return out


@pytest.fixture(scope="module")
def alone(recipe: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, which no launcher started."""
    out = tmp_path_factory.mktemp("alone") / "run"
    _here(recipe, small_dataset, None, out, *SHORT)
    return out


def test_killed_and_resumed_it_is_the_same_run(
    whole: Path, recipe: Path, small_dataset: Path, val_dataset: Path, tmp_path: Path, start_ranks: StartRanks
) -> None:
    out = tmp_path / "run"
    arguments = ("--shards", small_dataset, "--val", val_dataset, "--recipe", recipe, "--out", out)
    (process,) = start_ranks(1, MAIN, *arguments, *OPTIONS, stderr=tmp_path / "stderr")
    _await_rows(out, 8, lambda: process.exitcode is None)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < _last(out).position["step"] < _last(whole).position["step"]
    _here(recipe, small_dataset, val_dataset, out, resume=True)
    _assert_bit_for_bit(whole, out)


def test_asked_to_stop_it_saves_names_the_resume_command_and_exits(
    whole: Path, recipe: Path, small_dataset: Path, val_dataset: Path, tmp_path: Path
) -> None:
    """Other signals take the same way, and are held against it in test_signals.py."""
    out = tmp_path / "run"
    arguments = ("--shards", small_dataset, "--val", val_dataset, "--recipe", recipe, "--out", out)
    code, stderr = _interrupt(TRAIN, out, signal.SIGTERM, *arguments)
    assert code == 143
    stopped_at = _last(out).position["step"]
    assert f"after step {stopped_at}, saved; resume with: wv-train --resume --out {out}" in stderr
    assert "Traceback" not in stderr
    _here(recipe, small_dataset, val_dataset, out, resume=True)
    _assert_bit_for_bit(whole, out)


def test_reads_that_never_return_cannot_keep_it_alive(recipe: Path, small_dataset: Path, tmp_path: Path) -> None:
    """As of a server that is gone: Ctrl-C to stop, to interrupt, to end."""
    never = "import os, threading\nos.preadv = lambda *_: threading.Event().wait()\n"
    environment = {**ENVIRONMENT, **_with_every_python_running(never, tmp_path)}
    out = tmp_path / "run"
    command = [*TRAIN, "--shards", small_dataset, "--recipe", recipe, "--out", out, *OPTIONS]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and "start" in metrics.read_text()):  # the first phase begins, and stands
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    presses = 0
    while process.poll() is None and presses < 20:
        process.send_signal(signal.SIGINT)
        presses += 1
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    _, stderr = process.communicate(timeout=10)
    assert presses >= 2  # one alone waits for the step that never comes
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_ranks_see_the_same_samples_and_learn_the_same(
    alone: Path, recipe: Path, small_dataset: Path, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Law 8 over 25 steps in three phases: equal but for the order of sums.

    A rank leaves without taking Python down, where a thread of gloo that still wants it would abort the process.
    """
    out = tmp_path / "run"
    changes = [f"--set={change}" for change in SHORT]
    code = "import atexit, os\n'RANK' in os.environ and atexit.register(print, 'Python goes down')\n"
    environment = _with_every_python_running(code, tmp_path)
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", out, *changes)
    done = _run(_two_ranks(free_port()), *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert "Python goes down" not in done.stdout
    assert done.stderr.count("world size") == 1  # rank 0 alone speaks
    assert "world size 2" in done.stderr
    assert "Warning" not in done.stderr
    a, b = _last(alone), _last(out)
    assert a.position == b.position
    one, other = np.load(alone / "ledger.npy"), np.load(out / "ledger.npy")
    assert one["gated"].sum() > 0
    assert (one["seen"] == other["seen"]).all()
    assert (one["gated"] == other["gated"]).all()
    np.testing.assert_allclose(other["label_conf_mean"], one["label_conf_mean"], atol=1e-5)
    for name, value in a.model.items():
        torch.testing.assert_close(b.model[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_killed_on_four_ranks_and_stopped_on_two_it_continues_on_one_with_the_batches_that_were_next(
    whole: Path, recipe: Path, small_dataset: Path, tmp_path: Path, start_ranks: StartRanks
) -> None:
    """kill -9 of one rank of four; two go on until SIGTERM, as torchrun passes it on. Every end says how to go on."""
    out = tmp_path / "run"
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", out)
    four = start_ranks(4, MAIN, *arguments, *OPTIONS, stderr=tmp_path / "killed")
    _await_rows(out, 8, lambda: four[0].exitcode is None)
    four[3].kill()
    assert _exit_codes(four) == [1, 1, 1, -signal.SIGKILL]
    stderr = (tmp_path / "killed").read_text()
    assert "lost another rank at step" in stderr
    assert f"resume with: torchrun --nproc-per-node 4 -m wv_train --resume --out {out}" in stderr
    assert "Traceback" not in "".join(line for line in stderr.splitlines() if "wv-train" in line)
    killed_at = _last(out).position["step"]
    assert 0 < killed_at < _last(whole).position["step"]
    two = start_ranks(2, MAIN, "--resume", "--out", out, *OPTIONS, stderr=tmp_path / "stopped")
    _await_rows(out, 14, lambda: two[0].exitcode is None)
    for rank in two:
        rank.terminate()
    assert _exit_codes(two) == [143, 143]
    stderr = (tmp_path / "stopped").read_text()
    assert f"resuming at step {killed_at}" in stderr
    assert "resume with: torchrun --nproc-per-node 2 -m wv_train --resume" in stderr
    assert killed_at < _last(out).position["step"] < _last(whole).position["step"]
    _here(recipe, small_dataset, None, out, resume=True)
    assert _last(out).position == _last(whole).position
    assert (np.load(out / "ledger.npy")["seen"] == np.load(whole / "ledger.npy")["seen"]).all()


def test_a_killed_rank_is_started_again_by_torchrun_and_the_run_goes_on_at_its_last_checkpoint(
    whole: Path, recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """Without --resume: the launch that began a run may go on with it. Another may not."""
    out = tmp_path / "run"
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", out)
    start = _torchrun(2, "--max-restarts", "1")
    code, stderr = _interrupt(start, out, KILL_ONE_RANK, *arguments, timeout_s=120)
    assert code == 0, stderr
    assert stderr.count("resuming at step") == 1
    assert "resuming at step 0" not in stderr
    assert _last(out).position == _last(whole).position
    assert (np.load(out / "ledger.npy")["seen"] == np.load(whole / "ledger.npy")["seen"]).all()
    assert not RunDirectory(out).begun_by("another launch")


def test_a_rank_that_stands_still_is_given_up_with_what_to_do(
    recipe: Path, small_dataset: Path, tmp_path: Path, start_ranks: StartRanks
) -> None:
    """SIGSTOP: its connections stay open, it says nothing and does not end by itself."""
    out, stderr = tmp_path / "run", tmp_path / "stderr"
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", out, "--rank-timeout-s", 3)
    first, second = start_ranks(2, MAIN, *arguments, *OPTIONS, stderr=stderr)
    _await_rows(out, 8, lambda: first.exitcode is None)
    assert second.pid is not None
    os.kill(second.pid, signal.SIGSTOP)
    first.join(60)
    second.kill()  # as torchrun does with one that stands still, 30 s later
    second.join()
    assert first.exitcode == 1
    lost = r"^wv-train: lost another rank at step \d+ \(.*Timed out.*--rank-timeout-s"
    assert re.search(lost, stderr.read_text(), re.MULTILINE)


def test_what_failed_on_one_rank_is_said_first(
    recipe: Path, small_dataset: Path, tmp_path: Path, start_ranks: StartRanks
) -> None:
    """Rank 1's mount has gone: its own line stands before those of the ranks that lost it."""
    gone = """
import errno, os
def preadv(*_):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
if os.environ["RANK"] == "1":
    os.preadv = preadv
"""
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", tmp_path / "run", "--bad-budget", "0")
    ranks = start_ranks(2, gone + MAIN, *arguments, *OPTIONS, stderr=tmp_path / "stderr")
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [1, 1]
    stderr = (tmp_path / "stderr").read_text()
    ends = [line for line in stderr.splitlines() if line.startswith("wv-train")]
    assert ends[0].startswith("wv-train (rank 1): "), stderr
    assert "Stale file handle" in ends[0]
    assert all("lost another rank" in line for line in ends[1:])
