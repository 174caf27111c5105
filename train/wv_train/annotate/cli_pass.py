"""What `wv-annotate features` and `teacher` have in common: their options, a bar, and the lines at the end."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from wv_loader import ENGINES
from wv_shards import Dataset
from wv_train.annotate.sample_pass import Look, PassConfig, look_at_samples
from wv_train.annotate.taken_up import say_taken_up
from wv_train.bars import progress_bar
from wv_train.distributed import open_world
from wv_train.errors import TrainError
from wv_train.options import ENGINE_HELP, bad_budget_option
from wv_train.trained import Trained, Weights, load_trained


@dataclass(frozen=True, kw_only=True, slots=True)
class PassOptions:
    """As they were typed."""

    shards: Path | None
    out: Path | None
    checkpoint: str
    weights: Weights
    batch_size: int | None
    loader_threads: int | None
    bad_budget: int | float | None
    engine: str
    device: str


def pass_options(function: Callable[..., None]) -> Callable[..., None]:
    """Argument RUN and the options of a look at every sample."""
    for option in reversed(
        (
            click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path)),
            click.option("--shards", type=click.Path(path_type=Path), help="Samples to look at. Default: the run's."),
            click.option("--out", metavar="BASE", type=click.Path(path_type=Path), help="The overlay, without suffix."),
            click.option("--checkpoint", metavar="last|best|FILE", default="last", show_default=True),
            click.option(
                "--weights",
                type=click.Choice(["auto", "model", "ema"]),
                default="auto",
                show_default=True,
                help="The model's own or their moving average; auto: the average where there is one.",
            ),
            click.option("--batch-size", type=click.IntRange(min=1), help="Instead of the recipe's."),
            click.option("--loader-threads", type=click.IntRange(min=1), help="Threads that read and decode."),
            bad_budget_option,
            click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help=ENGINE_HELP),
            click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        )
    ):
        function = option(function)
    return function


def run_pass(run_path: Path, make_look: Callable[[Trained], Look], kind: str, options: PassOptions) -> None:
    """Load the run, look at every sample, say what came of it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainError("wv-annotate runs in one process: start it without torchrun")
    with open_world(options.device) as world:
        trained = load_trained(run_path, checkpoint=options.checkpoint, weights=options.weights, device=world.device)
        config = PassConfig(
            shards=options.shards or Path(trained.run.read_info()["shards"]),
            out=options.out or run_path / kind,
            batch_size=options.batch_size,
            engine=options.engine,
            loader_threads=options.loader_threads,
            bad_budget=options.bad_budget,
        )
        with Dataset.open(config.shards) as dataset:
            samples = dataset.manifest.samples
        with progress_bar(kind, samples) as advance:
            done = look_at_samples(trained, make_look(trained), config, advance, _tell)
    if done.finished_before:
        click.echo(f"{config.out}: is there already, made by these weights of these samples")
        return
    say_taken_up(done.anew, f"{done.resumed_at:,} rows were there already" if done.resumed_at else "")
    missing = f"; {done.bad:,} not usable, {done.excluded:,} excluded" if done.bad or done.excluded else ""
    click.echo(f"{config.out}: {kind} of {done.samples:,} samples{missing}")


def _tell(line: str) -> None:
    click.echo(line, err=True)
