"""`wv-export`: a run's model as one file, safetensors for timm or ONNX, checked before it is there."""

import sys
from pathlib import Path
from typing import cast

import click

from wv_train.checkpoint import Checkpoint
from wv_train.errors import CheckpointError, TrainError
from wv_train.export import TOLERANCE, WeightsChoice, load_trained, write_onnx, write_safetensors
from wv_train.run_directory import RunDirectory

EPILOG = """\b
Examples:
  wv-export --run runs/gated --out model.safetensors
  wv-export --run runs/gated --checkpoint best --out model.onnx --normalize

A .safetensors file loads into timm: timm.create_model(NAME, num_classes=K, checkpoint_path=FILE). Both hold the class
names and what the model expects as metadata. Images are RGB, float32, normalised by the model's mean and std; with
--normalize the graph takes uint8 images as they are.
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--run", "run_path", type=click.Path(path_type=Path), help="Folder of a run of wv-train.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="File to write: NAME.safetensors or NAME.onnx."
)
@click.option(
    "--checkpoint", metavar="last|best|FILE", default="last", show_default=True, help="A FILE needs no --run."
)
@click.option(
    "--weights",
    type=click.Choice(["auto", "model", "ema"]),
    default="auto",
    show_default=True,
    help="auto: the averaged weights where the run kept them, else the model's.",
)
@click.option("--normalize", is_flag=True, help="ONNX: take uint8 images and normalise them in the graph.")
@click.version_option(package_name="wv-toolkit")
def command(run_path: Path | None, out: Path, checkpoint: str, weights: str, normalize: bool) -> None:
    """Write a trained model for use elsewhere, and check the file against the model on logits."""
    if out.suffix not in (".safetensors", ".onnx"):
        raise click.UsageError(f"--out {out}: expected NAME.safetensors or NAME.onnx")
    if normalize and out.suffix != ".onnx":
        raise click.UsageError("--normalize: only a graph can normalise; write NAME.onnx")
    path = _checkpoint_path(run_path, checkpoint)
    trained = load_trained(Checkpoint.load(path), cast(WeightsChoice, weights))
    if out.suffix == ".onnx":
        difference = write_onnx(trained, out, normalize=normalize)
    else:
        difference = write_safetensors(trained, out)
    facts, size = trained.facts, trained.size_px
    click.echo(
        f"{out}: {facts['model']}, {facts['num_classes']} classes, {facts['weights']} weights of {path} "
        f"after step {int(facts['step']):,}"
    )
    takes = "uint8 RGB" if normalize else "float32 RGB in [0, 1], minus mean, over std"
    click.echo(f"takes (batch, 3, {size}, {size}), {takes}; mean {facts['mean']}, std {facts['std']}")
    click.echo(
        f"checked on seeded batches: logits differ from the model's by {difference.largest:.2g} at most "
        f"(allowed {TOLERANCE:g} of the largest, {difference.largest_logit:.3g})"
    )


def main() -> None:
    """Entry point: expected mistakes become one line and exit code 1, wrong usage 2."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        sys.stderr.write(f"wv-export: {error.format_message()}\n")
        sys.exit(2)
    except TrainError as error:
        sys.stderr.write(f"wv-export: {error}\n")
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("wv-export: interrupted\n")
        sys.exit(130)


def _checkpoint_path(run_path: Path | None, checkpoint: str) -> Path:
    """Where the checkpoint lies. Raises TrainError where the run has none of that name."""
    if checkpoint not in ("last", "best"):
        return Path(checkpoint)
    if run_path is None:
        raise click.UsageError("--run is missing: the folder of a run, or give --checkpoint FILE")
    run = RunDirectory(run_path)
    run.read_info()
    path = run.last if checkpoint == "last" else run.best
    if not path.exists():
        why = "nothing was validated" if checkpoint == "best" else "it was stopped before its first checkpoint"
        raise CheckpointError(f"{path}: no such checkpoint ({why})")
    return path
