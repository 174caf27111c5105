"""Worker processes: the batches of threads bit for bit, and no process, memory or descriptor left behind."""

import gc
import itertools
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from wv_loader import Batch, Loader, LoaderError

WAIT_MS = 30_000
"""After which a test that would hang fails."""


@pytest.fixture
def make(small_dataset: Path) -> Callable[..., Loader]:
    def make_loader(**options: object) -> Loader:
        return Loader(small_dataset, **{"batch_size": 24, "size_px": 16, "seed": 3, "threads": 2, **options})  # type: ignore[arg-type]

    return make_loader


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("images", "labels", "ordinals", "valid")) and (
        a.index == b.index
    )


def await_end(pid: int) -> None:
    """Wait for a process that is not a child of ours to end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    ended = poll.poll(WAIT_MS)
    os.close(descriptor)
    assert ended, f"process {pid} still runs"


def test_processes_give_the_batches_of_threads_and_leave_nothing_behind(
    make: Callable[..., Loader], small_dataset: Path
) -> None:
    gc.collect()
    files, mapped = len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("wv-loader")
    with make(balance=0.3) as training, make(train=False) as evaluation:
        expected, evaluated = list(training), list(evaluation)
    with make(balance=0.3, processes=2, threads=3) as loader:
        got = list(loader)
        assert all(same(a, b) for a, b in zip(got, expected, strict=True))
        assert loader.stats.bytes > 0
        assert loader.stats.decode_seconds_total > 0
        workers = loader._supply.workers
        assert workers is not None
        pids = workers.pids
        assert all("libtorch" not in Path(f"/proc/{pid}/maps").read_text() for pid in pids)  # 200 MB each
        loader.set_epoch(0)
        for batch in loader:  # leave early, with batches under way
            if batch.index == 1:
                break
        again = [batch.index for batch in loader if same(batch, expected[batch.index])]
        assert again == list(range(2, len(expected)))
        assert loader._supply.workers is workers  # they stay
        addresses = {batch.images.data_ptr() for batch in got}
        assert len(addresses) == len(got)  # kept batches have memory of their own
    for pid in pids:
        await_end(pid)
    assert all(same(a, b) for a, b in zip(got, expected, strict=True))  # outlive their loader
    with make(train=False, processes=3) as loader:
        assert all(same(a, b) for a, b in zip(loader, evaluated, strict=True))
    del got, batch, workers, loader, training, evaluation
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert Path("/proc/self/maps").read_text().count("wv-loader") == mapped
    assert not [t for t in threading.enumerate() if t.name.startswith("wv-")]


def test_a_worker_that_is_killed_is_an_error_with_its_reason_and_the_next_loop_starts_new_ones(
    make: Callable[..., Loader],
) -> None:
    with make(processes=2, prefetch=1) as loader:
        batches = iter(loader)
        next(batches)
        assert loader._supply.workers is not None
        os.kill(loader._supply.workers.pids[1], signal.SIGKILL)
        with pytest.raises(LoaderError, match=r"worker process \d+ of the loader was killed by SIGKILL") as raised:
            list(batches)
        assert "\n" not in str(raised.value)
        done = loader.state_dict()["batches"]
        assert done >= 1
        assert next(batch.index for batch in loader) == done


def test_an_exception_in_a_worker_reaches_the_consumer_with_its_traceback(
    make: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wv_loader.loader.make_engine", lambda *_, **__: BrokenEngine())
    with make(processes=1) as loader, pytest.raises(RuntimeError, match="decoder on fire") as raised:
        list(loader)
    notes = "\n".join(raised.value.__notes__)
    assert "in batch 0 of the loader" in notes
    assert 'raise RuntimeError("decoder on fire")' in notes


def test_a_worker_that_was_stopped_holds_nobody_up(
    make: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wv_loader.processes._PATIENCE_S", 0.2)
    with make(processes=2) as loader:
        batches = iter(loader)
        next(batches)
        assert loader._supply.workers is not None
        pids = loader._supply.workers.pids
        os.kill(pids[0], signal.SIGSTOP)
        batches.close()  # type: ignore[attr-defined]
        assert [batch.index for batch in loader] == list(range(1, 10))
        for pid in pids:
            await_end(pid)


def no_children() -> bool:
    """No worker of a loader; the server that tests fork processes off (`warm`) is not one."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return not [pid for pid in children if "wv_loader.worker" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.parametrize("where", ["transform", "body", "left"])
def test_workers_do_not_outlive_an_exception_though_nobody_closes_the_loader(
    make: Callable[..., Loader], where: str
) -> None:
    def transform(batch: Batch) -> Batch:
        if where == "transform" and batch.index == 1:
            raise RuntimeError("broken")
        return batch

    gc.collect()
    gc.disable()
    try:
        with suppress(RuntimeError):
            for batch in make(processes=2, transform=transform):
                assert not no_children()
                if where == "left":
                    break
                if batch.index == 1:
                    raise RuntimeError("broken")
        assert no_children()
    finally:
        gc.enable()


def test_a_worker_that_may_open_too_few_files_says_so(make: Callable[..., Loader]) -> None:
    with make(processes=2) as loader:
        next(iter(loader))
        workers = loader._supply.workers
        assert workers is not None
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for pid in workers.pids:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(LoaderError, match=r"a worker process of the loader may open 3 files, which is too few"):
            list(itertools.chain(loader, loader))  # keeps all batches


class BrokenEngine:
    name = "broken"

    def decode(self, *arguments: object) -> None:  # noqa: ARG002 - an engine's
        raise RuntimeError("decoder on fire")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 25}, "processes must be between 0 and 24, this rank's share of the streams, got 25"),
        ({"processes": 9, "rank": 0, "world_size": 3}, "between 0 and 8"),
        ({"processes": 25, "train": False}, "between 0 and 24, this rank's share of a batch"),
        ({"processes": -1}, "got -1"),
    ],
)
def test_more_processes_than_there_is_to_share_are_refused(
    make: Callable[..., Loader], options: dict[str, object], message: str
) -> None:
    with pytest.raises(LoaderError, match=message):
        make(**options)


SCRIPT = """
import gc, sys, threading
from wv_loader import Loader

loader = Loader(sys.argv[1], batch_size=24, size_px=16, threads=2, processes=int(sys.argv[2]))
try:
    while True:
        for batch in loader:
            if loader.stats.batches == 3:
                print(*(loader._supply.workers.pids if loader._supply.workers else ()), flush=True)
except KeyboardInterrupt as error:
    del error
print(sorted(t.name for t in threading.enumerate() if t.name not in ("MainThread", "wv-receive")), flush=True)
if sys.argv[3] == "hang":
    sys.stdin.read()
"""


def run_script(script: Path, shards: Path, processes: int, end: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A program in the middle of an epoch, and its worker processes."""
    script.write_text(SCRIPT)
    program = subprocess.Popen(
        [sys.executable, script, shards, str(processes), end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    return program, [int(pid) for pid in program.stdout.readline().split()]


@pytest.mark.parametrize("processes", [0, 2])
def test_ctrl_c_ends_threads_and_processes_without_a_word(small_dataset: Path, tmp_path: Path, processes: int) -> None:
    program, pids = run_script(tmp_path / "program.py", small_dataset, processes, "end")
    program.send_signal(signal.SIGINT)
    try:
        out, err = program.communicate(timeout=WAIT_MS / 1000)
    finally:
        program.kill()
    assert (program.returncode, out, err) == (0, "[]\n", "")
    assert len(pids) == processes
    for pid in pids:
        await_end(pid)


def test_workers_end_when_the_program_is_killed(small_dataset: Path, tmp_path: Path) -> None:
    program, pids = run_script(tmp_path / "program.py", small_dataset, 2, "hang")
    assert len(pids) == 2
    program.kill()
    _, err = program.communicate(timeout=WAIT_MS / 1000)
    for pid in pids:
        await_end(pid)
    assert err == ""
