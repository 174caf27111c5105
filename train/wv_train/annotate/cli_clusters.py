"""`wv-annotate clusters`: k-means of features, to learn in place of classes."""

from pathlib import Path

import click
import numpy as np
from click.core import ParameterSource

from wv_train.annotate.clusters import KIND, ClusterOptions, make_clusters
from wv_train.annotate.feature_input import open_features
from wv_train.annotate.taken_up import say_taken_up
from wv_train.bars import progress_bar
from wv_train.errors import FieldError

EPILOG = """\b
Examples:
  wv-annotate clusters runs/base/features
  wv-annotate clusters runs/base/features --clusters 5000 --out overlays/clusters
  wv-annotate clusters runs/base/features --per-class 4 --pca 64
"""


@click.command(epilog=EPILOG)
@click.argument("features_path", metavar="FEATURES", type=click.Path(path_type=Path))
@click.option("--clusters", type=click.IntRange(min=1), default=1000, show_default=True, help="Over all samples.")
@click.option("--per-class", metavar="M", type=click.IntRange(min=1), help="Instead: M clusters within each class.")
@click.option(
    "--pca", type=click.IntRange(min=1), default=128, show_default=True, help="Components of the whitened features."
)
@click.option("--iterations", type=click.IntRange(min=1), default=25, show_default=True, help="Of k-means.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--shards", type=click.Path(path_type=Path), help="Where the shards are now, if they were moved.")
@click.option(
    "--out", metavar="BASE", type=click.Path(path_type=Path), help="Without suffix. Default: clusters beside FEATURES."
)
def command(
    features_path: Path,
    clusters: int,
    per_class: int | None,
    pca: int,
    iterations: int,
    seed: int,
    shards: Path | None,
    out: Path | None,
) -> None:
    """Write the overlay `clusters`: the cluster of every sample, by k-means on PCA-whitened FEATURES.

    Over all samples, or within each class (ids then go on from class to class). The same seed and number of threads
    give the same clusters. A killed command goes on after its last iteration, piece or class.
    """
    try:
        options = ClusterOptions(clusters=clusters, per_class=per_class, pca=pca, iterations=iterations, seed=seed)
    except FieldError as error:
        raise click.UsageError(str(error)) from error
    given = click.get_current_context().get_parameter_source
    if per_class is not None and given("clusters") is not ParameterSource.DEFAULT:
        raise click.UsageError("--clusters and --per-class: expected one of them")
    features = open_features(features_path, shards)
    out = out or features_path.with_name(KIND)
    found = make_clusters(features, options, out, progress_bar)
    say_taken_up(found.anew, "taken up where it was left" if found.resumed else "")
    sizes = found.sizes
    fewer = f" ({found.asked:,} asked for)" if len(sizes) < found.asked else ""
    missing = f"; {found.without:,} samples without features" if found.without else ""
    click.echo(
        f"{out}: {len(sizes):,} clusters{fewer} of {sizes.min():,} to {sizes.max():,} samples, "
        f"median {int(np.median(sizes)):,}{missing}"
    )
