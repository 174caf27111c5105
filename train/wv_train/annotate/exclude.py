"""`wv-annotate exclude`: the worst suspects as an overlay of kind `exclude`, for `wv-train --exclude`.

Of no class more than a given share goes: where training has learned little of a rare class, all of it looks suspicious.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from wv_shards import EXCLUDE, Overlay
from wv_train.annotate.suspects_choice import Choice, probability_option, top_option
from wv_train.annotate.suspects_overlay import SuspectsFile

EPILOG = """\b
Examples:
  wv-annotate exclude runs/gated/suspects --top 0.1 --out worst
  wv-train --exclude worst --shards shards/train --recipe cifar10n --out runs/without
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """Which samples go, and what the limit per class kept."""

    rows: NDArray[np.uint8]
    """(N,): 1 is not to be shown."""
    chosen: int
    """Samples that were asked for."""
    spared: int
    """Of them, those that stay because too many of their class would go."""
    classes_spared: int
    expected_wrong: float
    """Wrong labels expected among what goes."""


def exclude_suspects(
    wrong: NDArray[np.float32], labels: NDArray[np.int64], choice: Choice, *, max_class_fraction: float
) -> Excluded:
    """Choose the worst suspects, of no class more than a share.

    Args:
        wrong: (N,) probability that the label is wrong; below 0: unknown, never excluded.
        labels: (N,) class ids.
        choice: how many, or from which probability on.
        max_class_fraction: of a class's samples, rounded down.
    """
    order = choice.ordinals(wrong)
    classes = labels[order]
    counts = np.bincount(labels, minlength=int(labels.max(initial=-1)) + 1)
    most = np.floor(max_class_fraction * counts + 1e-9).astype(np.int64)  # (K,); 0.29 · 100 is 29, not 28
    allowed = _place_within_class(classes) < most[classes]
    rows = np.zeros(len(wrong), dtype=np.uint8)
    rows[order[allowed]] = 1
    return Excluded(
        rows=rows,
        chosen=len(order),
        spared=int(np.count_nonzero(~allowed)),
        classes_spared=len(np.unique(classes[~allowed])),
        expected_wrong=float(wrong[order[allowed]].sum(dtype=np.float64)),
    )


def _place_within_class(classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,): how many of the same class stand before each."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    first = np.searchsorted(ordered, ordered)
    places = np.empty(len(classes), dtype=np.int64)
    places[order] = np.arange(len(classes)) - first
    return places


@click.command(epilog=EPILOG)
@click.argument("suspects", metavar="SUSPECTS", type=click.Path(path_type=Path))
@top_option("Exclude so many of the worst: a share (0.1, 10%) of the samples that have a probability, or a number.")
@probability_option("Exclude labels that are wrong with this probability or a higher one.")
@click.option(
    "--max-per-class",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    default=0.5,
    show_default=True,
    help="Exclude no more than this share of any class.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The overlay, without suffix.")
@click.option("--shards", type=click.Path(path_type=Path), help="Where the shards are now, if they were moved.")
def command(
    suspects: Path, top: Any, min_probability: float | None, max_per_class: float, out: Path, shards: Path | None
) -> None:
    """Write an overlay of kind `exclude` with the worst of SUSPECTS, which `wv-annotate suspects` has made."""
    if top is None and min_probability is None:
        raise click.UsageError("expected --top or --min-probability: how much is to be excluded")
    if not out.parent.is_dir():
        raise click.UsageError(f"--out {out}: expected a folder that is there, found no {out.parent}")
    found = SuspectsFile.load(suspects, shards)
    choice = Choice(top=top, min_probability=min_probability or 0.0)
    excluded = exclude_suspects(found.rows["wrong"], found.labels, choice, max_class_fraction=max_per_class)
    Overlay(
        kind=EXCLUDE,
        array=excluded.rows,
        manifest_digest=found.manifest_digest,
        info={
            "made_of": str(suspects),
            "run": found.info.get("run"),
            "top": top,
            "min_probability": min_probability,
            "max_per_class": max_per_class,
        },
    ).save(out)
    click.echo(_told(excluded))
    click.echo(f"exclude: {out}; train without them: wv-train --exclude {out} …")


def _told(excluded: Excluded) -> str:
    """For a person."""
    gone, samples = int(np.count_nonzero(excluded.rows)), len(excluded.rows)
    told = f"{gone:,} of {samples:,} samples excluded ({gone / max(1, samples):.1%})"
    told += f", of which {excluded.expected_wrong:,.0f} are expected to have a wrong label (roughly: docs/suspects.md)"
    if excluded.spared:
        classes = "class" if excluded.classes_spared == 1 else "classes"
        told += f"; {excluded.spared:,} more stay, of {excluded.classes_spared:,} {classes} that --max-per-class keeps"
    return told
