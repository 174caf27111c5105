"""Items that crash, hang or eat memory cost themselves, not the job and not the pool."""

import sys
import textwrap
from pathlib import Path

import pytest

from wv_ingest.pool import WorkerLimits, WorkerPool

HANDLER = textwrap.dedent(
    """
    import ctypes, os, signal
    from pathlib import Path

    def work(job, desk):
        done = []
        for item, what in enumerate(job):
            if desk.probe not in (None, item):
                continue
            if item in desk.verdicts:
                done.append(str(desk.verdicts[item]))
                continue
            with desk.at(item):
                if what == "crash":
                    ctypes.string_at(0)
                elif what == "spin":
                    while True:
                        pass
                elif what == "eat":
                    bytearray(2_000_000_000)
                elif what.startswith("killed-once") and not Path(what[11:]).exists():
                    Path(what[11:]).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                desk.count_up(0, 1)
                done.append("fine")
        return done
    """
)


@pytest.mark.parametrize("count", [1, 2])
def test_what_kills_its_worker_is_condemned_and_its_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    (tmp_path / "limit_handlers.py").write_text(HANDLER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "limit_handlers", raising=False)
    import limit_handlers  # type: ignore[import-not-found]

    limits = WorkerLimits(max_cpu_s=0.5, max_memory_mb=1000)
    pool: WorkerPool[list[str], list[str]] = WorkerPool(count, limit_handlers.work, limits)
    try:
        jobs = [["ok", "crash", "ok", "spin", "eat", "ok"], ["ok"], [f"killed-once{tmp_path / 'mark'}", "ok"]]
        found = sorted(pool.run(jobs), key=len)
        assert pool.counters()[0] == 6
    finally:
        pool.close()
    assert found == [["fine"], ["fine", "fine"], ["fine", "crashed", "fine", "cpu-limit", "memory-limit", "fine"]]
