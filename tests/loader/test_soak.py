"""Hours in minutes: 200 epochs in a process of its own, whose memory, threads and files stay what they were."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOAK = """
import gc, json, os, sys, threading
import torch
from wv_loader import Loader

def figures():
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return [pages * os.sysconf("SC_PAGE_SIZE"), threading.active_count(), len(os.listdir("/proc/self/fd"))]

rows = []
with Loader(sys.argv[1], batch_size=40, size_px=32, balance=0.5, threads=2, bad_budget=None, quarantine=sys.argv[2],
            read_ahead_bytes=1 << 20) as loader:
    for epoch in range(200):
        for batch in loader:
            if epoch == 150:  # leaving in the middle must not leave anything either
                break
            assert batch.valid.any()
        loader.set_epoch(epoch + 1)
        if epoch % 20 == 19:
            rows.append(figures())
json.dump(rows, sys.stdout)
"""
ALLOWED_BYTES = 3_000_000


def soak(shards: Path, log: Path) -> list[list[int]]:
    """(bytes of memory, threads, open files) after each 20 epochs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", SOAK, str(shards), str(log)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, draw_dataset: Callable[..., Path]) -> Path:
    """Two shards, and a bad sample, which is met in every epoch."""
    directory = draw_dataset(tmp_path_factory.mktemp("soak") / "shards", [40, 40], shard_samples=40)
    tar = sorted(directory.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[900] ^= 1
    tar.write_bytes(data)
    return directory


def test_two_hundred_epochs_leave_memory_threads_and_files_as_they_were(shards: Path, tmp_path: Path) -> None:
    rows = soak(shards, tmp_path / "log")
    after_warm_up, end = rows[2], rows[-1]
    assert end[0] - after_warm_up[0] < ALLOWED_BYTES, rows
    assert end[1:] == after_warm_up[1:]
    assert end[1] == 1
    assert len((tmp_path / "log").read_text().splitlines()) == 1
