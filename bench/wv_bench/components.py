"""`wv-bench components`: what the loader does beside decoding, part by part, in a real epoch.

The functions that do the parts are wrapped by a clock of processor time of the thread that runs them, so that waiting
for the GIL or the disk does not count; a part within another counts once. Nothing of the loader is replaced.
"""

import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.measure import machine
from wv_bench.options import json_option, write_json
from wv_loader import ENGINES, Loader, LoaderStats
from wv_loader.faults import Faults
from wv_shards import checksum

PARTS = ("decode", "read", "checksum", "plan", "accounting")
"""`read` is the system call; `plan` has order and crops; `accounting` has counters, valid slots and failures."""


@click.command("components", epilog="Example: wv-bench components shards/train --engine turbo")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option("--size-px", type=click.IntRange(1), default=224, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Decode threads. Default: the cores.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Epochs, after one to warm up.")
@click.option("--max-samples", type=click.IntRange(1), default=8192, show_default=True, help="Of an epoch.")
@json_option()
def command(
    shards: Path,
    engine: str,
    size_px: int,
    batch_size: int,
    threads: int | None,
    repeats: int,
    max_samples: int,
    json_file: Path | None,
) -> None:
    """Processor time of the loader's parts per image, and their share of all that it takes."""
    with Loader(shards, batch_size=batch_size, size_px=size_px, engine=engine, threads=threads) as loader:
        batches = min(len(loader), -(-max_samples // batch_size))
        decoder, shown = loader.engine.description, loader.epoch_samples
        epochs = [_epoch(loader, number, batches) for number in range(repeats + 1)]
    parts = {name: statistics.median(epoch[name] for epoch in epochs[1:]) for name in (*PARTS, "total")}
    parts["rest"] = parts["total"] - sum(parts[name] for name in PARTS)
    result = {
        "machine": machine(("torch", "numpy")),
        "engine": decoder,
        "us_per_image": parts,
        "share": {name: value / parts["total"] for name, value in parts.items()},
    }
    if not write_json(json_file, result):
        return
    table = Table(title=f"{min(batches * batch_size, shown):,} images to {size_px} px, {decoder}", box=SIMPLE_HEAD)
    for heading in ("part", "CPU µs an image", "share"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name in (*PARTS, "rest", "total"):
        table.add_row(name, f"{parts[name]:.2f}", f"{parts[name] / parts['total']:.2%}")
    console = Console()
    console.print(table)
    console.print(str(result["machine"]["command"]), highlight=False)  # type: ignore[index] # a dictionary


def _epoch(loader: Loader, number: int, batches: int) -> dict[str, float]:
    """Microseconds of processor time per image: the parts, and everything that this process did meanwhile."""
    clock = _Clock()
    loader.set_epoch(number)
    with _wrapped(clock, loader):
        before = time.process_time()
        samples = 0
        for count, batch in enumerate(loader, 1):
            samples += int(batch.valid.sum())  # an epoch's last batch may have empty slots
            if count == batches:
                break
        total = time.process_time() - before
    return {**{part: 1e6 * clock.seconds[part] / samples for part in PARTS}, "total": 1e6 * total / samples}


class _Clock:
    """Adds up processor time by part, over all threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._inner = threading.local()

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed; what is timed within it is taken off."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outside: float = getattr(self._inner, "seconds", 0.0)
            self._inner.seconds = 0.0
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.thread_time() - started
                with self._lock:
                    self.seconds[part] += spent - self._inner.seconds
                self._inner.seconds = outside + spent

        return timed


@contextmanager
def _wrapped(clock: _Clock, loader: Loader) -> Iterator[None]:
    """Clock all functions of the parts while the context lasts."""
    ours = [module for name, module in sys.modules.items() if name.startswith("wv_loader.")]
    places: list[tuple[str, Any, str]] = [
        ("decode", loader.engine, "decode"),
        ("read", os, "preadv"),
        ("plan", Loader, "_order"),  # order, crops, effects: all that is known of a batch before it is read
        ("accounting", Faults, "account"),
        *(("accounting", LoaderStats, name) for name in vars(LoaderStats) if name.startswith("add_")),
        *(("checksum", module, "checksum") for module in ours if getattr(module, "checksum", None) is checksum),
    ]
    with ExitStack() as stack:
        for part, owner, name in places:
            stack.enter_context(patch.object(owner, name, clock.wrap(part, getattr(owner, name))))
        yield
