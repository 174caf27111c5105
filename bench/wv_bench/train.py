"""`wv-bench train`: images a second of training, by a bare loop and by wv-train, and what each part of a step costs.

Contestants in turns, in one process: steps on a synthetic batch, steps on the loader's batches, each by a bare loop of
PyTorch and by the trainer of wv-train, and the loader's batches without steps. What the loader's keep of the synthetic
is what the loader costs; what the trainer keeps of the bare loop is what wv-train costs; what the loader alone has over
all of them is in reserve. It says nothing about accuracy. `--components`, `--gate-passes` and
`--gate-loader` are in files of their own.
"""

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from wv_bench.loader_sides import gpu_of, machine_on, some_cores
from wv_bench.options import STDOUT, Device, device_option, json_option, write_json
from wv_bench.train_components import components, print_components
from wv_bench.train_gate_loader import gate_loader, print_gate_loader
from wv_bench.train_gate_passes import gate_passes, print_passes
from wv_bench.train_report import ALONE, OURS_SYNTHETIC, OURS_TRAINED, SYNTHETIC, TRAINED, Row, document, print_table
from wv_bench.train_step import AMP, bare_step, synthetic_batch
from wv_bench.train_turns import Clock, Subject, Turn, run_turns
from wv_loader import Batch, DaliOptions, Loader
from wv_train.allocator import keep_freed_memory
from wv_train.distributed import World, open_world
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
  wv-bench train shards/train --components --model wv_resnet_16_32_64 --size-px 32 --batch-size 64
  wv-bench train --gate-passes --model wv_resnet_16_32_64,resnet18 --size-px 32 --batch-size 64 --steps 5
  wv-bench train shards/train --gate-loader --model wv_resnet_16_32_64 --size-px 32 --batch-size 64 --steps 20
  torchrun --nproc-per-node 2 -m wv_bench.cli train --components --model resnet18 --size-px 32 --batch-size 64
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
@click.option("--components", "what", flag_value="components", help="Instead: microseconds of each part of a step.")
@click.option(
    "--gate-passes",
    "what",
    flag_value="gate-passes",
    help="Instead: a gated step in one pass, in two and by the past; --model takes several, with commas.",
)
@click.option(
    "--gate-loader",
    "what",
    flag_value="gate-loader",
    help="Instead: a gated step on all samples, and on what is left where the loader skips a part; needs SHARDS.",
)
@click.option("--malloc-as-is", "as_is", is_flag=True, help="On a CPU: the C library's memory as it is by default.")
@click.option("--classes", type=click.IntRange(2), help="Without SHARDS. Default: 1000.")
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
    device: Device,
    model: str,
    size_px: int,
    batch_size: int,
    amp: str,
    what: str | None,
    as_is: bool,
    classes: int | None,
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
    """Images a second of training: on a synthetic batch, with the loader, by a bare loop and by wv-train.

    Without SHARDS only the synthetic batch is trained on. The verdict: wv-train keeps 0.97 of the bare loop. Both gate
    and ledger have a bar of 1% of a step in the table of --components.
    """
    console = Console(stderr=json_file == STDOUT)
    with some_cores(cores) as held, ExitStack() as stack:
        torch.set_num_threads(min(held, torch.get_num_threads()))
        world = World(rank=0, size=1, device=torch.device(str(device)))
        if what == "components" and "WORLD_SIZE" in os.environ:
            world = stack.enter_context(open_world(device.type))
        gpu, notes = gpu_of(device)
        if device.type == "cpu" and not as_is and keep_freed_memory():
            notes = [*notes, "freed memory is kept, as wv-train has it; the bare loop has it too"]
        about = machine_on(device, gpu)
        opened = None
        if shards is None and what == "gate-loader":
            raise click.UsageError("--gate-loader: expected SHARDS, found none")
        if shards is not None and what != "gate-passes":
            given = {"hw_decoder_load": hw_decoder_load, "region": region}
            dali: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
            opened = stack.enter_context(
                Loader(
                    shards,
                    batch_size=batch_size,
                    size_px=size_px,
                    engine=engine,
                    threads=threads,
                    device=None if device.type == "cpu" else world.device,
                    dali=DaliOptions(**dali) if dali else None,
                    bad_budget=None,
                )
            )
            if opened.epoch_samples < batch_size:
                raise click.UsageError(
                    f"{opened.epoch_samples} samples are less than a batch: lower --batch-size {batch_size}"
                )
        subject = Subject(
            model=model,
            classes=opened.num_classes if opened else classes or _CLASSES,
            samples=max(batch_size, opened.num_samples if opened else 0),
            batch_size=batch_size,
            size_px=size_px,
            amp=amp,
            device=world.device,
        )
        batches = None if opened is None else stack.enter_context(closing(_endless(opened)))
        title = (
            f"{model}, {size_px} px, batch {batch_size}, {_amp_name(amp, world.device)}, on {device}, {held} cores"
            + ("" if opened is None else f", engine {opened.engine.name}")
        )
        length = f": {steps} steps, {repeats} round{'s' * (repeats != 1)}"
        clock = Clock(warmup=warmup, steps=steps, device=world.device, gpu=gpu)
        try:
            if what == "components":
                result = components(subject, world, batches, clock, repeats=repeats)
            elif what == "gate-passes":
                result = gate_passes(subject, model.split(","), clock, repeats=repeats)
            elif what == "gate-loader":
                assert opened is not None
                result = gate_loader(subject, opened, clock, repeats=repeats)
            else:
                with tempfile.TemporaryDirectory(prefix="wv-bench-") as work:
                    rows = _take_turns(subject, opened, batches, clock, repeats, Path(work))
                result = document(title + length, rows, about, notes)
        except TrainError as error:
            raise click.ClickException(str(error)) from None
    if what is not None:
        result = {"title": title + length, "machine": about, **result, "notes": [*notes, *result["notes"]]}
    if not world.is_main or not write_json(json_file, result):
        return
    if what == "components":
        print_components(console, result)
    elif what == "gate-passes":
        print_passes(console, result)
    elif what == "gate-loader":
        print_gate_loader(console, result)
    else:
        print_table(console, result)


def _take_turns(
    subject: Subject, opened: Loader | None, batches: Iterator[Batch] | None, clock: Clock, repeats: int, work: Path
) -> list[Row]:
    """Every contestant's turns, another one first in each round."""
    ready = repeat(synthetic_batch(subject.batch_size, subject.size_px, subject.classes, subject.device))
    bare = bare_step(subject.model, classes=subject.classes, amp=subject.amp, device=subject.device)
    turns = [
        Turn(row=Row(name=SYNTHETIC), batches=ready, step=bare),
        Turn(row=Row(name=OURS_SYNTHETIC), batches=ready, step=None),
    ]
    if batches is not None:
        turns += [
            Turn(row=Row(name=TRAINED), batches=batches, step=bare),
            Turn(row=Row(name=OURS_TRAINED), batches=batches, step=None),
            Turn(row=Row(name=ALONE), batches=batches, step=_nothing),
        ]
    order = (turns[(at + number) % len(turns)] for number in range(repeats) for at in range(len(turns)))
    run_turns(order, subject, clock, work, None if opened is None else opened.stats)
    return [turn.row for turn in turns]


def _endless(loader: Loader) -> Generator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from loader


def _nothing(_batch: Batch) -> None:
    """What the loader alone does with a batch."""


def _amp_name(amp: str, device: torch.device) -> str:
    dtype = amp_dtype(amp, device)
    return "float32" if dtype is None else f"AMP {str(dtype).removeprefix('torch.')}"
