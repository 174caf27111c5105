"""`wv-bench train`: how fast a model trains on images that lie on the device, and how fast on those of the loader.

Three contestants in turns, in one process: steps on a synthetic batch, steps on the loader's batches, and the loader's
batches without steps. What the second keeps of the first is what the loader costs; what the third has over the first is
what it has in reserve. It says nothing about accuracy.
"""

import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from wv_bench.loader_sides import gpu_of, machine_on, some_cores
from wv_bench.nvml import Gpu
from wv_bench.options import STDOUT, device_option, json_option, write_json
from wv_bench.train_report import ALONE, SYNTHETIC, TRAINED, Row, document, print_table
from wv_bench.train_step import AMP, STEPS, Step, make_step, synthetic_batch
from wv_loader import Batch, DaliOptions, Loader
from wv_train.errors import TrainError
from wv_train.learner import amp_dtype

_CLASSES = 1000
_AHEAD = 16
"""More batches than a loader has in store: so many untimed steps come before the timed ones of each turn."""

_EXAMPLES = """\b
Examples:
  wv-bench train shards/train --model wv_resnet_16_32_64 --size-px 32 --batch-size 64 --steps 10
  wv-bench train shards/train --device cuda --model resnet50 --batch-size 256 --cores 8 --engine dali-gpu
  wv-bench train --device cuda                        what the GPU consumes, without a loader
"""


@click.command("train", epilog=_EXAMPLES)
@click.argument("shards", required=False, type=click.Path(path_type=Path))
@device_option()
@click.option(
    "--model", default="resnet50", show_default=True, help="timm's name of one, or one of wv-toolkit's small."
)
@click.option("--size-px", type=click.IntRange(1), default=224, show_default=True, help="Side of the images.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--amp", type=click.Choice(AMP), default="auto", show_default=True, help="Autocast on CUDA; auto: bf16.")
@click.option(
    "--step",
    "step_name",
    type=click.Choice(STEPS),
    default="plain",
    show_default=True,
    help="plain: forward, cross-entropy, backward, SGD and nothing more, the fastest consumer; wv-train: that of "
    "wv-train, with ledger and weights.",
)
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Timed steps of a turn.")
@click.option("--warmup", type=click.IntRange(0), default=_AHEAD, show_default=True, help="Untimed ones before them.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds.")
@click.option("--engine", default="auto", show_default=True, help="Decoder of the loader.")
@click.option("--threads", type=click.IntRange(1), help="Decoding threads. Default: as many as cores.")
@click.option("--hw-decoder-load", type=click.FloatRange(0, 1), help="Of dali-gpu: share of the GPU's JPEG engine.")
@click.option("--region/--whole-images", default=None, help="Of DALI's engines: what is decoded.")
@click.option("--cores", type=click.IntRange(1), help="Cores to be held to. Default: all that this process may use.")
@json_option()
def command(
    shards: Path | None,
    device: torch.device,
    model: str,
    size_px: int,
    batch_size: int,
    amp: str,
    step_name: str,
    steps: int,
    warmup: int,
    repeats: int,
    engine: str,
    threads: int | None,
    hw_decoder_load: float | None,
    region: bool | None,
    cores: int | None,
    json_file: Path | None,
) -> None:
    """Images a second of training steps: on a synthetic batch, with the loader, and of the loader alone.

    Without SHARDS only the synthetic batch is trained on.
    """
    console = Console(stderr=json_file == STDOUT)
    with some_cores(cores) as held, ExitStack() as stack:
        torch.set_num_threads(min(held, torch.get_num_threads()))
        gpu, notes = gpu_of(device)
        about = machine_on(device, gpu)
        opened = None
        if shards is not None:
            given = {"hw_decoder_load": hw_decoder_load, "region": region}
            dali: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
            opened = stack.enter_context(
                Loader(
                    shards,
                    batch_size=batch_size,
                    size_px=size_px,
                    engine=engine,
                    threads=threads,
                    device=None if device.type == "cpu" else device,
                    dali=DaliOptions(**dali) if dali else None,
                    bad_budget=None,
                )
            )
            if opened.epoch_samples < batch_size:
                raise click.UsageError(
                    f"{opened.epoch_samples} samples are less than a batch: lower --batch-size {batch_size}"
                )
        classes = _CLASSES if opened is None else opened.num_classes
        try:
            step = make_step(
                step_name,
                model,
                classes=classes,
                samples=1 if opened is None else opened.num_samples,
                amp=amp,
                device=device,
            )
        except TrainError as error:
            raise click.ClickException(str(error)) from None
        turns = {SYNTHETIC: Turn(repeat(synthetic_batch(batch_size, size_px, classes, device)), step)}
        if opened is not None:
            batches = stack.enter_context(closing(_endless(opened)))
            turns |= {TRAINED: Turn(batches, step), ALONE: Turn(batches, _nothing)}
        rows = [Row(name=name) for name in turns]
        for number in range(repeats):
            for at in range(len(rows)):
                row = rows[(at + number) % len(rows)]
                turns[row.name].run(row, warmup=warmup, steps=steps, device=device, gpu=gpu)
    title = (
        f"{model}, {size_px} px, batch {batch_size}, {_amp_name(amp, device)}, {step_name} step, on {device}, "
        f"{held} cores" + ("" if opened is None else f", engine {opened.engine.name}")
    )
    result = document(f"{title}: {steps} steps, {repeats} round{'s' * (repeats != 1)}", rows, about, notes)
    if write_json(json_file, result):
        print_table(console, result)


@dataclass(frozen=True, slots=True)
class Turn:
    """A contestant: where its batches come from, and what is done with each."""

    batches: Iterator[Batch]
    step: Step

    def run(self, row: Row, *, warmup: int, steps: int, device: torch.device, gpu: Gpu | None) -> None:
        """Time `steps` steps after `warmup` ones; a GPU is waited for at both ends and nowhere between."""
        for _ in range(warmup):
            self.step(next(self.batches))
        _finish(device)
        with ExitStack() as stack:
            used = [] if gpu is None else stack.enter_context(gpu.watch(lambda: {os.getpid()}))
            images, waited_s = 0, 0.0
            cpu_s, started = time.process_time(), time.perf_counter()
            for _ in range(steps):
                asked = time.perf_counter()
                batch = next(self.batches)
                waited_s += time.perf_counter() - asked
                images += len(batch.images)
                self.step(batch)
            _finish(device)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
        row.add(images=images, seconds=seconds, waited_s=waited_s, cpu_s=cpu_s, used=used)


def _endless(loader: Loader) -> Generator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from loader


def _nothing(_batch: Batch) -> None:
    """What the loader alone does with a batch."""


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _amp_name(amp: str, device: torch.device) -> str:
    dtype = amp_dtype(amp, device)
    return "float32" if dtype is None else f"AMP {str(dtype).removeprefix('torch.')}"
