"""`wv-train --dry-run`: what a run would do and need, without training or writing anything but a picture if asked for.

Everything that can be refused has been refused when the first line is printed.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from wv_loader.supply import default_read_ahead_bytes
from wv_shards import write_atomic
from wv_train.distributed import World, open_world
from wv_train.dry_run_picture import curves_of, svg_picture, terminal_picture
from wv_train.job import Job
from wv_train.learner import amp_dtype
from wv_train.ledger import LEDGER_DTYPE
from wv_train.memory_estimate import ModelBytes, model_bytes
from wv_train.models import head_parameter_ids
from wv_train.opening import opening_lines
from wv_train.phase_plan import PhasePlan
from wv_train.prepare import Facts, prepare
from wv_train.target_memory import target_dtype

_BATCHES_HELD = 5
"""Decoded batches of a rank: three ahead, one in use, one being filled."""
_STREAMS = 64
_WIDEST = 120


def dry_run(job: Job, picture: Path | None) -> None:
    """Print the plan on rank 0.

    Raises what a run would raise before its first step; OSError where the picture can't be written.
    """
    with open_world(job.device) as world:
        model, plans, facts = prepare(job.recipe, job.data, world, truth=job.truth)
        if not world.is_main:
            return
        opening = opening_lines(job.recipe, world, model, plans, facts, compiled=job.pace.compile_model)
        for line in (*opening, *_lines(job, world, model, plans, facts)):
            click.echo(line)
        curves = curves_of([(plan.phase, plan.steps) for plan in plans])
        if (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf"):
            console = Console(file=sys.stdout, highlight=False)
            click.echo()
            for text in terminal_picture(curves, width=min(console.width, _WIDEST)):
                console.print(text, no_wrap=True, crop=True)
        if picture is not None:
            title = f"{job.recipe.model}, batch {job.recipe.batch_size:,}: {sum(plan.steps for plan in plans):,} steps"
            write_atomic(picture, svg_picture(curves, title=title).encode())
        written = f"nothing but {picture} was written" if picture else "nothing was written"
        click.echo(f"{sum(plan.steps for plan in plans):,} steps in all; {written}")


def _lines(job: Job, world: World, model: nn.Module, plans: list[PhasePlan], facts: Facts) -> Iterator[str]:
    recipe = job.recipe
    head = head_parameter_ids(model)
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[id(parameter) in head] += parameter.numel()
    yield f"parameters: {sizes[False]:,} in the backbone, {sizes[True]:,} in the head"
    yield from _phase_table(recipe.batch_size, plans, facts)
    yield from _rank_lines(job, world)
    yield from _memory_lines(job, world, model, facts)


def _phase_table(batch_size: int, plans: list[PhasePlan], facts: Facts) -> list[str]:
    """How long, and how often classes are shown: a row per phase under one for the data as collected."""
    counts = np.array(facts.class_counts, dtype=np.float64)
    rows = [
        ("phase", "steps", "epochs", "images", "shown an epoch", "a class: min", "median", "max", "weight"),
        ("as collected", "", "", "", f"{counts.sum():,.0f}", *_spread(counts), ""),
    ]
    total = 0.0
    for plan in plans:
        shown = float(plan.exposure.sum())
        epoch_steps = max(1, math.ceil(shown / batch_size))
        images = plan.steps * shown / epoch_steps  # an epoch's last batch may be padded
        total += images
        at_most = "≤" if plan.phase.until else ""
        rows.append(
            (
                plan.phase.name,
                f"{at_most}{plan.steps:,}",
                f"{at_most}{plan.steps / epoch_steps:,.1f}",
                f"{at_most}{images:,.0f}",
                f"{shown:,.0f}",
                *_spread(plan.exposure),
                _weights_of(plan),
            )
        )
    at_most = "≤" if any(plan.phase.until for plan in plans) else ""
    steps = sum(plan.steps for plan in plans)
    rows.append(("in all", f"{at_most}{steps:,}", "", f"{at_most}{total:,.0f}", "", "", "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


def _spread(shows: NDArray[np.float64]) -> tuple[str, str, str]:
    """Smallest, median and largest of the classes that are shown."""
    some = shows[shows > 0]
    return f"{some.min():,.0f}", f"{np.median(some):,.0f}", f"{some.max():,.0f}"


def _weights_of(plan: PhasePlan) -> str:
    kind = plan.phase.class_weights
    if kind == "none":
        return kind if plan.prior is None else plan.phase.logit_prior
    some = plan.weights[plan.weights > 0]
    return f"{kind} {some.min():.2g} to {some.max():.2g}"


def _rank_lines(job: Job, world: World) -> Iterator[str]:
    recipe = job.recipe
    streams = recipe.resolved_streams or max(v for v in range(1, _STREAMS + 1) if recipe.batch_size % v == 0)
    sizes = [str(size) for size in range(1, streams + 1) if streams % size == 0]
    yield (
        f"world size {world.size}: a rank has {recipe.batch_size // world.size:,} of a batch's {recipe.batch_size:,} "
        f"samples and {streams // world.size} of {streams} streams; it may become {', '.join(sizes)}"
    )


def _memory_lines(job: Job, world: World, model: nn.Module, facts: Facts) -> Iterator[str]:
    recipe = job.recipe
    rank_batch = recipe.batch_size // world.size
    dtype = amp_dtype(recipe.amp, world.device)
    at_once = min(rank_batch, job.pace.micro_batch or rank_batch)
    size = model_bytes(model, recipe, rank_batch=at_once, world_size=world.size, dtype=dtype)
    named = "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"
    average = f", average {_size(size.average)}" if size.average else ""
    yield (
        f"memory of a rank on its device ({world.device.type}{named}), estimated: {_size(size.total)}: weights "
        f"{_size(size.weights)}, gradients {_size(size.gradients)}, momentum {_size(size.optimizer)}{average}, "
        f"activations of {at_once:,} images {_size(size.activations)}, images {_size(size.images)}"
    )
    half = "; float32 here, on a GPU in bf16 or fp16 activations take about half" if dtype is None else ""
    yield f"  for a moment of the backward pass up to half of the activations more{half}"
    ledger = facts.samples * LEDGER_DTYPE.itemsize
    elr = recipe.elr
    targets = facts.samples * target_dtype(len(facts.classes), elr.elr_top_k).itemsize if elr else 0
    remembered = f", elr's memory {_size(targets)}" if targets else ""
    pixels = _BATCHES_HELD * rank_batch * 3 * recipe.size_px**2
    ahead = job.data.read_ahead_bytes
    ahead = default_read_ahead_bytes() if ahead is None else ahead
    yield (
        f"memory of a rank beside it: ledger {_size(ledger)}{remembered}, decoded batches {_size(pixels)}, "
        f"files read ahead at most {_size(ahead)}"
    )
    yield f"checkpoint: {_size(_checkpoint_bytes(size, ledger + targets))}"


def _checkpoint_bytes(size: ModelBytes, ledger: int) -> int:
    return size.weights + size.optimizer + size.average + ledger


def _size(count: int) -> str:
    """Bytes in decimal units."""
    if count < 1_000_000:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e6:,.1f} MB" if count < 1_000_000_000 else f"{count / 1e9:,.2f} GB"
