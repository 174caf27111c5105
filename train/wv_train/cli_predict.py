"""`wv-predict`: what a run sees in image files."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from wv_train.bars import progress_bar
from wv_train.command_line import run_command
from wv_train.distributed import open_world
from wv_train.errors import TrainError
from wv_train.predict import Prediction, find_images, predict
from wv_train.trained import Weights, load_trained

_WIDEST_PATH = 60

EPILOG = """\b
Examples:
  wv-predict --run runs/gated photo.jpg
  wv-predict --run runs/gated photos/ --top 3
  wv-predict --run runs/gated photos/ --json > predictions.jsonl
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("images", metavar="IMAGE|FOLDER…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", "run_path", required=True, type=click.Path(path_type=Path), help="Folder of a run of wv-train.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON per image instead of the table.")
@click.option("--checkpoint", metavar="last|best|FILE", default="last", show_default=True)
@click.option(
    "--weights",
    type=click.Choice(["auto", "model", "ema"]),
    default="auto",
    show_default=True,
    help="The model's own or their moving average; auto: the average where there is one.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Images looked at at once."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.version_option(package_name="wv-toolkit")
def command(
    images: tuple[Path, ...],
    run_path: Path,
    top: int,
    as_json: bool,
    checkpoint: str,
    weights: Weights,
    batch_size: int,
    device: str,
) -> None:
    """The most probable classes of each IMAGE, and of all images in each FOLDER, from a single centre crop.

    Images are decoded as wv-eval's engine pillow does. Files that can't be read are named and counted; the exit code is
    1 where none could be.
    """
    paths = find_images(images)
    if not paths:
        raise TrainError(f"{images[0]}: expected images, found none")
    with open_world(device) as world:
        if world.size > 1:
            raise TrainError("wv-predict runs in one process: start it without torchrun")
        trained = load_trained(run_path, checkpoint=checkpoint, weights=weights, device=world.device)
        found = predict(trained, paths, top=top, batch_size=batch_size, threads=len(os.sched_getaffinity(0)))
        # Of odd files Pillow says much that the answer says in a word.
        with warnings.catch_warnings(), progress_bar("images", len(paths), shown=as_json) as advance:
            warnings.filterwarnings("ignore", module="PIL")
            failed = _write(found, trained.classes, width=_width(paths), as_json=as_json, advance=advance)
    if failed == len(paths):
        raise TrainError(f"none of {failed:,} files could be read as an image")
    if failed:
        click.echo(f"{failed:,} of {len(paths):,} files could not be read as images", err=True)


def main() -> None:
    """Entry point: expected mistakes become one line and exit code 1, wrong usage 2."""
    run_command("wv-predict", command)


def _write(
    found: Iterable[Prediction], classes: Sequence[str], *, width: int, as_json: bool, advance: Callable[[int], object]
) -> int:
    """Say what was found, as it is found; the number of files that could not be read."""
    failed = 0
    for prediction in found:
        failed += prediction.error is not None
        if as_json:
            click.echo(json.dumps(_row(prediction, classes)))
        elif prediction.error is not None:
            click.echo(f"{_text(prediction.path)}: {prediction.error}", err=True)
        else:
            _write_block(prediction, classes, width)
        advance(1)
    return failed


def _row(prediction: Prediction, classes: Sequence[str]) -> dict[str, object]:
    if prediction.error is not None:
        return {"path": str(prediction.path), "error": prediction.error}
    pairs = zip(prediction.class_ids, prediction.probabilities, strict=True)
    rows = [{"class_id": one, "name": classes[one], "probability": probability} for one, probability in pairs]
    return {"path": str(prediction.path), "predictions": rows}


def _write_block(prediction: Prediction, classes: Sequence[str], width: int) -> None:
    """The file's path, and beside and below it a line per class."""
    path = _text(prediction.path)
    if len(path) > width:
        click.echo(path)
        path = ""
    for class_id, probability in zip(prediction.class_ids, prediction.probabilities, strict=True):
        click.echo(f"{path:<{width}}  {probability:7.2%}  {class_id:>4}  {classes[class_id]}")
        path = ""


def _width(paths: Sequence[Path]) -> int:
    return min(_WIDEST_PATH, max(len(_text(path)) for path in paths))


def _text(path: Path) -> str:
    """A path as it can be printed: names on disk are bytes, and may be no text."""
    return os.fsencode(path).decode("utf-8", "replace")
