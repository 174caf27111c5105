"""Worker processes: answers, errors, deaths. Handlers are in a module of their own, which spawned processes import."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wv_ingest.errors import WorkerDiedError
from wv_ingest.pool import WorkerPool

HANDLERS = textwrap.dedent(
    """
    import os, time

    def work(job, desk):
        if job == "fail":
            raise KeyError("said so")
        if job == "die":
            os._exit(3)
        if job == "sleep":
            time.sleep(300)
        for _ in range(job):
            desk.count_up(0, 1)
            desk.count_up(1, 10)
        return job * job

    def shout(job, desk):
        heard = []
        for loud in job:
            if loud:
                os.write(2, b"TIFFReadDirectory: Warning\\n")
            heard.append(desk.complained())
        os.write(2, b"after the last item")
        return heard
    """
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    (tmp_path / "pool_handlers.py").write_text(HANDLERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pool_handlers", raising=False)
    import pool_handlers  # type: ignore[import-not-found]

    handler: Callable[..., int] = pool_handlers.work
    return handler


def test_every_job_is_answered_once_and_counted(work: Callable[..., int]) -> None:
    pool: WorkerPool[int, int] = WorkerPool(2, work)
    try:
        assert sorted(pool.run(range(50))) == [n * n for n in range(50)]
        assert pool.counters() == (sum(range(50)), 10 * sum(range(50)), 0, 0, 0)
        assert list(pool.run([])) == []
        assert list(pool.run([7])) == [49]
    finally:
        pool.close()


def test_what_libraries_write_to_stderr_is_noticed_item_by_item_and_not_shown(
    work: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    import pool_handlers

    pool: WorkerPool[list[bool], list[bool]] = WorkerPool(1, pool_handlers.shout)
    try:
        jobs = [[True, False, True], [False, True]]
        assert list(pool.run(jobs)) == jobs
    finally:
        pool.close()
    assert capfd.readouterr().err == ""


def test_what_a_handler_raises_comes_back(work: Callable[..., int]) -> None:
    pool: WorkerPool[object, int] = WorkerPool(1, work)
    try:
        with pytest.raises(KeyError, match="said so"):
            list(pool.run(["fail"]))
    finally:
        pool.close()


def test_a_worker_that_ends_without_an_answer_is_noticed(work: Callable[..., int]) -> None:
    pool: WorkerPool[object, int] = WorkerPool(2, work)
    try:
        with pytest.raises(WorkerDiedError, match="ended with exit code 3, as 4 before it"):
            list(pool.run([1, "die", 2]))
    finally:
        pool.close()


def test_closing_ends_a_worker_in_the_middle_of_its_job(work: Callable[..., int]) -> None:
    pool: WorkerPool[object, int] = WorkerPool(1, work)
    results = pool.run([1, "sleep"])
    assert next(results) == 1
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 4


def test_a_worker_at_work_does_not_outlive_a_killed_parent(work: Callable[..., int], tmp_path: Path) -> None:
    """It is deep in a job and touches no pipe, so only its watch over the parent can end it."""
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pool_handlers import work\n"
        "from wv_ingest.pool import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(1, work)\n"
        "    for answer in pool.run([1, 'sleep']):\n"
        "        print(pool._workers[0].process.pid, flush=True)\n"
    )
    (tmp_path / "parent.py").write_text(program)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip()
        time.sleep(0.3)
        assert worker.exists()
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while worker.exists() and (worker / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
