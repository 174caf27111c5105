"""A run's opinion of image files: found, decoded as `wv-eval` shows its samples, and looked at in batches.

A file that is no picture is an answer like any other. Shows nothing.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wv_loader import Batch, decode_pictures
from wv_train.evaluate import evaluation_mode, log_probabilities
from wv_train.trained import Trained


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a run thinks of one file; empty where it could not be read."""

    path: Path
    class_ids: tuple[int, ...] = ()
    """Most probable first."""
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files to look at: those named, and of each folder, in its place, all that have an image's suffix, sorted by
    their path. Folders are searched to the bottom; links to other folders are not followed."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
            found += sorted(file for file in below if file.suffix.lower() in _suffixes())
        else:
            found.append(path)
    return found


def predict(
    trained: Trained, paths: Sequence[Path], *, top: int, batch_size: int, threads: int
) -> Iterator[Prediction]:
    """Look at files, in their order; the next batch is decoded while the model looks at one.

    Args:
        trained: the run.
        paths: image files.
        top: classes per file, at most.
        batch_size: files that the model sees at once.
        threads: that read and decode.
    """
    top = min(top, len(trained.classes))
    with ThreadPoolExecutor(threads) as pool, evaluation_mode(trained.model):
        batches = [paths[first : first + batch_size] for first in range(0, len(paths), batch_size)]
        ahead = _decode(pool, trained, batches[0]) if batches else []
        for number, batch in enumerate(batches):
            decoded, ahead = ahead, _decode(pool, trained, batches[number + 1]) if number + 1 < len(batches) else []
            yield from _look(trained, batch, [one.result() for one in decoded], top)


_Picture = tuple[NDArray[np.uint8] | None, str | None]
"""(S, S, 3) pixels, or why there are none."""


def _decode(pool: ThreadPoolExecutor, trained: Trained, paths: Sequence[Path]) -> list["Future[_Picture]"]:
    return [pool.submit(_decode_one, trained, path) for path in paths]


def _decode_one(trained: Trained, path: Path) -> _Picture:
    try:
        data = path.read_bytes()
    except OSError as error:
        return None, error.strerror or "cannot be read"
    pixels, failures = decode_pictures([data], trained.recipe.size_px, trained.recipe.augment)
    return (pixels[0], None) if failures[0] is None else (None, "not an image, or damaged")


def _look(trained: Trained, paths: Sequence[Path], pictures: Sequence[_Picture], top: int) -> list[Prediction]:
    good = [pixels for pixels, _ in pictures if pixels is not None]
    rows = iter(_top(trained, np.stack(good), top) if good else [])
    return [
        Prediction(path=path, error=error) if pixels is None else _prediction(path, *next(rows))
        for path, (pixels, error) in zip(paths, pictures, strict=True)
    ]


def _prediction(path: Path, class_ids: list[int], probabilities: list[float]) -> Prediction:
    return Prediction(path=path, class_ids=tuple(class_ids), probabilities=tuple(probabilities))


def _top(trained: Trained, pixels: NDArray[np.uint8], top: int) -> list[tuple[list[int], list[float]]]:
    """The classes of highest probability, and these, of each of (n, S, S, 3) uint8."""
    device = next(trained.model.parameters()).device
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (n, 3, S, S) channels-last
    none = torch.zeros(len(pixels), dtype=torch.int64)
    batch = Batch(images=images, labels=none, ordinals=none, valid=none == 0, index=0).to(device)
    values, class_ids = log_probabilities(trained.model, batch, batch.valid).exp().topk(top, dim=1)
    return list(zip(class_ids.tolist(), values.tolist(), strict=True))


@lru_cache(1)
def _suffixes() -> frozenset[str]:
    """Of the formats that Pillow reads."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN)
