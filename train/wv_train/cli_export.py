"""`wv-export`: a run's model as one file, safetensors for timm or ONNX, checked before it is there."""

from pathlib import Path

import click
import torch

from wv_train.command_line import run_command
from wv_train.export import TOLERANCE, metadata, write_onnx, write_safetensors
from wv_train.trained import Weights, load_trained

EPILOG = """\b
Examples:
  wv-export --run runs/gated --out model.safetensors
  wv-export --run runs/gated --checkpoint best --out model.onnx --normalize

A .safetensors file loads into timm: timm.create_model(NAME, num_classes=K, checkpoint_path=FILE). Both hold the class
names and what the model expects as metadata. Images are RGB, float32, normalised by the model's mean and std; with
--normalize the graph takes uint8 images as they are.
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--run", "run_path", required=True, type=click.Path(path_type=Path), help="Folder of a run of wv-train.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="File to write: NAME.safetensors or NAME.onnx."
)
@click.option("--checkpoint", metavar="last|best|FILE", default="last", show_default=True)
@click.option(
    "--weights",
    type=click.Choice(["auto", "model", "ema"]),
    default="auto",
    show_default=True,
    help="The model's own or their moving average; auto: the average where there is one.",
)
@click.option("--normalize", is_flag=True, help="ONNX: take uint8 images and normalise them in the graph.")
@click.version_option(package_name="wv-toolkit")
def command(run_path: Path, out: Path, checkpoint: str, weights: Weights, normalize: bool) -> None:
    """Write a trained model for use elsewhere, and check the file against the model on logits."""
    if out.suffix not in (".safetensors", ".onnx"):
        raise click.UsageError(f"--out {out}: expected NAME.safetensors or NAME.onnx")
    if normalize and out.suffix != ".onnx":
        raise click.UsageError("--normalize: only a graph can normalise; write NAME.onnx")
    trained = load_trained(run_path, checkpoint=checkpoint, weights=weights, device=torch.device("cpu"))
    if out.suffix == ".onnx":
        difference = write_onnx(trained, out, normalize=normalize)
    else:
        difference = write_safetensors(trained, out)
    facts, size = metadata(trained), trained.recipe.size_px
    click.echo(
        f"{out}: {facts['model']}, {facts['num_classes']} classes, {trained.weights} weights of {run_path} "
        f"(checkpoint {checkpoint}) after step {trained.step:,}"
    )
    takes = "uint8 RGB" if normalize else "float32 RGB in [0, 1], minus mean, over std"
    click.echo(f"takes (batch, 3, {size}, {size}), {takes}; mean {facts['mean']}, std {facts['std']}")
    click.echo(
        f"checked on seeded batches: logits differ from the model's by {difference.largest:.2g} at most "
        f"(allowed {TOLERANCE:g} of the largest, {difference.largest_logit:.3g})"
    )


def main() -> None:
    """Entry point: expected mistakes become one line and exit code 1, wrong usage 2."""
    run_command("wv-export", command)
