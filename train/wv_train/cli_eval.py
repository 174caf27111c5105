"""`wv-eval`: a run, or an ensemble of runs, against a validation set, as JSON and as a table."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from wv_loader import ENGINES, engine_line
from wv_shards import write_atomic
from wv_train.bars import progress_bar
from wv_train.command_line import run_command
from wv_train.crops import MAX_CROPS, crop_positions
from wv_train.distributed import ends_as_rank, open_world
from wv_train.ensemble import normalized, parse_member
from wv_train.errors import TrainError
from wv_train.eval_screen import show_result
from wv_train.evaluate import CountGroups
from wv_train.evaluation import EvalConfig, evaluate_ensemble, evaluate_run, open_lockstep
from wv_train.lockstep import ValidationData
from wv_train.options import ENGINE_HELP, bad_budget_option
from wv_train.trained import Weights, load_trained

EPILOG = """\b
Examples:
  wv-eval --run runs/gated --shards val/
  wv-eval --run runs/gated --shards val/ --checkpoint best --json best.json
  wv-eval --run runs/gated --shards val/ --crops 9
  wv-eval --ensemble runs/a:0.6 --ensemble runs/b:0.4 --shards val/
  wv-eval --ensemble runs/a --ensemble runs/b --fit-weights --shards val/ --json ensemble.json
  torchrun --nproc-per-node 8 -m wv_train.cli_eval -r runs/gated --shards val/     (torchrun takes --run for its own)
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-r", "--run", "run_path", type=click.Path(path_type=Path), help="Folder of a run of wv-train.")
@click.option(
    "--ensemble",
    "members",
    multiple=True,
    metavar="RUN[:WEIGHT]",
    help="Instead of --run, once for each of several runs.",
)
@click.option(
    "--fit-weights", is_flag=True, help="Fit the ensemble's weights on one half of the set, test on the other."
)
@click.option("--shards", required=True, type=click.Path(path_type=Path), help="Shards to evaluate on.")
@click.option("--checkpoint", metavar="last|best|FILE", default="last", show_default=True, help="Of each run.")
@click.option(
    "--weights",
    type=click.Choice(["auto", "model", "ema"]),
    default="auto",
    show_default=True,
    help="The model's own or their moving average; auto: the average where there is one.",
)
@click.option(
    "--crops",
    type=click.IntRange(1, MAX_CROPS),
    default=1,
    show_default=True,
    help="Crops of each image: the centre, and the others around it; 5 with the corners, 9 with their midpoints too.",
)
@click.option(
    "--many-over",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Many: classes with more training samples than this.",
)
@click.option(
    "--few-under",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Few: classes with fewer training samples than this.",
)
@click.option(
    "--confused-pairs",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Most confused pairs that eval.json lists.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Where the result goes. Without it: eval.json in the run's folder; of an ensemble, nowhere.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Instead of the recipe's; does not change the result.")
@click.option("--loader-threads", type=click.IntRange(min=1), help="Threads that read and decode, of each loader.")
@bad_budget_option
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help=ENGINE_HELP)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.version_option(package_name="wv-toolkit")
def command(
    run_path: Path | None,
    members: tuple[str, ...],
    fit_weights: bool,
    shards: Path,
    checkpoint: str,
    weights: Weights,
    crops: int,
    many_over: int,
    few_under: int,
    confused_pairs: int,
    json_path: Path | None,
    batch_size: int | None,
    loader_threads: int | None,
    engine: str,
    bad_budget: int | float | None,
    device: str,
) -> None:
    """Top-1, top-5, mean per class, per class and band, calibration, most confused classes.

    From a single centre crop of each image, or from several to see how much they differ. Every sample counts once, also
    under torchrun; samples that can't be decoded are counted apart. docs/evaluation.md says what each number is.
    """
    try:
        parsed = [parse_member(text) for text in members]
        given = normalized([weight for _, weight in parsed])
        groups = CountGroups(many_over=many_over, few_under=few_under)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _check_usage(run_path, members, fit_weights=fit_weights, checkpoint=checkpoint)
    config = EvalConfig(
        data=ValidationData(
            shards=shards, engine=engine, loader_threads=loader_threads, bad_budget=bad_budget, batch_size=batch_size
        ),
        positions=crop_positions(crops),
        groups=groups,
        confused_pairs=confused_pairs,
    )
    paths = [run_path] if run_path is not None else [path for path, _ in parsed]
    with open_world(device) as world:
        loaded = [load_trained(path, checkpoint=checkpoint, weights=weights, device=world.device) for path in paths]
        with open_lockstep(loaded, config, world) as shown:
            if world.is_main:
                click.echo(engine_line(shown.first.engine), err=True)
            passes = 2 if fit_weights else 1
            with progress_bar("evaluating", passes * shown.slots, shown=world.is_main) as advance:
                if run_path is not None:
                    result = evaluate_run(loaded[0], config, shown, world, advance)
                else:
                    result = evaluate_ensemble(loaded, given, config, shown, world, fit=fit_weights, advance=advance)
        if world.is_main:
            _finish(result, json_path or (loaded[0].run.eval_json if run_path is not None else None))


@ends_as_rank()
def main() -> None:
    """Entry point: expected mistakes become one line and exit code 1, wrong usage 2."""
    run_command("wv-eval", command)


def _check_usage(run_path: Path | None, members: tuple[str, ...], *, fit_weights: bool, checkpoint: str) -> None:
    if (run_path is None) == (not members):
        raise click.UsageError("expected either --run RUN or --ensemble RUN[:WEIGHT] for each of several runs")
    if members and len(members) < 2:
        raise click.UsageError(f"--ensemble: expected two runs or more, found {members[0]} alone; --run evaluates one")
    if fit_weights and not members:
        raise click.UsageError("--fit-weights: expected an ensemble: --ensemble RUN for each of several runs")
    if members and checkpoint not in ("last", "best"):
        raise click.UsageError(f"--checkpoint: expected last or best, of each run of the ensemble, found {checkpoint}")


def _finish(result: dict[str, Any], path: Path | None) -> None:
    """Write the result, whole or not at all, and show it."""
    if path is not None:
        try:
            write_atomic(path, (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise TrainError(f"{path}: cannot be written: {error.strerror}") from error
    show_result(result, Console(highlight=False))
    click.echo(f"written to {path}" if path is not None else "not written: --json FILE keeps it", err=True)


if __name__ == "__main__":
    main()
