"""Features: what the head of a run's model sees of a sample, (D,) float16."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wv_loader import Batch
from wv_train.annotate.sample_pass import Look
from wv_train.evaluate import evaluation_mode
from wv_train.models import features, normalization
from wv_train.trained import Trained

KIND = "features"


def features_look(trained: Trained) -> Look:
    """Overlay `features`: (N, D) float16, NaN in the rows of samples that can't be looked at.

    Values beyond float16's ±65,504 are cut to that.
    """
    model, size_px = trained.model, trained.recipe.size_px
    mean, std = normalization(model)
    device = next(model.parameters()).device
    with evaluation_mode(model):
        blank = torch.zeros(1, 3, size_px, size_px, device=device)
        width = features(model, blank).shape[1]

    def rows(batch: Batch) -> NDArray[np.float16]:
        return _half(features(model, batch.normalized(mean, std)))

    # JSON has no NaN; NumPy takes the word for one.
    return Look(kind=KIND, rows=rows, shape=(width,), dtype=np.float16, empty=np.nan, neutral="nan", options={})


def _half(values: Tensor) -> NDArray[np.float16]:
    """(B, D) on the host."""
    limit = torch.finfo(torch.float16).max
    return np.asarray(values.float().clamp(-limit, limit).half().cpu().numpy())
