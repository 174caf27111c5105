"""What a finished run is worth, on the clean test set and on its own training images; a process of `wv-bench methods`.

`python -m wv_bench.methods_judge RUN --test SHARDS --train SHARDS --truth CSV --out FILE`. The last checkpoint is
judged, never the best; the test set as `wv-eval` judges it. Both the model's weights and their moving average.
"""

import json
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from numpy.typing import NDArray

from wv_bench.methods_results import mean_of_rarest
from wv_shards import Dataset, write_atomic
from wv_train.distributed import World, open_world
from wv_train.evaluate import log_probabilities
from wv_train.evaluation import EvalConfig, evaluate_run, open_lockstep
from wv_train.lockstep import ValidationData, View
from wv_train.trained import Trained, load_trained
from wv_train.truth import UNKNOWN, read_true_labels

WEIGHTS: tuple[Literal["model", "ema"], ...] = ("model", "ema")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--test", "test", type=click.Path(path_type=Path), required=True)
@click.option("--train", "train", type=click.Path(path_type=Path), required=True)
@click.option("--truth", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--device", default="cpu")
@click.option("--loader-threads", type=int, default=1)
def main(run: Path, test: Path, train: Path, truth: Path, out: Path, device: str, loader_threads: int) -> None:
    """Judge a run of wv-train and write what was found."""
    torch.set_num_threads(1)
    with Dataset.open(train) as dataset:
        labels, true_labels = dataset.index["label"].astype(np.int64), read_true_labels(truth, dataset)
    found: dict[str, Any] = {}
    with open_world(device) as world:
        for weights in WEIGHTS:
            trained = load_trained(run, checkpoint="last", weights=weights, device=world.device)
            config = EvalConfig(data=ValidationData(shards=test, loader_threads=loader_threads))
            with open_lockstep([trained], config, world) as shown:
                evaluation = evaluate_run(trained, config, shown, world)
            predictions = predict_training_set(trained, train, world, loader_threads, len(labels))
            found[weights] = {**_chosen(evaluation), **on_training_images(predictions, labels, true_labels)}
    write_atomic(out, (json.dumps(found, indent=1) + "\n").encode())


def _chosen(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What of an evaluation is kept. `few_top1`: mean over the rarest third of the classes."""
    return {
        **{key: evaluation[key] for key in ("top1", "mean_class_top1", "loss", "expected_calibration_error", "step")},
        "few_top1": mean_of_rarest(evaluation["per_class"], "top1", samples="training_samples"),
        "per_class": [
            {key: row[key] for key in ("name", "training_samples", "top1")} for row in evaluation["per_class"]
        ],
    }


def predict_training_set(
    trained: Trained, shards: Path, world: World, loader_threads: int, samples: int
) -> NDArray[np.int64]:
    """(N,) the class that the run sees in each training image, cropped in the centre; −1: excluded or not decodable."""
    config = EvalConfig(data=ValidationData(shards=shards, loader_threads=loader_threads))
    predictions = np.full(samples, -1, dtype=np.int64)
    view = View.of(trained.recipe, config.positions[0])
    with torch.no_grad(), open_lockstep([trained], config, world) as shown:
        for showing in shown:
            logs = log_probabilities(trained.model, showing.batches[view], showing.valid)  # (n, K)
            predictions[showing.ordinals[showing.valid].cpu().numpy()] = logs.argmax(dim=1).cpu().numpy()
    return predictions


def on_training_images(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], true_labels: NDArray[np.int64]
) -> dict[str, float | None]:
    """The memorised share, and the accuracy by the true labels. Arrays are (N,); predictions −1: not seen.

    memorised_fraction: of the samples whose label is wrong, those whose wrong label the run gives back.
    train_true_top1: of the samples that show a class, those that the run recognises.
    """
    known = (predictions >= 0) & (true_labels != UNKNOWN)
    wrong, of_a_class = known & (labels != true_labels), known & (true_labels >= 0)
    return {
        "memorised_fraction": float((predictions == labels)[wrong].mean()) if wrong.any() else None,
        "train_true_top1": float((predictions == true_labels)[of_a_class].mean()) if of_a_class.any() else None,
    }


if __name__ == "__main__":
    main()
