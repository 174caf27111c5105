"""`wv-annotate curriculum`: tiers of each class by density."""

from pathlib import Path

import click

from wv_train.annotate.curriculum import KIND, CurriculumOptions, make_tiers
from wv_train.annotate.feature_input import open_features
from wv_train.annotate.taken_up import say_taken_up
from wv_train.bars import progress_bar
from wv_train.errors import FieldError

EPILOG = """\b
Examples:
  wv-annotate curriculum runs/base/features
  wv-annotate curriculum runs/base/features --out overlays/tiers
  wv-annotate curriculum runs/base/features --exact-up-to 10000 --references 4096
"""


@click.command(epilog=EPILOG)
@click.argument("features_path", metavar="FEATURES", type=click.Path(path_type=Path))
@click.option(
    "--exact-up-to",
    type=click.IntRange(min=2),
    default=4096,
    show_default=True,
    help="Samples of a class up to which all pairs are compared.",
)
@click.option(
    "--references",
    type=click.IntRange(min=2),
    default=2048,
    show_default=True,
    help="Of a larger class: samples that its samples are compared with.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the references.")
@click.option("--shards", type=click.Path(path_type=Path), help="Where the shards are now, if they were moved.")
@click.option(
    "--out", metavar="BASE", type=click.Path(path_type=Path), help="Without suffix. Default: tiers beside FEATURES."
)
def command(
    features_path: Path, exact_up_to: int, references: int, seed: int, shards: Path | None, out: Path | None
) -> None:
    """Write the overlay `tiers`: 1 (easy), 2 or 3 (hard) for every sample, by the density of FEATURES within its class.

    As CurriculumNet does (Guo et al., ECCV 2018): the density of a sample is the number of its class's samples nearer
    than the 60% quantile of the class's distances; three groups of densities are the tiers, 1 the densest. 0: no
    features. A killed command goes on after its last class.

    Classes of more samples than --exact-up-to are compared with --references of their own, drawn by --seed. Measured on
    5,000 images of CIFAR-10N as one class, 2,048 references give 96 to 98% of them the tier that all pairs give, 1,024
    91 to 98%, and none a tier two away.
    """
    try:
        options = CurriculumOptions(exact_up_to=exact_up_to, references=references, seed=seed)
    except FieldError as error:
        raise click.UsageError(str(error)) from error
    features = open_features(features_path, shards)
    out = out or features_path.with_name(KIND)
    with progress_bar("tiers", len(features.array)) as advance:
        found = make_tiers(features, options, out, advance)
    say_taken_up(found.anew, f"{found.resumed_at:,} classes were done already" if found.resumed_at else "")
    none, *counts = found.counts
    missing = f"; {none:,} without features" if none else ""
    sampled = f"; {found.sampled_classes:,} classes by {references:,} references" if found.sampled_classes else ""
    numbers = ", ".join(f"{count:,} in tier {tier}" for tier, count in enumerate(counts, 1))
    click.echo(f"{out}: {numbers}{missing}{sampled}")
