"""Shard jobs on a Ray cluster: the bytes of one machine. Skipped where Ray (the extra `[ray]`) is not installed."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Completed = subprocess.CompletedProcess[str]
BuildCommand = Callable[..., list[str]]

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra [ray] is not installed")

KILL_AN_ACTOR = """
import os, signal, sys
from wv_ingest import ray_pool
give = ray_pool.RayPool._give_next
calls = 0
def killing(self, slot, waiting, busy):
    global calls
    calls += 1
    give(self, slot, waiting, busy)
    if calls == 3:
        self._ray.kill(slot.actor)
ray_pool.RayPool._give_next = killing
from wv_ingest.cli import main
main(sys.argv[1:])
"""


@needs_ray
@pytest.mark.slow
def test_on_a_cluster_the_bytes_are_those_of_one_machine(
    webvision: Path,
    reference: Path,
    tmp_path: Path,
    build_command: BuildCommand,
    folder_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    """Also when an actor is killed in the middle of its job."""
    options = build_command(webvision, tmp_path / "out", workers=2)[3:]
    command = [sys.executable, "-c", KILL_AN_ACTOR, *options, "--executor", "ray", "--ray-address", "local"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "1 actors of the Ray cluster died" in done.stderr
    assert folder_bytes(tmp_path / "out") == folder_bytes(reference)


@needs_ray
def test_a_cluster_that_is_not_there_is_one_line(
    webvision: Path, tmp_path: Path, ingest: Callable[..., Completed]
) -> None:
    done = ingest("build-shards", webvision, tmp_path / "out", "--executor", "ray")
    assert done.returncode == 1
    assert "no Ray cluster at --ray-address auto" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_message_says_how_to_install_it(
    webvision: Path, tmp_path: Path, ingest: Callable[..., Completed]
) -> None:
    done = ingest("build-shards", webvision, tmp_path / "out", "--executor", "ray")
    assert done.returncode == 1
    assert "pip install 'wv-toolkit[ray]'" in done.stderr.splitlines()[-1]
