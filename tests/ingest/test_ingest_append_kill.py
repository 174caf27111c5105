"""Law 2 for `append`: killed anywhere, run again, same bytes; readers see the old data set, the new, or a refusal."""

import fcntl
import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wv_ingest.append import AppendOptions, append, finish_swap
from wv_ingest.build import BuildResult
from wv_ingest.errors import BuildMismatchError
from wv_ingest.exclude import exclude_keys
from wv_ingest.progress import Progress
from wv_shards import APPEND_DIR, Dataset, Manifest, OutputExistsError, Overlay, UnfinishedBuildError, verify

FolderBytes = Callable[[Path], dict[str, bytes]]
Draw = Callable[..., bytes]
StartIngest = Callable[..., "subprocess.Popen[str]"]
Ingest = Callable[..., subprocess.CompletedProcess[str]]


class Killed(BaseException):
    """Stands for a kill at a certain call."""


@pytest.fixture(scope="module")
def grown_raw(webvision: Path, tmp_path_factory: pytest.TempPathFactory, encode: Draw) -> Path:
    """`webvision` with 200 more rows. Read-only by agreement."""
    raw = tmp_path_factory.mktemp("grown") / "raw"
    shutil.copytree(webvision, raw)
    with open(raw / "info" / "train_filelist_google.txt", "a") as file:
        for i in range(200):
            path = f"google/q{i % 5 + 1:04d}/new{i:03d}.jpg"
            (raw / path).parent.mkdir(exist_ok=True)
            (raw / path).write_bytes(encode(50_000 + i) if i % 9 else b"")
            file.write(f"{path} {i % 5}\n")
    return raw


@pytest.fixture(scope="module")
def grown(reference: Path, grown_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`reference`, appended to in one go. Read-only by agreement."""
    shards = tmp_path_factory.mktemp("grown") / "shards"
    shutil.copytree(reference, shards)
    grow(shards, grown_raw)
    return shards


@pytest.fixture
def shards(reference: Path, tmp_path: Path) -> Path:
    shutil.copytree(reference, tmp_path / "shards")
    return tmp_path / "shards"


def grow(shards: Path, raw: Path) -> None:
    with Progress(io.StringIO()) as progress:
        append(shards, raw, AppendOptions(workers=1, max_reject_fraction=0.5), progress)


ARGUMENTS = ("--max-reject-fraction", 0.5, "--workers")


@pytest.mark.parametrize("point", ["plan.arrow.tmp", 1, 3, "joined/samples.parquet.tmp"])
def test_an_append_killed_anywhere_ends_with_the_same_bytes(
    shards: Path,
    reference: Path,
    grown_raw: Path,
    grown: Path,
    point: str | int,
    folder_bytes: FolderBytes,
    start_ingest: StartIngest,
    ingest: Ingest,
) -> None:
    """kill -9 of the parent as soon as a file appears or so many shards are done; then the same command again."""
    with start_ingest("append", shards, grown_raw, *ARGUMENTS, 2) as process:
        while process.poll() is None:
            if reached(shards / APPEND_DIR, point):
                process.kill()
                process.wait()
            time.sleep(0.0005)  # leaves the CPU to the append
    if process.returncode and (shards / "manifest.json").is_file():
        with Dataset.open(shards) as dataset:
            assert dataset.manifest == Manifest.load(reference), "until the end it is what it was"
        assert verify(shards) == []
    again = ingest("append", shards, grown_raw, *ARGUMENTS, 3 if point == 1 else 1)
    assert again.returncode == 0, again.stderr
    assert folder_bytes(shards) == folder_bytes(grown)


def reached(append_dir: Path, point: str | int) -> bool:
    if isinstance(point, int):
        return len(list(append_dir.glob("b*.outcomes"))) >= point
    return (append_dir / point).exists()


def steps(shards: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int, action: Callable[[], object]) -> int:
    """Do `action`, and kill it before its n-th step that changes a folder; returns how many steps were done."""
    done = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            nonlocal done
            if done == kill_at:
                raise Killed
            done += 1
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except Killed:
            return done
    return -1


def test_every_step_of_the_exchange_can_be_the_last(
    shards: Path,
    reference: Path,
    grown_raw: Path,
    grown: Path,
    tmp_path: Path,
    folder_bytes: FolderBytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before each rename and removal; what readers see is the old data set, the new one, or that it is unfinished."""
    prepared = tmp_path / "prepared"
    with monkeypatch.context() as patch:
        patch.setattr("wv_ingest.append.finish_swap", kill)
        with pytest.raises(Killed):
            grow(shards, grown_raw)
    os.rename(shards, prepared)
    states = {Manifest.load(reference).digest: "old", Manifest.load(grown).digest: "new"}
    seen = set()
    kill_at = 0
    while True:
        shutil.copytree(prepared, shards)
        finished = steps(shards, monkeypatch, kill_at, lambda: finish_swap(shards)) < 0
        if (shards / "manifest.json").exists():
            assert verify(shards) == []
            seen.add(states[Manifest.load(shards).digest])
        else:
            with pytest.raises(UnfinishedBuildError, match="append` has not been finished; run the same command again"):
                Dataset.open(shards)
            seen.add("unfinished")
        if (shards / APPEND_DIR / "joined" / "manifest.json").exists():
            finish_swap(shards)  # as `append` does first
        else:
            grow(shards, grown_raw)
        assert folder_bytes(shards) == folder_bytes(grown), f"killed before step {kill_at}"
        shutil.rmtree(shards)
        if finished:
            break
        kill_at += 5 if "new" in seen else 1  # what is left then is clearing up
    assert kill_at > 20
    assert seen == {"old", "new", "unfinished"}


def kill(_: Path) -> None:
    raise Killed


def test_the_exchange_needs_no_source_and_only_append_finishes_it(
    shards: Path,
    webvision: Path,
    grown_raw: Path,
    grown: Path,
    folder_bytes: FolderBytes,
    build_small: Callable[..., BuildResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wv_ingest.append.finish_swap", kill)
        with pytest.raises(Killed):
            grow(shards, grown_raw)
    (shards / "manifest.json").unlink()
    with pytest.raises(OutputExistsError, match="`wv-ingest append` has not been finished there"):
        build_small(webvision, shards)
    grow(shards, webvision)  # finishes the first append; then finds nothing new in the smaller source
    assert folder_bytes(shards) == folder_bytes(grown)


def test_what_is_excluded_before_the_exchange_stays_excluded(
    shards: Path, grown_raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A take-down in the old data set, while the new one lies prepared beside it."""
    keys = pq.read_table(shards / "samples.parquet", columns=["key"]).column("key").to_pylist()
    exclude_keys(shards, keys[:2])
    with monkeypatch.context() as patch:
        patch.setattr("wv_ingest.append.finish_swap", kill)
        with pytest.raises(Killed):
            grow(shards, grown_raw)
    exclude_keys(shards, keys[:1], undo=True)
    exclude_keys(shards, keys[7:8])
    before = Overlay.load(shards / "exclude", manifest_digest=Manifest.load(shards).digest).array
    grow(shards, grown_raw)
    after = Overlay.load(shards / "exclude", manifest_digest=Manifest.load(shards).digest).array
    assert np.flatnonzero(before & 2).tolist() == np.flatnonzero(after & 2).tolist() == [1, 7]


def test_an_unfinished_append_of_something_else_is_refused_and_kept(
    shards: Path, webvision: Path, grown_raw: Path, tmp_path: Path, encode: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wv_ingest.append.write_tables", lambda *_: kill(shards))
        with pytest.raises(Killed):
            grow(shards, grown_raw)
    kept = sorted((shards / APPEND_DIR).glob("*.tar"))
    assert kept
    other = tmp_path / "other"
    shutil.copytree(grown_raw, other)
    with open(other / "info" / "train_filelist_google.txt", "a") as file:
        file.write("google/q0001/yet_another.jpg 0\n")
    with pytest.raises(BuildMismatchError, match=r"\.append: holds an unfinished build with"):
        grow(shards, other)
    assert sorted((shards / APPEND_DIR).glob("*.tar")) == kept
    grow(shards, grown_raw)
    assert verify(shards) == []


def test_two_appends_can_not_work_in_one_data_set(shards: Path, grown_raw: Path, ingest: Ingest) -> None:
    (shards / APPEND_DIR).mkdir()
    with open(shards / APPEND_DIR / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = ingest("append", shards, grown_raw)
    assert done.returncode == 1
    assert "another command is at work in .append; wait for it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_leaves_the_old_data_set_and_the_append_goes_on_when_there_is_space(
    small_disk: Path, webvision: Path, grown_raw: Path, grown: Path, reference: Path, ingest: Ingest
) -> None:
    subprocess.run(["mount", "-o", "remount,size=1200k", str(small_disk)], check=True)
    shards = small_disk / "shards"
    shutil.copytree(reference, shards)
    failed = ingest("append", shards, grown_raw, *ARGUMENTS, 2)
    assert failed.returncode == 1, failed.stdout
    assert failed.stderr.splitlines()[-1].startswith(
        "wv-ingest: no space left on the device; free some and run the same"
    )
    assert "Traceback" not in failed.stderr
    assert Manifest.load(shards) == Manifest.load(reference)
    assert verify(shards) == []
    assert not list(shards.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert ingest("append", shards, grown_raw, *ARGUMENTS, 2).returncode == 0
    assert Manifest.load(shards) == Manifest.load(grown)
    assert verify(shards) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_an_append_cleanly(
    shards: Path,
    reference: Path,
    grown_raw: Path,
    grown: Path,
    number: signal.Signals,
    code: int,
    start_ingest: StartIngest,
    ingest: Ingest,
) -> None:
    with start_ingest("append", shards, grown_raw, *ARGUMENTS, 1) as process:
        while process.poll() is None and not reached(shards / APPEND_DIR, 1):
            time.sleep(0.0005)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "run the same command again" in err
    assert Manifest.load(shards) == Manifest.load(reference)
    assert not list(shards.rglob("*.tmp"))
    assert ingest("append", shards, grown_raw, *ARGUMENTS, 1).returncode == 0
    assert Manifest.load(shards) == Manifest.load(grown)
