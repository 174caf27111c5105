"""One look at every sample of a data set by a run's model: evaluation crops, in order of the ordinals, a row for each.

What is looked at, and what a row holds, is the business of `features` and `teacher`. Resumable: see `OverlayRows`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import DTypeLike, NDArray
from torch import nn

from wv_loader import Batch, Loader, engine_line
from wv_shards import COMMIT_S, OverlayRows
from wv_train.data import check_classes
from wv_train.evaluate import evaluation_mode
from wv_train.trained import Trained


@dataclass(frozen=True, kw_only=True, slots=True)
class PassConfig:
    """Which samples, and how they are read."""

    shards: Path
    out: Path
    """Of the overlay, without suffix."""
    batch_size: int | None = None
    """None: the recipe's. Rounding apart it changes nothing."""
    engine: str = "auto"
    loader_threads: int | None = None
    bad_budget: int | float | None = 0.01
    commit_s: float = COMMIT_S
    """Seconds of work that a kill may cost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What is asked of the model."""

    kind: str
    """Of the overlay."""
    rows: Callable[[Batch], NDArray[Any]]
    """Of the slots of a batch on the model's device, (B, …)."""
    shape: tuple[int, ...]
    """Of one row."""
    dtype: DTypeLike
    empty: Any
    """The row of a sample that can't be looked at."""
    neutral: Any
    """As in `Overlay`."""
    options: dict[str, Any]
    """What decides the rows beside weights and pixels, JSON-able."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """What came of it."""

    samples: int
    """N."""
    resumed_at: int
    """Rows that an earlier process had made."""
    bad: int
    """Samples that could not be decoded, or of which the model makes no finite numbers."""
    excluded: int
    """By the data set's own overlay."""
    anew: str | None
    """What kept rows of an earlier process from being used."""
    finished_before: bool = False
    """The overlay was there already, and nothing was done."""


def look_at_samples(
    trained: Trained,
    look: Look,
    config: PassConfig,
    advance: Callable[[int], object] = lambda _: None,
    tell: Callable[[str], object] = lambda _: None,
) -> Passed:
    """Make the overlay, or what is left to do of it.

    Args:
        trained: the run; its model is on the device that works.
        look: what is asked of it.
        config: of which samples.
        advance: told how many more rows are there, those of an earlier process first.
        tell: told which engine decodes, and why.

    Raises:
        ClassMismatchError: the data set has other classes than the run.
        ShardsError, LoaderError: of the data set; OutputExistsError: another process makes the same.
    """
    with _loader(trained, config, exclude=None) as loader:
        dataset, engine, excluded = loader.dataset, loader.engine, loader.plan.layout.excluded
    check_classes(str(config.shards), trained.classes, [one.name for one in dataset.manifest.classes])
    tell(engine_line(engine))
    if excluded is None:
        excluded = np.zeros(dataset.manifest.samples, dtype=np.bool_)
    made: dict[str, Any] = {
        "kind": look.kind,
        "manifest_digest": dataset.manifest.digest,
        "identity": {**_identity(trained, excluded, engine.name), **look.options},
    }
    samples = dataset.manifest.samples
    if OverlayRows.is_finished(config.out, **made):
        advance(samples)
        return Passed(samples=samples, resumed_at=samples, bad=0, excluded=0, anew=None, finished_before=True)
    shape = (samples, *look.shape)
    with OverlayRows(config.out, shape=shape, dtype=look.dtype, commit_s=config.commit_s, **made) as rows:
        first = rows.done
        advance(first)
        if first < samples:
            _fill(rows, trained, look, config, advance)
        bad, left_out = rows.counts.get("bad", 0), int(np.count_nonzero(excluded))
        info = {**trained.facts(), "shards": str(config.shards), "bad": bad, "excluded": left_out}
        rows.finish(info=info, neutral=look.neutral)
    return Passed(samples=samples, resumed_at=first, bad=bad, excluded=left_out, anew=rows.anew)


def _fill(
    rows: OverlayRows, trained: Trained, look: Look, config: PassConfig, advance: Callable[[int], object]
) -> None:
    """The rows from `rows.done` on. Batches begin where an unbroken pass would have begun them."""
    samples = len(rows.array)
    made = np.arange(samples) < rows.done
    with _loader(trained, config, exclude=made) as loader, evaluation_mode(trained.model):
        for batch in loader:
            ordinals, valid = batch.ordinals.cpu().numpy(), batch.valid.cpu().numpy()
            shown = ordinals >= 0
            if not shown.any():
                continue
            stop = int(ordinals.max()) + 1
            block = np.full((stop - rows.done, *look.shape), look.empty, dtype=look.dtype)
            found = look.rows(batch)
            good = valid & _finite(found)
            block[ordinals[good] - rows.done] = found[good]
            rows.array[rows.done : stop] = block
            rows.counts["bad"] = rows.counts.get("bad", 0) + int((shown & ~good).sum())
            advance(stop - rows.done)
            rows.advance(stop)
    rows.array[rows.done :] = np.array(look.empty, dtype=look.dtype)  # excluded samples at the end
    advance(samples - rows.done)
    rows.advance(samples)


def _finite(found: NDArray[Any]) -> NDArray[np.bool_]:
    """(B,) rows without NaN; of records, whose numbers have limits, all."""
    if found.dtype.names is not None:
        return np.ones(len(found), dtype=np.bool_)
    return np.asarray(np.isfinite(found).reshape(len(found), -1).all(axis=1))


def _loader(trained: Trained, config: PassConfig, *, exclude: NDArray[np.bool_] | None) -> Loader:
    recipe = trained.recipe
    return Loader(
        config.shards,
        batch_size=config.batch_size or recipe.batch_size,
        size_px=recipe.size_px,
        engine=config.engine,
        train=False,
        exclude=() if exclude is None else (exclude,),
        augment=recipe.augment,
        rank=0,
        world_size=1,
        device=next(trained.model.parameters()).device,
        threads=config.loader_threads,
        bad_budget=config.bad_budget,
    )


def _identity(trained: Trained, excluded: NDArray[np.bool_], engine: str) -> dict[str, Any]:
    """All that decides a row, but for the data set and what is asked of the model."""
    return {
        "model": trained.recipe.model,
        "weights_digest": weights_digest(trained.model),
        "size_px": trained.recipe.size_px,
        "eval_crop_fraction": trained.recipe.augment.eval_crop_fraction,
        "engine": engine,
        "exclusions": xxhash.xxh3_128_hexdigest(excluded.tobytes()),
    }


def weights_digest(model: nn.Module) -> str:
    """xxh3_128 over a model's parameters and buffers, by name, in hexadecimal: whichever file they came from."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # bfloat16 is unknown to NumPy: bytes it is.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
