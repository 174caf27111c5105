"""What a run thinks of the samples that it was not trained on: a process of `wv-bench suspects`.

python -m wv_bench.suspects_predict RUN SHARDS LEFT_OUT OUT THREADS: OUT is (N, K) float32, NaN where LEFT_OUT is 0.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from wv_loader import Loader
from wv_shards import EXCLUDE, Manifest, Overlay
from wv_train.evaluate import evaluation_mode, log_probabilities
from wv_train.trained import load_trained


def main(run: Path, shards: Path, left_out: Path, out: Path, threads: int) -> None:
    """Look at the samples of one fold, with the averaged weights where the run has them."""
    torch.set_num_threads(threads)
    manifest = Manifest.load(shards)
    mine = Overlay.load_onto(left_out, manifest, kind=EXCLUDE).array != 0
    trained = load_trained(run, checkpoint="last", weights="auto", device=torch.device("cpu"))
    probabilities = np.full((manifest.samples, len(trained.classes)), np.nan, dtype=np.float32)
    loader = Loader(
        shards,
        batch_size=trained.recipe.batch_size,
        size_px=trained.recipe.size_px,
        train=False,
        augment=trained.recipe.augment,
        exclude=[~mine],
        threads=threads,
    )
    with evaluation_mode(trained.model):
        for batch in loader:
            found = log_probabilities(trained.model, batch, batch.valid).exp().numpy()
            probabilities[batch.ordinals[batch.valid].numpy()] = found
    loader.close()
    np.save(out, probabilities)


if __name__ == "__main__":
    run, shards, left_out, out, threads = sys.argv[1:]
    main(Path(run), Path(shards), Path(left_out), Path(out), int(threads))
