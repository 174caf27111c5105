"""Tiers of every class by the density of its features: easy, middle, hard. What density is, `density` says."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_shards import COMMIT_S, Overlay, OverlayRows
from wv_train.annotate.density import QUANTILE, TIERS, densities, sampled_densities, tiers
from wv_train.annotate.feature_input import Features
from wv_train.errors import FieldError

KIND = "tiers"


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumOptions:
    """What is asked for."""

    exact_up_to: int = 4096
    """Samples of a class up to which all its distances are looked at: n² of them, 8 bytes each."""
    references: int = 2048
    """Of larger classes: samples that all others are compared with."""
    seed: int = 0
    """Of the references."""

    def __post_init__(self) -> None:
        if self.references < 2:
            raise FieldError("references", "2 or more", self.references)
        if self.exact_up_to < self.references:
            raise FieldError("exact_up_to", f"at least as many as references, {self.references}", self.exact_up_to)
        if self.seed < 0:
            raise FieldError("seed", "0 or more", self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiered:
    """What came of it."""

    counts: NDArray[np.int64]
    """(4,) samples without a tier, and of tiers 1, 2, 3."""
    sampled_classes: int
    """Classes whose densities were estimated."""
    resumed_at: int
    """Classes that an earlier process had done."""
    anew: str | None


def make_tiers(
    features: Features,
    options: CurriculumOptions,
    out: Path,
    advance: Callable[[int], None] = lambda _: None,
    *,
    commit_s: float = COMMIT_S,
) -> Tiered:
    """Make the overlay `tiers`, or what is left to do of it, as `out`; `advance` is told of samples."""
    identity = {**features.identity, **asdict(options), "quantile": QUANTILE}
    made: dict[str, Any] = {"kind": KIND, "manifest_digest": features.manifest_digest, "identity": identity}
    first, anew = 0, None
    if not OverlayRows.is_finished(out, **made):
        samples = len(features.array)
        with OverlayRows(out, shape=(samples,), dtype=np.uint8, commit_s=commit_s, **made) as rows:
            first, anew = rows.done, rows.anew
            for class_id, members in enumerate(features.by_class()):
                if class_id >= first:
                    found, sampled = _of_class(features, members, options, options.seed + class_id)
                    rows.array[members] = found
                    rows.counts["sampled_classes"] = rows.counts.get("sampled_classes", 0) + sampled
                    rows.advance(class_id + 1)
                advance(len(members))
            info = {"sampled_classes": rows.counts.get("sampled_classes", 0), "features": features.info}
            rows.finish(info=info)
    done = Overlay.load(out, manifest_digest=features.manifest_digest, kind=KIND)
    return Tiered(
        counts=np.bincount(done.array, minlength=TIERS + 1),
        sampled_classes=done.info["sampled_classes"],
        resumed_at=first,
        anew=anew,
    )


def _of_class(
    features: Features, members: NDArray[np.int64], options: CurriculumOptions, seed: int
) -> tuple[NDArray[np.uint8], bool]:
    """(n,) tiers of a class's members, 0 for those without features; whether they are estimated."""
    ordinals, taken = features.rows(members)
    sampled = len(ordinals) > options.exact_up_to
    found = np.zeros(len(members), dtype=np.uint8)
    if len(ordinals):
        density = sampled_densities(taken, options.references, seed) if sampled else densities(taken)
        found[np.searchsorted(members, ordinals)] = tiers(density)
    return found, sampled
