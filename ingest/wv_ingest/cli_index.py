"""`wv-ingest index`: foreign WebDataset tars get an index and a manifest where they lie."""

import os
from pathlib import Path
from typing import Any

import click
import numpy as np

from wv_ingest.check import CheckOptions, codecs
from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.index_shards import IndexOptions, index_shards
from wv_ingest.pool import WorkerLimits
from wv_ingest.summary import print_summary
from wv_shards import FLAG_BAD, Dataset


@click.command("index")
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--split", type=click.Choice(["train", "val"]), default="train", show_default=True, help="Recorded.")
@click.option(
    "--label-key",
    metavar="KEY",
    help="The label is this value of a sample's .json, as in meta.class. Default: the number in .cls, else "
    "label in .json.",
)
@click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Names of the classes, one a line, in the order of their ids.",
)
@click.option(
    "--check",
    type=click.Choice(["full", "header"]),
    default="full",
    show_default=True,
    help="Decode every image, or read its size from the header alone.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes. Default: one for each core.")
@click.option(
    "--max-cpu-s", type=float, default=60.0, show_default=True, help="An image that takes longer counts as broken."
)
@click.option(
    "--max-memory-mb", type=int, default=4096, show_default=True, help="One for which a worker needs more, too."
)
@one_line_errors
def index_command(
    directory: Path,
    *,
    split: Any,
    label_key: str | None,
    class_names: Path | None,
    check: Any,
    workers: int | None,
    max_cpu_s: float,
    max_memory_mb: int,
) -> None:
    """Make a data set of the WebDataset tars in DIR, without rewriting them.

    Writes manifest.json, index.npy, samples.parquet, rejects.parquet and a DALI index for each tar, beside the tars.
    An image that does not decode stays in the index, flagged: loaders mask it. Samples without image or label are
    rejects. A run that was stopped goes on when the same command is run again.

    \b
    Examples:
      wv-ingest index /data/wds
      wv-ingest index /data/wds --label-key meta.class --class-names names.txt
      wv-ingest index /data/wds --check header
    """
    try:
        options = IndexOptions(
            check=CheckOptions(size_px=0, min_side_px=1, max_aspect=65_500.0, decode=check),
            limits=WorkerLimits(max_cpu_s=max_cpu_s, max_memory_mb=max_memory_mb),
            split=split,
            label_key=label_key,
            class_names=class_names,
            workers=workers or len(os.sched_getaffinity(0)),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(f"decoder: {codecs()['decoder']}")
    with stoppable("run the same command again to go on, finished tars are kept") as progress:
        print_summary(index_shards(directory, options, progress), directory)
    with Dataset.open(directory) as dataset:
        bad = int(np.count_nonzero(dataset.index["flags"] & FLAG_BAD))
    click.echo(f"{bad:,} images do not decode; they stay in the index, and loaders mask them")
