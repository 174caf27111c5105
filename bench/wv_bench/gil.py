"""`wv-bench gil`: how long the loader holds Python's lock for an image, and so how many cores one process can feed.

The lock is given away in few places: while the engine makes pixels and while a file is read. The processor time of the
process, less that of these calls, is what needed the lock. It does not depend on who else uses the cores, as
any measure of waiting for the lock would. With Pillow it is too low, by the Python that runs within its calls.
"""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
from PIL import Image

from wv_bench.measure import machine
from wv_bench.options import json_option, write_json
from wv_loader import ENGINES, Loader

Call = tuple[Any, str]
"""A module or class, and the name of one of its functions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GilUse:
    """What some work cost."""

    items: int
    cpu_s: float
    """Processor time of this process."""
    free_s: float
    """The part of it in calls that give the lock away."""

    @property
    def gil_s(self) -> float:
        """Time that the lock was needed, at most."""
        return self.cpu_s - self.free_s

    @property
    def cores(self) -> float:
        """Cores that are busy when the lock is always held: above that, more threads of one process do not help."""
        return self.cpu_s / self.gil_s


def gil_use(work: Callable[[], int], free_calls: Sequence[Call]) -> GilUse:
    """Run some work, and tell its time with the lock from its time without.

    Args:
        work: returns the items it handled.
        free_calls: functions that give the lock away for nearly all of their time.
    """
    spent: list[float] = []
    inside = threading.local()  # one of them, so that one within another counts once
    with ExitStack() as stack:
        for owner, name in free_calls:
            stack.enter_context(_timed(owner, name, spent, inside))
        before = _cpu_seconds()
        items = work()
        return GilUse(items=items, cpu_s=_cpu_seconds() - before, free_s=sum(spent))


@click.command("gil", epilog="Example: wv-bench gil shards/ --engine turbo")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="Decoder.")
@click.option("--size-px", type=click.IntRange(1), default=224, show_default=True, help="Side of the images.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Decoding threads.")
@click.option("--batches", type=click.IntRange(1), default=16, show_default=True, help="Batches to take.")
@json_option()
def command(
    shards: Path, engine: str, size_px: int, batch_size: int, threads: int, batches: int, json_file: Path | None
) -> None:
    """Microseconds of Python's lock per image, and the cores that one process of the loader can feed."""
    with Loader(shards, batch_size=batch_size, size_px=size_px, threads=threads, engine=engine) as loader:
        if loader.epoch_samples < batch_size:
            raise click.UsageError(
                f"{loader.epoch_samples} samples are less than a batch: lower --batch-size {batch_size}"
            )
        _take(loader, 1)
        use = gil_use(lambda: _take(loader, batches), _free_calls(loader.engine.name))
        about = machine(("torch", "numpy"))
        about["versions"]["decoder"] = loader.engine.description
    result = {
        "images": use.items,
        "gil_us_per_image": 1e6 * use.gil_s / use.items,
        "cpu_us_per_image": 1e6 * use.cpu_s / use.items,
        "cores_per_process": use.cores,
        "machine": about,
    }
    if not write_json(json_file, result):
        return
    print(
        f"{use.items} images of {size_px} px, batch {batch_size}: {result['gil_us_per_image']:.1f} µs of Python's lock "
        f"and {result['cpu_us_per_image']:.0f} µs of processor time per image: one process can feed {use.cores:.0f} "
        f"cores; more take processes=P\n{about['processor']}, {about['cores']} cores, Python {about['python']}, "
        f"{about['versions']['decoder']}"
    )


def _take(loader: Loader, batches: int) -> int:
    samples = taken = 0
    while taken < batches:
        for batch in loader:
            samples += int(batch.valid.sum())  # an epoch's last batch may have empty slots
            taken += 1
            if taken == batches:
                break
    return samples


def _free_calls(engine: str) -> list[Call]:
    decode = (Image.Image, "resize") if engine == "pillow" else (import_module("wv_loader._turbo"), "decode")
    return [(os, "preadv"), decode]


@contextmanager
def _timed(owner: Any, name: str, spent: list[float], inside: threading.local) -> Iterator[None]:
    function = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        if getattr(inside, "call", False):
            return function(*arguments, **options)
        inside.call = True
        before = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            spent.append(time.thread_time() - before)
            inside.call = False

    with patch.object(owner, name, timed):
        yield


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
