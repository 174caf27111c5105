"""Law 2 under fire: builds, workers and parents that are killed at any moment, and builds that meet."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wv_ingest.build import BuildResult
from wv_shards import BUILD_DIR, Manifest, OutputExistsError, UnfinishedBuildError

Build = Callable[..., BuildResult]
FolderBytes = Callable[[Path], dict[str, bytes]]
Draw = Callable[..., bytes]
Leave = Callable[[Path, Path], None]
BuildCommand = Callable[..., list[str]]


@pytest.mark.parametrize(
    "point", ["plan.arrow.tmp", 1, 4, "index.npy.tmp", "duplicates.parquet.tmp", "exclude.npy", "moving"]
)
def test_a_build_killed_anywhere_ends_with_the_same_bytes(
    webvision: Path,
    reference: Path,
    tmp_path: Path,
    point: str | int,
    folder_bytes: FolderBytes,
    build_command: BuildCommand,
    build_small: Build,
) -> None:
    """kill -9 of the parent as soon as a file appears or so many shards are done; then the same command again."""
    out = tmp_path / "out"
    at_work = isinstance(point, int)
    command = build_command(webvision, out, workers=2 if at_work else 1)
    killed = kill_when_there(command, out, point)
    if at_work and not killed:
        shutil.rmtree(out)  # the build was faster than we: once more
        killed = kill_when_there(command, out, point)
        assert killed, "easy to hit"
    if killed:
        with pytest.raises(UnfinishedBuildError):
            Manifest.load(out)
    build_small(webvision, out, workers=3 if point == 1 else 1)
    assert folder_bytes(out) == folder_bytes(reference)


def kill_when_there(command: list[str], out: Path, point: str | int) -> bool:
    """Start the command and kill it at the point; False if the manifest was there before."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if reached(out, point):
                process.kill()
                process.wait()
                break
            time.sleep(0.0005)  # leaves the CPU to the build
    return not (out / "manifest.json").exists()


def reached(out: Path, point: str | int) -> bool:
    build_dir = out / BUILD_DIR
    if isinstance(point, int):
        return len(list(build_dir.glob("b*.outcomes"))) >= point
    if point == "moving":
        return any(out.glob("*.tar"))
    return (build_dir / point).exists() or (out / point).exists()


@pytest.mark.parametrize("left", ["moved", "manifest"])
def test_a_build_killed_while_it_moves_files_goes_on(
    webvision: Path,
    reference: Path,
    tmp_path: Path,
    left: str,
    folder_bytes: FolderBytes,
    leave_unfinished: Leave,
    build_small: Build,
) -> None:
    """The moments that a kill from outside hardly hits, laid out by hand."""
    out = tmp_path / "out"
    leave_unfinished(webvision, out)
    if left == "moved":
        moved = sorted((out / BUILD_DIR).glob("*.tar"))[:2]
        assert moved
        for tar in moved:
            os.rename(tar, out / tar.name)
            os.rename(tar.with_suffix(".idx"), out / f"{tar.stem}.idx")
    else:
        shutil.copytree(reference, out, dirs_exist_ok=True)
    build_small(webvision, out)
    assert folder_bytes(out) == folder_bytes(reference)


def test_a_shard_that_was_lost_after_it_was_packed_is_packed_again(
    webvision: Path,
    reference: Path,
    tmp_path: Path,
    folder_bytes: FolderBytes,
    leave_unfinished: Leave,
    build_small: Build,
) -> None:
    out = tmp_path / "out"
    leave_unfinished(webvision, out)
    tars = sorted((out / BUILD_DIR).glob("*.tar"))
    tars[0].unlink()
    os.truncate(tars[1], 1024)
    build_small(webvision, out)
    assert folder_bytes(out) == folder_bytes(reference)


def worker_pids(parent: int) -> list[int]:
    """Processes started by the parent that work for it."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, encode: Draw, write_list: Callable[..., Path]) -> Path:
    """A list that takes some seconds: 1,500 rows, all links to one larger image."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "image.jpg").write_bytes(encode(1, 400, 300))
    for i in range(1500):
        os.link(folder / "image.jpg", folder / f"{i}.jpg")
    return write_list(folder / "list.csv", [(f"{i}.jpg", i % 3) for i in range(1500)])


def wait_for_shards(out: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not reached(out, 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_worker_is_replaced_and_condemns_no_file(
    many: Path, tmp_path: Path, start_ingest: Callable[..., "subprocess.Popen[str]"]
) -> None:
    out = tmp_path / "out"
    with start_ingest("build-shards", many, out, "--size", 64, "--workers", 2) as process:
        wait_for_shards(out, process)
        workers = worker_pids(process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert Manifest.load(out).samples == 1500
    assert not any(alive(pid) for pid in workers)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_build_cleanly(
    many: Path, tmp_path: Path, start_ingest: Callable[..., "subprocess.Popen[str]"], number: signal.Signals, code: int
) -> None:
    """No orphan, no temporary file, no traceback; as from a terminal, the whole process group gets Ctrl-C."""
    out = tmp_path / "out"
    with start_ingest("build-shards", many, out, "--size", 64, "--workers", 2, start_new_session=True) as process:
        wait_for_shards(out, process)
        workers = worker_pids(process.pid)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "run the same command again" in err
    assert not any(alive(pid) for pid in workers)
    assert not list(out.rglob("*.tmp"))
    assert [p.name for p in out.iterdir()] == [BUILD_DIR]


def test_workers_die_with_a_killed_parent(
    many: Path, tmp_path: Path, start_ingest: Callable[..., "subprocess.Popen[str]"]
) -> None:
    out = tmp_path / "out"
    with start_ingest("build-shards", many, out, "--size", 64, "--workers", 2) as process:
        wait_for_shards(out, process)
        workers = worker_pids(process.pid)
        process.kill()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_builds_can_not_share_a_folder(
    many: Path, tmp_path: Path, start_ingest: Callable[..., "subprocess.Popen[str]"], ingest: Callable[..., object]
) -> None:
    out = tmp_path / "out"
    with start_ingest("build-shards", many, out, "--size", 64, "--workers", 1) as process:
        wait_for_shards(out, process)
        second = ingest("build-shards", many, out, "--size", 64)
        process.terminate()
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].endswith(
        "another build is at work in it; wait for it or choose another folder"
    )


def test_a_build_waits_for_the_last_worker_of_a_killed_one(
    webvision: Path, tmp_path: Path, build_small: Build, monkeypatch: pytest.MonkeyPatch, leave_unfinished: Leave
) -> None:
    """A worker that still writes would spoil a shard that is packed anew."""
    out = tmp_path / "out"
    leave_unfinished(webvision, out)
    monkeypatch.setattr("wv_ingest.locks._ORPHAN_SECONDS", 0.2)
    with open(out / BUILD_DIR / "workers.lock", "rb") as orphan:
        fcntl.flock(orphan, fcntl.LOCK_SH)
        with pytest.raises(OutputExistsError, match="a worker of an earlier build is still at work"):
            build_small(webvision, out)
    assert build_small(webvision, out).manifest.rows == 264
