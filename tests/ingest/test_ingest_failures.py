"""The failure drill: what a build meets in a real night, by message, exit code, and a second run with the same bytes.

Kills of workers and of the parent by chance, full disks and builds that meet are in test_ingest_kill and _cli.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from wv_ingest.build import BuildResult
from wv_shards import Manifest, UnfinishedBuildError

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]
BuildCommand = Callable[..., list[str]]
StartRanks = Callable[..., list[BaseProcess]]
Completed = subprocess.CompletedProcess[str]

KILL = """
import importlib, os, signal, sys
def killing(original):
    def call(*arguments, **options):
        if sys.argv[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
where, _, name = sys.argv[1].rpartition(":")
module, _, kind = where.partition(":")
owner = importlib.import_module(module)
owner = getattr(owner, kind) if kind else owner
setattr(owner, name, killing(getattr(owner, name)))
from wv_ingest.cli import main
main(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("function", "when"),
    [
        ("wv_ingest.build:read_source", "after"),
        ("wv_ingest.build:cut", "after"),
        ("wv_ingest.build:save_state", "after"),
        ("wv_ingest.finalize:write_index", "after"),
        ("wv_ingest.finalize:_write_table", "after"),
        ("wv_ingest.finalize:os:replace", "after"),
        ("wv_ingest.finalize:Manifest:save", "before"),
        ("wv_ingest.finalize:remove_build_dir", "before"),
    ],
)
def test_killed_in_any_phase_the_same_command_ends_with_the_same_bytes(
    webvision: Path,
    reference: Path,
    tmp_path: Path,
    build_command: BuildCommand,
    folder_bytes: FolderBytes,
    build_small: Build,
    start_ranks: StartRanks,
    function: str,
    when: str,
) -> None:
    """kill -9 of the parent at an exact point; workers end by themselves."""
    out = tmp_path / "out"
    command = build_command(webvision, out, workers=1)
    (killed,) = start_ranks(1, KILL, function, when, *command[3:], stderr=tmp_path / "stderr")
    killed.join(120)
    assert killed.exitcode == -9, (tmp_path / "stderr").read_text()
    if function.endswith("remove_build_dir"):
        assert Manifest.load(out).rows == 264, "it is finished"
    elif out.exists():
        with pytest.raises(UnfinishedBuildError):
            Manifest.load(out)
    build_small(webvision, out)  # the same options
    assert folder_bytes(out) == folder_bytes(reference)


@pytest.fixture
def bound() -> Callable[[list[str]], Completed]:
    """Run a command that permissions bind, even root's."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        prefix = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode:
            pytest.skip("root is bound by no permission, and setpriv can't drop that here")
    return lambda command: subprocess.run([*prefix, *command], check=False, capture_output=True, text=True)


def test_a_folder_that_can_not_be_read_costs_its_rows(
    tmp_path: Path,
    draw_webvision: Callable[..., Path],
    build_command: BuildCommand,
    bound: Callable[[list[str]], Completed],
    build_small: Build,
) -> None:
    """Its rows are rejected as unreadable; a fresh build after the repair packs them."""
    raw = draw_webvision(tmp_path / "raw", [40, 20])
    (raw / "google" / "q0002").chmod(0)
    done = bound(build_command(raw, tmp_path / "1", workers=1))
    (raw / "google" / "q0002").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert Manifest.load(tmp_path / "1").rejects["unreadable"] == 10
    assert build_small(raw, tmp_path / "2").manifest.rejects.get("unreadable", 0) == 0


def test_an_output_that_can_not_be_written_is_one_line(
    webvision: Path,
    reference: Path,
    tmp_path: Path,
    build_command: BuildCommand,
    folder_bytes: FolderBytes,
    bound: Callable[[list[str]], Completed],
) -> None:
    out = tmp_path / "closed" / "out"
    out.parent.mkdir(mode=0o555)
    done = bound(build_command(webvision, out, workers=1))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("Permission denied")
    assert "Traceback" not in done.stderr
    assert not out.exists()
    out.parent.chmod(0o755)
    done = bound(build_command(webvision, out, workers=1))
    assert done.returncode == 0, done.stderr
    assert folder_bytes(out) == folder_bytes(reference)


def test_files_that_change_or_vanish_meanwhile_cost_themselves(
    tmp_path: Path,
    draw_webvision: Callable[..., Path],
    encode: Draw,
    build_command: BuildCommand,
    folder_bytes: FolderBytes,
    build_small: Build,
    start_ranks: StartRanks,
) -> None:
    """Between plan and packing one file goes and one becomes another; a second build of what is there now agrees."""
    raw, out = draw_webvision(tmp_path / "raw", [40, 20]), tmp_path / "out"
    command = build_command(raw, out, workers=1)
    (killed,) = start_ranks(1, KILL, "wv_ingest.build:save_state", "after", *command[3:], stderr=tmp_path / "stderr")
    killed.join(120)
    assert killed.exitcode == -9
    (raw / "google" / "q0001" / "img0000.jpg").unlink()
    (raw / "flickr" / "q0001" / "img0001.jpg").write_bytes(encode(77, 50, 40))
    assert build_small(raw, out).manifest.rejects["missing"] == 1
    build_small(raw, tmp_path / "fresh", workers=2)
    assert folder_bytes(out) == folder_bytes(tmp_path / "fresh")
