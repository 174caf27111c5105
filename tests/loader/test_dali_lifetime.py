"""DALI's pipelines, threads and memory: nothing is left behind, in whatever way a loop or its process ends."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from wv_loader import Batch, Loader

pytestmark = pytest.mark.usefixtures("dali")
WAIT_S = 60
"""After which a test that would hang fails."""
EPOCH = 10
"""Batches."""


@pytest.fixture
def make(small_dataset: Path) -> Callable[..., Loader]:
    def make_loader(**options: object) -> Loader:
        asked = {"batch_size": 24, "size_px": 16, "seed": 3, "threads": 2, "engine": "dali-cpu", **options}
        return Loader(small_dataset, **asked)  # type: ignore[arg-type]

    return make_loader


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("images", "labels", "ordinals", "valid")) and (
        a.index == b.index
    )


def copy_of(batch: Batch) -> torch.Tensor:
    return batch.images.clone()


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("wv-")]


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own; it may use no more than WAIT_S."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)


SOAK = """
import gc, json, os, sys, threading
import torch
from wv_loader import Loader

def figures():
    gc.collect()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return [pages * os.sysconf("SC_PAGE_SIZE"), threading.active_count(), len(os.listdir("/proc/self/task")),
            len(os.listdir("/proc/self/fd"))]

rows, before = [], len(os.listdir("/proc/self/task"))
with Loader(sys.argv[1], batch_size=40, size_px=32, balance=0.5, threads=2, bad_budget=None, read_ahead_bytes=1 << 20,
            engine="dali-cpu") as loader:
    for epoch in range(50):
        for batch in loader:
            if epoch % 10 == 8:  # leaving in the middle must not leave anything either
                break
            assert batch.valid.any()
        loader.set_epoch(epoch + 1)
        if epoch % 10 == 9:
            rows.append(figures())
            loader.close()  # the next loop makes a new pipeline
    refused = sorted(loader._supply._dali.refused)
json.dump([rows, figures(), before, refused], sys.stdout)
"""
ALLOWED_BYTES = 3_000_000


def test_fifty_epochs_leave_memory_threads_and_files_as_they_were(
    tmp_path: Path, draw_dataset: Callable[..., Path]
) -> None:
    shards = draw_dataset(tmp_path / "shards", [40, 40], shard_samples=40)
    done = run(SOAK, shards)
    assert done.returncode == 0, done.stderr
    rows, closed, before, refused = json.loads(done.stdout)
    after_warm_up, end = rows[1], rows[-1]
    assert end[0] - after_warm_up[0] < ALLOWED_BYTES, rows
    assert end[1:] == after_warm_up[1:] == [1, *after_warm_up[2:]], rows
    assert closed[2] == before
    assert refused == []


def dali_threads() -> int:
    """Of its thread pool, beside those that only wait for work of others."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has ended since it was listed
            found += (task / "comm").read_text().startswith("[DALI][TP")
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_dali_has_the_threads_that_were_asked_for_and_torch_keeps_its_own(
    make: Callable[..., Loader], threads: int
) -> None:
    gc.collect()
    before, of_torch = dali_threads(), torch.get_num_threads()
    with make(threads=threads) as loader:
        list(loader)
        assert dali_threads() - before == threads
    assert dali_threads() == before
    assert torch.get_num_threads() == of_torch


@pytest.mark.parametrize("prefetch", [1, 3])
def test_loops_that_are_left_anywhere_go_on_with_the_batches_of_one_that_was_not(
    make: Callable[..., Loader], prefetch: int
) -> None:
    chance = random.Random(prefetch)
    with make() as loader:
        whole = [*loader, *loader, *loader]
    got: list[Batch] = []
    with make(prefetch=prefetch) as loader:
        while len(got) < 3 * EPOCH:
            stop = chance.randrange(5)
            for i, batch in enumerate(loader):
                got.append(batch)
                if i == stop or len(got) == 3 * EPOCH:
                    break
        assert not our_threads()
    assert all(same(a, b) for a, b in zip(got, whole, strict=True))


def test_kept_batches_stay_what_they_were(make: Callable[..., Loader]) -> None:
    with make() as loader:
        kept = [(batch, copy_of(batch)) for batch in [*loader, *loader]]
        list(loader)
    gc.collect()
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)
    assert len({batch.images.data_ptr() for batch, _ in kept}) == len(kept)


def test_two_loaders_at_a_time_give_what_each_gives_alone(make: Callable[..., Loader]) -> None:
    options = {"train": False, "size_px": 20, "batch_size": 30}
    with make() as training, make(**options) as evaluation:
        alone, evaluated = [*training, *training], list(evaluation)
    with make() as training, make(**options) as evaluation:
        got: list[Batch] = []
        again: list[list[Batch]] = []
        for _ in range(2):
            for batch in training:
                got.append(batch)
                if batch.index in (1, 6):
                    again.append(list(evaluation))
    assert all(same(a, b) for a, b in zip(got, alone, strict=True))
    assert len(again) == 4
    assert all(same(a, b) for one in again for a, b in zip(one, evaluated, strict=True))


def test_a_closed_loader_goes_without_the_garbage_collector(make: Callable[..., Loader]) -> None:
    """What it holds, pinned and on a GPU too, would else wait for a collection."""
    loader = make()
    list(loader)
    loader.close()
    left = weakref.ref(loader._supply)
    gc.disable()
    try:
        del loader
        assert left() is None
    finally:
        gc.enable()


def test_closing_twice_and_looping_again(make: Callable[..., Loader]) -> None:
    loader = make()
    first = list(loader)
    loader.close()
    loader.close()
    loader.set_epoch(0)
    assert all(same(a, b) for a, b in zip(loader, first, strict=True))
    loader.close()


@pytest.mark.parametrize("where", ["transform", "body", "left", "forgotten"])
def test_a_loader_that_nobody_closes_leaves_nothing(make: Callable[..., Loader], where: str) -> None:
    from wv_loader import decode_dali

    def transform(batch: Batch) -> Batch:
        if where == "transform" and batch.index == 1:
            raise ZeroDivisionError
        return batch

    def loop() -> None:
        for batch in make(transform=transform):
            if where == "left":
                break
            if where == "body" and batch.index == 1:
                raise ZeroDivisionError

    gc.collect()
    before = len(decode_dali._living)
    if where in ("transform", "body"):
        with pytest.raises(ZeroDivisionError):
            loop()
    elif where == "left":
        loop()
    else:
        iterator = iter(make())
        next(iterator)
        del iterator
    gc.collect()
    assert not our_threads()
    assert len(decode_dali._living) == before


# -- how a process ends ----------------------------------------------------------------------------------------------

BEGIN = """
import gc, multiprocessing, os, sys, threading
import torch
from wv_loader import Loader, LoaderError

def make():
    return Loader(sys.argv[1], batch_size=24, size_px=16, seed=3, threads=2, engine="dali-cpu")

loader = make()
batches = iter(loader)
first = next(batches)
"""


def test_a_program_may_end_in_the_middle_of_a_loop(small_dataset: Path) -> None:
    """While DALI is busy, as batches of two are not taken at once."""
    done = run(BEGIN.replace("batch_size=24", "batch_size=2, prefetch=8"), small_dataset)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_ends_a_loop(small_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        BEGIN
        + """
try:
    while True:
        for batch in loader:
            if loader.stats.batches == 3:
                print("looping", flush=True)
except KeyboardInterrupt as error:
    print("interrupted")
    del error
left = [thread for thread in threading.enumerate() if thread.name.startswith("wv-")]
for thread in left:  # where the end of an epoch was interrupted they are ending
    thread.join(20)
print([thread.name for thread in left if thread.is_alive()])
"""
    )
    program = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", small_dataset],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "looping\n"
    program.send_signal(signal.SIGINT)
    try:
        out, err = program.communicate(timeout=WAIT_S)
    finally:
        program.kill()
    assert (program.returncode, out, err) == (0, "interrupted\n[]\n", "")


FORK = """
def fork(*steps):
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        return
    for step in steps:
        try:
            step()
        except LoaderError as error:
            print(error, flush=True)
    sys.exit(0)

def own():
    with make() as mine:
        batch = next(iter(mine))
        print(torch.equal(batch.images, first.images), flush=True)

def forget():
    global loader, batches
    del loader, batches
    gc.collect()

fork()
fork(lambda: next(batches), lambda: list(loader), loader.close, forget, own)
print(len(list(batches)))
fork(lambda: list(loader))
data = torch.utils.data.TensorDataset(torch.arange(8))
print(sum(int(x.sum()) for (x,) in torch.utils.data.DataLoader(data, num_workers=2, multiprocessing_context="fork")))
child = multiprocessing.get_context("fork").Process(target=own)
child.start()
child.join()
print(child.exitcode)
print(len(list(loader)))
"""
FORKED = """\
0
this loop over the loader began in another process, and its threads are there; make the Loader in the new process
engine dali-cpu: DALI does not live on in a forked process; make the Loader in the new process, or start it by spawn
True
0
9
engine dali-cpu: DALI does not live on in a forked process; make the Loader in the new process, or start it by spawn
0
28
True
0
10
"""


def test_processes_that_are_forked_off_beside_a_pipeline_end(small_dataset: Path) -> None:
    """Each exits as usual, with what it has inherited, in the middle of a loop and after it; the parent goes on."""
    done = run(BEGIN + FORK, small_dataset)
    assert (done.returncode, done.stdout, done.stderr) == (0, FORKED, "")


def test_a_process_that_is_spawned_makes_its_own_loader(small_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        """
import multiprocessing, sys
from wv_loader import Loader

def work(shards, found):
    with Loader(shards, batch_size=24, size_px=16, seed=3, threads=2, engine="dali-cpu") as loader:
        found.put([int(batch.images.sum()) for batch in loader])

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    found = [spawn.SimpleQueue() for _ in range(2)]
    work(sys.argv[1], found[0])
    child = spawn.Process(target=work, args=(sys.argv[1], found[1]))
    child.start()
    print(found[0].get() == found[1].get())
    child.join()
    print(child.exitcode)
"""
    )
    command = [sys.executable, tmp_path / "program.py", small_dataset]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n0\n", "", 0)
