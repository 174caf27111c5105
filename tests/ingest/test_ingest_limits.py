"""Items that crash, hang or eat memory cost themselves, not the job and not the pool."""

import io
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

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


@pytest.mark.parametrize(
    ("reason", "limits"),
    [
        ("decoder-cpu-limit", WorkerLimits(max_cpu_s=0.2)),
        ("decoder-memory-limit", WorkerLimits(max_memory_mb=100)),
    ],
)
def test_a_greedy_file_is_rejected_alone_and_alike_for_any_number_of_workers(
    tmp_path: Path,
    encode: Callable[..., bytes],
    write_list: Callable[..., Path],
    build_small: Callable[..., object],
    folder_bytes: Callable[[Path], dict[str, bytes]],
    reason: str,
    limits: WorkerLimits,
) -> None:
    """A PNG of half a megabyte that is 98 million pixels: within the limits of the header, if only just."""
    names = [f"{i}.jpg" for i in range(20)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(encode(i))
    buffer = io.BytesIO()
    Image.new("RGB", (9900, 9900)).save(buffer, "PNG", compress_level=1)
    (tmp_path / "greedy.png").write_bytes(buffer.getvalue())
    source = write_list(tmp_path / "list.csv", [(name, 0) for name in [*names[:9], "greedy.png", *names[9:]]])
    for workers in (1, 2):
        build_small(source, tmp_path / f"out{workers}", workers=workers, limits=limits)
    rejects = pq.read_table(tmp_path / "out1" / "rejects.parquet").to_pylist()
    assert [(row["path"], row["reason"]) for row in rejects] == [("greedy.png", reason)]
    assert folder_bytes(tmp_path / "out1") == folder_bytes(tmp_path / "out2")
