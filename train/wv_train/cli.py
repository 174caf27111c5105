"""`wv-train`: options in, a job out, and every mistake as one line."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click

from wv_loader import ENGINES, EngineError, LoaderError
from wv_shards import ShardsError
from wv_train.data import DataConfig
from wv_train.distributed import RANK_TIMEOUT_S, ends_as_rank
from wv_train.dry_run import dry_run as plan_only
from wv_train.errors import RecipeError, TrainError
from wv_train.job import Job, run_job, should_resume
from wv_train.models import SMALL_MODELS
from wv_train.options import ENGINE_HELP, bad_budget_option, holdout_option
from wv_train.recipe import Recipe, load_recipe, recipe_from_table, recipe_names
from wv_train.run_directory import RunDirectory
from wv_train.signals import Stopped
from wv_train.table import to_table, to_toml
from wv_train.trainer import Pace
from wv_train.zoo import as_text

EPILOG = f"""\b
Shipped recipes: {", ".join(recipe_names())}

\b
Examples:
  wv-train --shards train/ --val val/ --recipe demo --out runs/gated
  wv-train --shards train/ --recipe my.toml --out runs/a --set phases.gated.gate.start=0.3
  wv-train --resume --out runs/gated
  wv-train --shards train/ --holdout 0.1 --recipe demo --out runs/tuned
  torchrun --nproc-per-node 8 -m wv_train --shards train/ --recipe webvision1-resnet50 --out runs/r50
  torchrun --nproc-per-node 2 -m wv_train --resume --out runs/r50 --micro-batch 64    fewer GPUs, the same global batch
  wv-train --recipe demo --print-recipe > my.toml
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shards", type=click.Path(path_type=Path), help="Training shards, made by wv-ingest.")
@click.option("--val", type=click.Path(path_type=Path), help="Validation shards, with the same classes.")
@click.option("--recipe", "recipe_name", metavar="NAME|FILE", help="A shipped recipe or a TOML file.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; new or empty, but for --resume.")
@click.option(
    "--resume",
    type=click.Choice(["must", "auto"]),
    is_flag=False,
    flag_value="must",
    help="Continue the run in --out, which remembers shards, recipe and all; `auto`: or begin it if there is none.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key; phases go by name.")
@click.option("--pretrained", metavar="FILE", help="Weights to start from: .safetensors, .pth, or a run's last.pt.")
@click.option("--head-only", is_flag=True, help="Train the head only: backbone_factor = 0 in every phase.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's seed.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch on a CPU.")
@click.option("--loader-threads", type=click.IntRange(min=1), help="Threads that decode.")
@click.option(
    "--loader-processes", type=click.IntRange(min=0), default=0, help="Processes that share their work; wv-bench gil."
)
@click.option("--read-ahead-mb", type=click.IntRange(min=0), help="Memory for files that are read ahead, per rank.")
@bad_budget_option
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Serve Prometheus metrics; local rank k takes PORT + k."
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address that --metrics-port listens on.")
@click.option(
    "--rank-timeout-s",
    type=click.FloatRange(min=1),
    default=RANK_TIMEOUT_S,
    show_default=True,
    help="Under torchrun, how long a rank may stand still before the others give the job up.",
)
@click.option("--engine", type=click.Choice(ENGINES), help=f"{ENGINE_HELP} Without it: auto, or the resumed run's.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--micro-batch",
    type=click.IntRange(min=1),
    help="Samples that go through the model at once on a rank; more of the global batch is accumulated.",
)
@click.option("--compile", "compile_model", is_flag=True, help="Compile the model with torch.compile.")
@click.option(
    "--exclude",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Overlay of samples not to be shown.",
)
@holdout_option
@click.option(
    "--overlays",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the overlays that the recipe names, made by wv-annotate.  [default: where the command runs]",
)
@click.option(
    "--truth", type=click.Path(path_type=Path), help="CSV with path, label, true_label: measure the gate's precision."
)
@click.option("--list-models", is_flag=True, help="Print the models that are tested, with their figures, and stop.")
@click.option("--print-recipe", is_flag=True, help="Print the recipe as it would be used, and stop.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would run and need, write nothing.")
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Of --dry-run: rates and gate as this SVG file."
)
@click.version_option(package_name="wv-toolkit")
def command(
    shards: Path | None,
    val: Path | None,
    recipe_name: str | None,
    out: Path | None,
    resume: str | None,
    overrides: tuple[str, ...],
    pretrained: str | None,
    head_only: bool,
    seed: int | None,
    threads: int | None,
    loader_threads: int | None,
    loader_processes: int,
    read_ahead_mb: int | None,
    bad_budget: int | float | None,
    metrics_port: int | None,
    metrics_host: str,
    rank_timeout_s: float,
    engine: str | None,
    device: str,
    micro_batch: int | None,
    compile_model: bool,
    exclude: tuple[Path, ...],
    holdout: float | None,
    overlays: Path | None,
    truth: Path | None,
    list_models: bool,
    print_recipe: bool,
    dry_run: bool,
    picture: Path | None,
) -> None:
    """Train a classifier on shards of noisy, skewed web images.

    A recipe lists the phases: base, gated (samples that the model does not believe teach nothing), fine-tune.
    """
    if list_models:
        click.echo(as_text(list(SMALL_MODELS)))
        return
    if seed is not None:
        overrides = (*overrides, f"seed={seed}")
    if pretrained is not None:
        overrides = (*overrides, to_toml({"pretrained": pretrained}))
    if print_recipe:
        click.echo(to_toml(to_table(_recipe(recipe_name, overrides, None, head_only=head_only))), nl=False)
        return
    if picture is not None and not dry_run:
        raise click.UsageError("--picture goes with --dry-run")
    if picture is not None and not picture.parent.is_dir():
        raise click.UsageError(f"--picture {picture}: expected a folder that is there, found no {picture.parent}")
    if out is None and not dry_run:
        raise click.UsageError("--out is missing: the folder that the run is written to")
    remembered = False
    resumes = out is not None and should_resume(RunDirectory(out), resume)
    saved = RunDirectory(out).read_info() if resumes and out is not None else None
    recipe = _recipe(recipe_name, overrides, saved["recipe"] if saved else None, head_only=head_only)
    if saved:
        shards = shards or Path(saved["shards"])
        val = val or (Path(saved["val"]) if saved["val"] else None)
        exclude = exclude or tuple(Path(path) for path in saved["exclude"])
        holdout = saved.get("holdout") if holdout is None else holdout
        overlays = overlays or Path(saved.get("overlays", "."))
        truth = truth or (Path(saved["truth"]) if saved.get("truth") else None)
        remembered = engine is None
        engine = engine or saved["engine"]
    if shards is None:
        raise click.UsageError("--shards is missing: a folder made by wv-ingest build-shards")
    if holdout is not None and val is not None:
        raise click.UsageError(
            f"--holdout {holdout:g} and --val {val}: expected one of them: either is the set that the run is validated "
            "on; wv-eval evaluates the finished run on other shards"
        )
    job = Job(
        recipe=recipe,
        data=DataConfig(
            shards=shards,
            val=val,
            exclude=exclude,
            holdout=holdout,
            overlays=overlays or Path(),
            engine=engine or "auto",
            loader_threads=loader_threads,
            loader_processes=loader_processes,
            read_ahead_bytes=None if read_ahead_mb is None else read_ahead_mb * 1_000_000,
            bad_budget=bad_budget,
            quarantine=RunDirectory(out).quarantine if out is not None else None,
        ),
        out=out or Path("."),
        resume=resumes,
        device=device,
        threads=threads,
        truth=truth,
        pace=Pace(micro_batch=micro_batch, compile_model=compile_model),
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        rank_timeout_s=rank_timeout_s,
    )
    if dry_run:
        plan_only(job, picture)
        return
    try:
        run_job(job)
    except EngineError as error:
        if not remembered:
            raise
        raise TrainError(
            f"{error}; the run was started with it: resume with --engine auto, pixels then differ by a few levels"
        ) from error


@ends_as_rank()
def main() -> None:
    """Entry point: expected mistakes become one line, exit code 1, or 2 where the recipe or an option is wrong."""
    rank = os.environ.get("RANK", "0")
    name = "wv-train" if rank == "0" else f"wv-train (rank {rank})"
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        _exit(2, f"{name}: {error.format_message()}" if rank == "0" else "")  # all ranks got the same options
    except RecipeError as error:
        _exit(2, f"{name}: {error}" if rank == "0" else "")
    except (TrainError, LoaderError, ShardsError) as error:
        _exit(1, f"{name}: {error}")
    except OSError as error:  # no space, no permission, a folder that went away
        _exit(1, f"{name}: {error.filename or 'writing the run'}: {error.strerror or error}")
    except Stopped as stopped:
        _exit(stopped.exit_code, "")
    except (click.Abort, KeyboardInterrupt):
        _exit(130, f"{name}: interrupted")


def _exit(code: int, line: str) -> NoReturn:
    if line:
        sys.stderr.write(line + "\n")
    sys.exit(code)


def _recipe(
    name: str | None, overrides: tuple[str, ...], saved: dict[str, object] | None, *, head_only: bool
) -> Recipe:
    """The recipe asked for; without a name, the run's own (`saved`), or a usage error."""
    recipe = _read_recipe(name, overrides, saved)
    if head_only:
        recipe = replace(recipe, phases=tuple(replace(phase, backbone_factor=0.0) for phase in recipe.phases))
    return recipe


def _read_recipe(name: str | None, overrides: tuple[str, ...], saved: dict[str, object] | None) -> Recipe:
    if name is not None:
        return load_recipe(name, overrides)
    if saved is None:
        raise click.UsageError(f"--recipe is missing: a TOML file or one of {', '.join(recipe_names())}")
    return recipe_from_table(saved, overrides)
