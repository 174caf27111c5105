"""A teacher's opinion: the k most probable classes of every sample under a temperature.

After Hinton et al., "Distilling the Knowledge in a Neural Network", 2015: softmax(logits / T). The mix with the labels,
ŷ = λy + (1 − λ)s of Li et al., "Learning from Noisy Labels with Distillation", ICCV 2017, is the recipe's business.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wv_loader import Batch
from wv_train.annotate.sample_pass import Look
from wv_train.errors import FieldError
from wv_train.models import normalization
from wv_train.trained import Trained

KIND = "teacher"


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """What is kept of the softmax."""

    top_k: int = 5
    """Classes of each sample; at most as many as there are."""
    temperature: float = 2.0
    """T: logits are divided by it; above 1 the less probable classes say more."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise FieldError("top_k", "1 or more", self.top_k)
        if not 0.0 < self.temperature < float("inf"):
            raise FieldError("temperature", "a number above 0", self.temperature)


def teacher_dtype(top_k: int) -> np.dtype[np.void]:
    """A row of the overlay `teacher`: classes, most probable first (−1: none), and their probabilities.

    The probabilities are those of the whole softmax: what they lack to 1 went to the other classes.
    """
    return np.dtype([("class_id", "<i4", (top_k,)), ("probability", "<f2", (top_k,))])


def teacher_look(trained: Trained, options: TeacherOptions) -> Look:
    """Overlay `teacher`: (N,) of `teacher_dtype`."""
    model, classes = trained.model, len(trained.classes)
    top_k = min(options.top_k, classes)
    mean, std = normalization(model)
    dtype = teacher_dtype(top_k)
    empty = np.zeros((), dtype=dtype)
    empty["class_id"] = -1

    def rows(batch: Batch) -> NDArray[np.void]:
        logits = model(batch.normalized(mean, std)).float()  # (B, K)
        values, class_ids = torch.softmax(logits / options.temperature, dim=1).topk(top_k, dim=1)
        found = np.full(len(logits), empty, dtype=dtype)
        found["class_id"], found["probability"] = class_ids.cpu().numpy(), values.cpu().numpy()
        lost = ~torch.isfinite(logits).all(dim=1).cpu().numpy()
        found[lost] = empty
        return found

    return Look(
        kind=KIND,
        rows=rows,
        shape=(),
        dtype=dtype,
        empty=empty,
        neutral={"class_id": -1},
        options={"temperature": options.temperature, "top_k": top_k, "classes": classes},
    )
