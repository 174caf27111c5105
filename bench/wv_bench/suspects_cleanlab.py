"""cleanlab's label quality scores of out-of-fold probabilities: a process of `wv-bench suspects`.

Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021. The only file that imports
cleanlab. python -m wv_bench.suspects_cleanlab PROBABILITIES SHARDS OUT
"""

import sys
from pathlib import Path

import numpy as np
from cleanlab.rank import get_label_quality_scores

from wv_bench.suspects_stages import CLEANLAB_METHODS
from wv_shards import Dataset


def main(probabilities: Path, shards: Path, out: Path) -> None:
    """Score every sample; a sample without probabilities (an image that cannot be decoded) is scored 1, good."""
    with Dataset.open(shards) as dataset:
        labels = dataset.index["label"].astype(np.int64)
    values = np.load(probabilities)
    known = np.isfinite(values).all(axis=1)
    scores = {}
    for name in CLEANLAB_METHODS:
        scores[name] = np.ones(len(labels))
        scores[name][known] = get_label_quality_scores(
            labels[known], values[known].astype(np.float64), method=name, adjust_pred_probs=name != CLEANLAB_METHODS[0]
        )
    np.savez(out, **scores)  # type: ignore[arg-type]  # NumPy's types take them for allow_pickle


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
