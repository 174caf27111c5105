"""Our side of `wv-bench loader`, as a process that speaks the peers' protocol: the loader, and the loops that bound it.

loader    batches of wv_loader, from the shards, on the device
decode    nothing but an engine's decoding and resizing, on threads, of files that lie in memory: the ceiling
read      nothing but `pread` of all samples, on threads
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wv_bench.peers.protocol import Epoch, Setup, serve
from wv_loader import Augment, DaliOptions, Loader
from wv_loader.augment import Crops, train_crops
from wv_loader.engine import is_dali
from wv_shards import EXCLUDE, EXCLUDE_ASKED, Dataset, Overlay

_CHUNK = 16


def main(text: str) -> None:
    """Serve what the setup asks for, given as JSON."""
    setup, more = Setup.parse(text), json.loads(text)
    opened: dict[str, Callable[[], Epoch]] = {
        "loader": lambda: _loader(setup, more),
        "decode": lambda: _decode(setup, more),
        "read": lambda: _read(setup, Path(more["shards"])),
    }
    finish = partial(torch.cuda.synchronize, setup.device) if setup.device.startswith("cuda") else None
    serve(setup, ("torch", "numpy", "pillow"), lambda _data: opened[more["what"]](), finish=finish)


def _open(setup: Setup, more: dict[str, Any]) -> Loader:
    """Of the samples that everybody shows and no more: a loop that is broken off throws away what is under way."""
    shown = setup.batches * setup.batch_size
    with Dataset.open(more["shards"]) as dataset:
        beyond = np.where(np.arange(dataset.manifest.samples) < shown, 0, EXCLUDE_ASKED).astype(np.uint8)
        overlay = Overlay(kind=EXCLUDE, array=beyond, manifest_digest=dataset.manifest.digest)
    path = Path(setup.work) / f"beyond-{more['what']}-{more['engine']}"
    overlay.save(path)
    return Loader(
        more["shards"],
        batch_size=setup.batch_size,
        size_px=setup.size_px,
        engine=more["engine"],
        exclude=[path],
        threads=setup.workers,
        device=None if setup.device == "cpu" else setup.device,
        dali=DaliOptions(**more["dali"]) if more["dali"] else None,
        bad_budget=None,
    )


def _loader(setup: Setup, more: dict[str, Any]) -> Epoch:
    loader = _open(setup, more)

    def epoch(number: int) -> Iterator[int]:
        loader.set_epoch(number)
        for batch in loader:
            yield len(batch.images)

    return epoch


def _decode(setup: Setup, more: dict[str, Any]) -> Epoch:
    with _open(setup, more) as loader:
        engine, dataset = loader.engine, loader.dataset
        assert not is_dali(engine)  # it does nothing without a loader
        ordinals = np.arange(setup.batches * setup.batch_size)
        # Each file once, in chunks as the pipeline has them.
        stored = {ordinal: dataset.read(ordinal) for ordinal in np.unique(ordinals).tolist()}
        records = dataset.index[ordinals]
    widths, heights = records["width"].astype(np.int64), records["height"].astype(np.int64)
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(ordinals), _CHUNK)]

    def work(crops: Crops, worker: int) -> None:
        out = np.empty((_CHUNK, setup.size_px, setup.size_px, 3), dtype=np.uint8)
        for chunk in chunks[worker :: setup.workers]:
            data = [stored[ordinal] for ordinal in ordinals[chunk].tolist()]
            cut = Crops(boxes=crops.boxes[chunk], flips=crops.flips[chunk])
            engine.decode(data, widths[chunk], heights[chunk], cut, out[: len(data)])

    def epoch(number: int) -> Iterator[int]:
        slots = np.arange(len(ordinals))
        crops = train_crops(Augment(), widths, heights, seed=0, epoch=number, slots=slots)
        yield 0  # the crops are the plan's part
        with ThreadPoolExecutor(setup.workers) as pool:
            list(pool.map(lambda worker: work(crops, worker), range(setup.workers)))
        yield len(ordinals)

    return epoch


def _read(setup: Setup, shards: Path) -> Epoch:
    dataset = Dataset.open(shards)
    ordinals: NDArray[np.int64] = np.arange(setup.batches * setup.batch_size)

    def work(part: NDArray[np.int64]) -> None:
        records, of_shard = dataset.index[part], dataset.shard_of(part)
        for shard in np.unique(of_shard).tolist():
            with dataset.descriptor(shard) as descriptor:
                for record in records[of_shard == shard]:
                    os.pread(descriptor, int(record["size"]), int(record["offset"]))

    def epoch(_number: int) -> Iterator[int]:
        with ThreadPoolExecutor(setup.workers) as pool:
            list(pool.map(work, np.array_split(ordinals, setup.workers)))
        yield len(ordinals)

    return epoch


if __name__ == "__main__":
    main(sys.argv[1])
