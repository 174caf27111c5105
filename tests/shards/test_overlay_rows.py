"""An overlay in the making: taken up where it was left, never read before it is whole, never two at a time."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wv_shards import (
    CorruptDataError,
    NotADatasetError,
    OutputExistsError,
    Overlay,
    OverlayMismatchError,
    OverlayRows,
    overlay_rows,
)

DIGEST = "0" * 32


def opened(base: Path, **changes: Any) -> OverlayRows:
    options: dict[str, Any] = {"kind": "features", "manifest_digest": DIGEST, "shape": (10, 3), "dtype": np.float16}
    return OverlayRows(base, **{**options, "identity": {"weights": "a"}, "commit_s": 0.0, **changes})


def fill(rows: OverlayRows, start: int, stop: int) -> None:
    rows.array[start:stop] = np.arange(start, stop)[:, None] + np.arange(3) / 4
    rows.advance(stop)


def test_filled_in_pieces_by_several_processes_it_is_the_overlay_that_is_saved_at_once(tmp_path: Path) -> None:
    """Down to its bytes."""
    base = tmp_path / "features"
    with opened(base) as rows:
        fill(rows, 0, 4)
        rows.counts["bad"] = 2
    with opened(base) as rows:
        assert (rows.done, rows.counts, rows.anew) == (4, {"bad": 2}, None)
        fill(rows, 4, 10)
    with opened(base) as rows:
        assert rows.done == 10
        rows.finish(info={"run": "x"}, neutral=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.json", "features.npy"]
    array = (np.arange(10)[:, None] + np.arange(3) / 4).astype(np.float16)
    info = {"weights": "a", "run": "x"}
    Overlay(kind="features", array=array, manifest_digest=DIGEST, info=info, neutral=0.5).save(tmp_path / "whole")
    for suffix in (".npy", ".json"):
        assert base.with_suffix(suffix).read_bytes() == (tmp_path / "whole").with_suffix(suffix).read_bytes()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"identity": {"weights": "b"}}, "weights was a, is b"),
        ({"manifest_digest": "1" * 32}, f"manifest_digest was {DIGEST}, is {'1' * 32}"),
        ({"kind": "teacher"}, "kind was features, is teacher"),
        ({"shape": (11, 3)}, "its array is damaged"),
    ],
)
def test_what_was_begun_of_something_else_is_thrown_away_and_named(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    with opened(tmp_path / "features") as rows:
        fill(rows, 0, 4)
    with opened(tmp_path / "features", **changes) as rows:
        assert (rows.done, rows.anew) == (0, what)
        assert not rows.array.any()


def test_rows_that_no_note_speaks_of_are_not_taken_up(tmp_path: Path) -> None:
    """A kill between the rows and the note, and a note that is no JSON."""
    with opened(tmp_path / "features", commit_s=1e9) as rows:
        fill(rows, 0, 4)
        rows.advance(4, now=True)
        fill(rows, 4, 8)
        note = (tmp_path / "features.json.part").read_bytes()
    (tmp_path / "features.json.part").write_bytes(note)
    with opened(tmp_path / "features") as rows:
        assert rows.done == 4
    (tmp_path / "features.json.part").write_bytes(note[:20])
    with opened(tmp_path / "features") as rows:
        assert (rows.done, rows.anew) == (0, "its notes cannot be read")


def test_killed_by_the_system_it_goes_on_from_the_last_note(tmp_path: Path) -> None:
    base = tmp_path / "features"
    child = os.fork()
    if not child:  # it ends here, whatever happens
        try:
            rows = opened(base, commit_s=1e9)
            fill(rows, 0, 4)
            rows.advance(4, now=True)
            fill(rows, 4, 8)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.raises(NotADatasetError):
        Overlay.load(base, manifest_digest=DIGEST)
    with opened(base) as rows:
        assert (rows.done, rows.anew) == (4, None)
        assert (rows.array[3] == np.float16([3, 3.25, 3.5])).all()


def test_one_process_at_a_time_makes_it_and_nobody_reads_it_before(tmp_path: Path) -> None:
    base = tmp_path / "features"
    with opened(base):
        with pytest.raises(OutputExistsError, match="another process is making it"):
            opened(base)
        with pytest.raises(NotADatasetError):
            Overlay.load(base, manifest_digest=DIGEST)


@pytest.mark.parametrize("kill_at", range(4))
def test_killed_while_it_is_finished_it_is_made_again_or_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Over an older overlay, which a reader finds until the new one is there."""
    base, identity = tmp_path / "features", {"weights": "a"}
    Overlay(kind="features", array=np.zeros(10), manifest_digest=DIGEST, info={"weights": "old"}).save(base)
    calls = iter(range(100))

    def killed(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(calls) == kill_at:
                raise KeyboardInterrupt
            return real(*arguments)

        return call

    rows = opened(base)
    fill(rows, 0, 10)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed(os.replace))
        patched.setattr(overlay_rows, "fsync_directory", killed(overlay_rows.fsync_directory))
        try:
            rows.finish(info={})
        except KeyboardInterrupt:
            os.close(rows._descriptor)
    found = Overlay.load(base, manifest_digest=DIGEST, mapped=True)
    finished = OverlayRows.is_finished(base, kind="features", manifest_digest=DIGEST, identity=identity)
    assert found.info["weights"] == ("a" if finished else "old")
    assert finished == (found.array.shape == (10, 3))
    if not finished:
        with opened(base) as again:
            assert again.done == 10
            again.finish(info={})
    assert Overlay.load(base, manifest_digest=DIGEST).array[9, 0] == 9


def test_a_mapped_overlay_is_verified_read_only_and_refused_elsewhere(tmp_path: Path) -> None:
    base = tmp_path / "features"
    with opened(base) as rows:
        fill(rows, 0, 10)
        rows.finish(info={})
    mapped = Overlay.load(base, manifest_digest=DIGEST, kind="features", mapped=True)
    loaded = Overlay.load(base, manifest_digest=DIGEST, kind="features")
    assert (isinstance(mapped.array, np.memmap), isinstance(loaded.array, np.memmap)) == (True, False)
    assert np.array_equal(mapped.array, loaded.array)
    assert mapped.checksum == loaded.checksum
    assert mapped.checksum == json.loads(base.with_suffix(".json").read_text())["checksum"]
    with pytest.raises(ValueError, match="read-only"):
        mapped.array[0] = 1
    with pytest.raises(OverlayMismatchError):
        Overlay.load(base, manifest_digest="1" * 32, mapped=True)
    with base.with_suffix(".npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(CorruptDataError):
        Overlay.load(base, manifest_digest=DIGEST, mapped=True)
    assert not OverlayRows.is_finished(base, kind="features", manifest_digest=DIGEST, identity={"weights": "a"})


def test_a_disk_that_is_too_small_is_an_error_before_the_work(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as failed:
        opened(small_disk / "features", shape=(10_000_000, 3))
    assert failed.value.filename == str(small_disk / "features.npy.part")
    with opened(small_disk / "features") as rows:
        assert rows.done == 0
