"""`wv-bench loader`: the loader against the bare decoder on as many threads, and against torch's DataLoader.

All three give crops of the same images as uint8.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wv_bench.measure import interleave, machine, report
from wv_loader import Augment, Loader
from wv_loader.augment import train_crops
from wv_loader.decode_pillow import PillowEngine
from wv_loader.read import read_samples
from wv_shards import Dataset

_CHUNK = 16


@click.command("loader", epilog="Example: wv-bench loader shards/ --size-px 224 --batch-size 256 --repeats 5")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--size-px", default=224, show_default=True, help="Side of the images.")
@click.option("--batch-size", default=256, show_default=True)
@click.option(
    "--threads", default=None, type=int, help="Decoding threads or processes of each contestant; default: the cores."
)
@click.option("--repeats", default=3, show_default=True, help="Epochs of each, in turn.")
@click.option("--max-samples", default=4096, show_default=True, help="Samples of an epoch.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    shards: Path, size_px: int, batch_size: int, threads: int | None, repeats: int, max_samples: int, as_json: bool
) -> None:
    """Images a second of the loader, of the bare decoder, and of torch's DataLoader on the same shards."""
    about = machine(("torch", "numpy"))
    about["versions"]["decoder"] = PillowEngine().description
    threads = threads or about["cores"]
    with Loader(shards, batch_size=batch_size, size_px=size_px, threads=threads) as loader:
        batches = min(len(loader), max(1, max_samples // batch_size))
        contestants: dict[str, Callable[[], int]] = {
            "bare decoder": lambda: _bare(loader.dataset, batches * batch_size, size_px, threads),
            "wv_loader": lambda: _ours(loader, batches),
            "torch DataLoader": lambda: _torch(shards, batches, batch_size, size_px, threads),
        }
        timings = interleave(contestants, repeats)
    title = f"{batches * batch_size} crops of {size_px} px, batch {batch_size}, {threads} threads each, uint8"
    report(title, "images", timings, "bare decoder", about, as_json=as_json)


def _ours(loader: Loader, batches: int) -> int:
    loader.set_epoch(0)
    samples = 0
    for count, batch in enumerate(loader, 1):
        samples += len(batch.ordinals)
        if count == batches:
            break
    return samples


def _bare(dataset: Dataset, samples: int, size_px: int, threads: int) -> int:
    """Nothing but reading, decoding and cropping into one buffer a thread: what the decoder alone can do."""
    engine = PillowEngine()
    ordinals = np.arange(samples) % dataset.manifest.samples
    buffers = threading.local()

    def work(chunk: np.ndarray) -> None:
        if not hasattr(buffers, "out"):
            buffers.out = np.empty((_CHUNK, size_px, size_px, 3), dtype=np.uint8)
        records = dataset.index[chunk]
        widths, heights = records["width"].astype(np.int64), records["height"].astype(np.int64)
        crops = train_crops(Augment(), widths, heights, seed=0, epoch=0, slots=chunk)
        engine.decode(read_samples(dataset, chunk), widths, heights, crops, buffers.out[: len(chunk)])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, np.array_split(ordinals, -(-samples // _CHUNK))))
    return samples


class _Images(TorchDataset[tuple[torch.Tensor, int]]):
    """The map-style data set that most people would write over our shards."""

    def __init__(self, shards: Path, size_px: int) -> None:
        self._shards = shards
        self._size_px = size_px
        with Dataset.open(shards) as dataset:
            self._samples = dataset.manifest.samples
        self._opened: Dataset | None = None

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, ordinal: int) -> tuple[torch.Tensor, int]:
        if self._opened is None:  # once in each worker
            self._opened = Dataset.open(self._shards)
        record = self._opened.index[ordinal]
        sizes = np.array([record["width"]], dtype=np.int64), np.array([record["height"]], dtype=np.int64)
        out = np.empty((1, self._size_px, self._size_px, 3), dtype=np.uint8)
        crops = train_crops(Augment(), *sizes, seed=0, epoch=0, slots=np.array([ordinal]))
        PillowEngine().decode([self._opened.read(ordinal)], *sizes, crops, out)
        return torch.from_numpy(out[0]).permute(2, 0, 1), int(record["label"])


def _torch(shards: Path, batches: int, batch_size: int, size_px: int, workers: int) -> int:
    data = _Images(shards, size_px)
    source: Iterator[tuple[torch.Tensor, torch.Tensor]] = iter(
        DataLoader(data, batch_size, shuffle=True, num_workers=workers, drop_last=len(data) >= batch_size)
    )
    samples = 0
    while samples < batches * batch_size:
        try:
            samples += len(next(source)[1])
        except StopIteration:
            break
    del source
    return samples
