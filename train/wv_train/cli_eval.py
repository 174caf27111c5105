"""`wv-eval`: a run's weights against a validation set, as JSON and as a table."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from wv_loader import ENGINES, LoaderError, engine_line
from wv_shards import ShardsError, band_range, write_atomic
from wv_train.checkpoint import Checkpoint
from wv_train.data import open_validation_loader
from wv_train.distributed import World, open_world
from wv_train.errors import TrainError
from wv_train.evaluate import evaluate
from wv_train.models import make_model
from wv_train.options import ENGINE_HELP, bad_budget_option
from wv_train.recipe import recipe_from_table
from wv_train.run_directory import RunDirectory

EPILOG = """\b
Examples:
  wv-eval --run runs/gated --shards val/
  wv-eval --run runs/gated --shards val/ --checkpoint best --json best.json
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--run", "run_path", required=True, type=click.Path(path_type=Path), help="Folder of a run of wv-train.")
@click.option("--shards", required=True, type=click.Path(path_type=Path), help="Shards to evaluate on.")
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Instead of eval.json in the run's folder.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Instead of the recipe's; does not change the result.")
@click.option("--loader-threads", type=click.IntRange(min=1), help="Threads that read and decode.")
@bad_budget_option
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help=ENGINE_HELP)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.version_option(package_name="wv-toolkit")
def command(
    run_path: Path,
    shards: Path,
    checkpoint: str,
    json_path: Path | None,
    batch_size: int | None,
    loader_threads: int | None,
    engine: str,
    bad_budget: int | float | None,
    device: str,
) -> None:
    """Top-1, top-5, per class and per band of the training set, from a single centre crop of each image."""
    run = RunDirectory(run_path)
    info = run.read_info()
    if batch_size:
        info["recipe"]["batch_size"] = batch_size
    with open_world(device) as world:
        result = evaluate_run(run, info, shards, checkpoint, world, engine, loader_threads, bad_budget)
        if world.is_main:
            _write(json_path or run.eval_json, result)
            _show(result)


def main() -> None:
    """Entry point: expected mistakes become one line and exit code 1, wrong usage 2."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        sys.stderr.write(f"wv-eval: {error.format_message()}\n")
        sys.exit(2)
    except (TrainError, LoaderError, ShardsError) as error:
        sys.stderr.write(f"wv-eval: {error}\n")
        sys.exit(1)
    except OSError as error:
        sys.stderr.write(f"wv-eval: {error.filename}: {error.strerror or error}\n")
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("wv-eval: interrupted\n")
        sys.exit(130)


def evaluate_run(
    run: RunDirectory,
    info: dict[str, Any],
    shards: Path,
    checkpoint: str,
    world: World,
    engine: str,
    loader_threads: int | None,
    bad_budget: int | float | None = 0.01,
) -> dict[str, Any]:
    """The content of eval.json. Raises TrainError, LoaderError, ShardsError."""
    recipe = recipe_from_table(info["recipe"])
    state = Checkpoint.load(run.last if checkpoint == "last" else run.best)
    classes: list[str] = info["classes"]
    model = make_model(recipe.model, len(classes))
    model.load_state_dict(state.model)
    model.to(world.device)
    loading = open_validation_loader(
        shards, recipe, world, classes=classes, engine=engine, threads=loader_threads, bad_budget=bad_budget
    )
    with closing(loading) as loader:
        if world.is_main:
            click.echo(engine_line(loader.engine), err=True)
        sums = evaluate(model, loader, world)
    return {
        **sums.overall(),
        "per_class": sums.by_class(classes),
        "per_band": sums.by_band(info["class_bands"]),
        "shards": str(shards),
        "checkpoint": checkpoint,
        "engine": loader.engine.name,
        "step": state.position["step"],
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        write_atomic(path, (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise TrainError(f"{path}: cannot be written: {error.strerror}") from error


def _show(result: dict[str, Any]) -> None:
    console = Console(highlight=False)
    table = Table(title=f"{result['samples']:,} samples of {result['shards']}, checkpoint {result['checkpoint']}")
    for heading in ("what", "classes", "samples", "top-1"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for band in result["per_band"]:
        name = "no band" if band["band"] is None else f"band {band['band']}: {_band_range(band['band'])} images a class"
        table.add_row(name, f"{band['classes']:,}", f"{band['samples']:,}", _percent(band["top1"]))
    table.add_section()
    table.add_row("all", f"{len(result['per_class']):,}", f"{result['samples']:,}", _percent(result["top1"]))
    table.add_row("all, top-5", "", "", _percent(result["top5"]))
    table.add_row("all, mean per class", "", "", _percent(result["mean_class_top1"]))
    console.print(table)
    ranked = sorted((row for row in result["per_class"] if row["samples"]), key=lambda row: row["top1"])
    some = min(5, len(ranked) // 2)
    for title, rows in (("weakest", ranked[:some]), ("strongest", ranked[::-1][:some])):
        console.print(f"{title}: " + ", ".join(f"{row['name']} {_percent(row['top1'])}" for row in rows), markup=False)


def _band_range(band: int) -> str:
    first, last = band_range(band)
    return f"{first:,}" if last <= first else f"{first:,} to {last:,}"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.2%}"
