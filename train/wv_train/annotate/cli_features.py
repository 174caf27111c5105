"""`wv-annotate features`: what a run's head sees of every sample."""

from pathlib import Path
from typing import Any

import click

from wv_train.annotate.cli_pass import PassOptions, pass_options, run_pass
from wv_train.annotate.features import KIND, features_look

EPILOG = """\b
Examples:
  wv-annotate features runs/gated
  wv-annotate features runs/gated --checkpoint best --out overlays/features
  wv-annotate features runs/gated --shards other/shards --out other/features
"""


@click.command(epilog=EPILOG)
@pass_options
def command(run_path: Path, **options: Any) -> None:
    """Write the overlay `features`: the penultimate layer of RUN's model for every sample, from its evaluation crop.

    (N, D) float16 in RUN/features.npy, filled on disk and never held in memory. Samples that can't be decoded, and
    excluded ones, get NaN. A killed command goes on where it was; other weights, pixels or samples begin anew.
    """
    run_pass(run_path, features_look, KIND, PassOptions(**options))
