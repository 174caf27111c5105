"""`wv-bench first-batch`: seconds from opening a data set of full size to its first batch.

The set is made for it: an index and a manifest as of 16 million samples in 5,000 skewed classes, packed by band, whose
8,000 tars are hard links to one real tar. Each start is a process of its own; imports are not counted. It measures
nothing about speed after the first batch.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import xxhash
from numpy.typing import NDArray
from rich.console import Console

from wv_bench.measure import machine
from wv_bench.options import json_option, write_json
from wv_shards import (
    INDEX_DTYPE,
    INDEX_FILE,
    ClassInfo,
    Dataset,
    Manifest,
    ShardInfo,
    ShardWriter,
    band_of,
    file_checksum,
    write_index,
)

_SHARD_SAMPLES = 2_000
_SMALLEST, _LARGEST = 26, 10_000
"""Images of a class, at the ends of the drawn skew."""


@click.command("first-batch", epilog="Example: wv-bench first-batch shards/train --samples 16000000")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--samples", type=click.IntRange(1), default=16_000_000, show_default=True, help="Of the set, about.")
@click.option("--classes", type=click.IntRange(1), default=5000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--size-px", type=click.IntRange(1), default=224, show_default=True)
@click.option("--balance", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="τ.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Starts.")
@click.option(
    "--work",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="DIR",
    help="Where the set is made; removed afterwards. Default: the system's folder for temporary files.",
)
@json_option()
def command(
    shards: Path,
    samples: int,
    classes: int,
    batch_size: int,
    size_px: int,
    balance: float,
    repeats: int,
    work: Path | None,
    json_file: Path | None,
) -> None:
    """Time to the first batch of a set as large as WebVision, whose images come from SHARDS."""
    folder = Path(tempfile.mkdtemp(prefix="wv-first-batch-", dir=work))
    try:
        made = make_set(shards, folder, samples, classes)
        if made.samples < batch_size:
            raise click.UsageError(f"{made.samples} samples are less than a batch: lower --batch-size {batch_size}")
        options = {"batch_size": batch_size, "size_px": size_px, "balance": balance}
        # The files have just been written, so they are in the page cache; cold: they are dropped from it before.
        runs = {
            state: [_start(folder, options, cold=state == "cold") for _ in range(repeats)] for state in ("warm", "cold")
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "machine": machine(("torch", "numpy")),
        "samples": made.samples,
        "classes": len(made.classes),
        "shards": len(made.shards),
        **{state: _summary(starts) for state, starts in runs.items()},
    }
    if not write_json(json_file, result):
        return
    console = Console()
    console.print(f"{made.samples:,} samples, {len(made.classes):,} classes, {len(made.shards):,} shards, τ={balance}")
    for state in runs:
        summary: Any = result[state]
        console.print(
            f"{state} page cache: first batch of {batch_size} after {summary['first_batch_s']:.2f} s (at most "
            f"{summary['first_batch_max_s']:.2f}), {summary['open_s']:.2f} of it to open; "
            f"peak memory {summary['peak_rss_mb']:,.0f} MB",
            highlight=False,
        )
    console.print(result["machine"]["command"], highlight=False)  # type: ignore[index] # a dictionary


def make_set(shards: Path, folder: Path, samples: int, classes: int) -> Manifest:
    """Write a set of about `samples` samples into `folder`: whole shards, classes skewed and packed by band.

    Raises:
        ShardsError: `shards` is no finished data set.
        click.UsageError: too few samples for the classes.
    """
    per_shard = min(_SHARD_SAMPLES, samples)
    layout = list(_layout(samples // per_shard * per_shard, classes, per_shard))
    with Dataset.open(shards) as source, ShardWriter(folder, "real") as writer:
        for i in range(per_shard):
            ordinal = i % source.manifest.samples
            record = source.index[ordinal]
            size = {"width": int(record["width"]), "height": int(record["height"])}
            writer.add(f"{i:07d}", source.read(ordinal), 0, {}, **size)
        real = writer.finish(0)
    infos = []
    for number, (band, _) in enumerate(layout):
        name = f"b{band:02d}-{number:06d}"
        for suffix in ("tar", "idx"):
            os.link(folder / f"real.{suffix}", folder / f"{name}.{suffix}")
        checksum = xxhash.xxh3_128_hexdigest(name.encode())  # of the name: the tars are the same, the set's are not
        infos.append(ShardInfo(name=name, samples=per_shard, bytes=real.info.bytes, checksum=checksum, band=band))
    counts = np.zeros(classes, dtype=np.int64)

    def parts() -> Iterator[NDArray[np.void]]:
        for _, labels in layout:
            records = real.records.astype(INDEX_DTYPE, copy=True)
            records["label"] = labels
            counts[:] += np.bincount(labels, minlength=classes)
            yield records

    write_index(folder / INDEX_FILE, parts(), len(infos) * per_shard)
    manifest = Manifest(
        seed=0,
        split="train",
        classes=tuple(
            ClassInfo(class_id=c, name=f"class {c}", rows=n, samples=n, band=band_of(n))
            for c, n in enumerate(counts.tolist())
        ),
        shards=tuple(infos),
        samples=len(infos) * per_shard,
        rows=len(infos) * per_shard,
        index_checksum=file_checksum(folder / INDEX_FILE),
    )
    manifest.save(folder)
    return manifest


def _layout(samples: int, classes: int, per_shard: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Band and labels of each shard: class sizes fall by a power of their rank, and each band's samples are mixed."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(_LARGEST, _SMALLEST, classes)
    sizes = np.maximum(1, sizes * samples / sizes.sum()).astype(np.int64)
    sizes[0] += samples - sizes.sum()
    if sizes[0] < 1:
        raise click.UsageError(f"{samples} samples are too few for {classes} skewed classes: lower --classes")
    bands = np.array([band_of(n) or 0 for n in sizes.tolist()])
    rest = np.empty(0, dtype=np.int32)
    for band in sorted(set(bands.tolist())):
        of_band = np.flatnonzero(bands == band).astype(np.int32)
        labels = np.concatenate([rest, rng.permutation(np.repeat(of_band, sizes[of_band]))])
        whole = len(labels) // per_shard * per_shard
        # What does not fill a shard goes into the next band's first one: every shard has the real tar's samples.
        rest = labels[whole:]
        for start in range(0, whole, per_shard):
            yield band, labels[start : start + per_shard]


_CHILD = """
import json, resource, sys, time
from wv_loader import Loader
import torch
folder, options = sys.argv[1], json.loads(sys.argv[2])
started = time.perf_counter()
with Loader(folder, train=True, **options) as loader:
    opened = time.perf_counter()
    batch = next(iter(loader))
    first = time.perf_counter()
    assert batch.valid.all(), "not every sample of the first batch is valid"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"open_s": opened - started, "first_batch_s": first - started, "peak_rss_mb": peak}))
"""


def _start(folder: Path, options: dict[str, Any], *, cold: bool) -> dict[str, float]:
    if cold:
        for path in (folder / INDEX_FILE, folder / "manifest.json", folder / "real.tar"):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", _CHILD, str(folder), json.dumps(options)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"the loader failed: {done.stderr.strip().splitlines()[-1]}")
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _summary(starts: list[dict[str, float]]) -> dict[str, float]:
    return {
        "first_batch_s": statistics.median(start["first_batch_s"] for start in starts),
        "first_batch_max_s": max(start["first_batch_s"] for start in starts),
        "open_s": statistics.median(start["open_s"] for start in starts),
        "peak_rss_mb": max(start["peak_rss_mb"] for start in starts),
    }
