"""The command `wv-ingest sample-data`: parses, shows progress and reports. `sample_data` does the work."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wv_ingest.sample_data import (
    KINDS,
    TRUTH,
    SampleDataError,
    SampleDataOptions,
    SampleDataSummary,
    write_sample_data,
)

_DEFAULTS = SampleDataOptions()


@click.command("sample-data", context_settings={"show_default": True})
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--classes", default=_DEFAULTS.classes, help="Number of classes.")
@click.option("--images", default=_DEFAULTS.images, help="Training images, about, over all classes.")
@click.option("--largest-class", default=_DEFAULTS.largest_class, help="Training images of the largest class.")
@click.option("--smallest-class", default=_DEFAULTS.smallest_class, help="Training images of the smallest class.")
@click.option("--val-per-class", default=_DEFAULTS.val_per_class, help="Validation images of every class.")
@click.option("--noise-fraction", default=_DEFAULTS.noise_fraction, help="Share of wrong labels in every class.")
@click.option("--seed", default=_DEFAULTS.seed, help="The same seed and options give the same bytes.")
def sample_data_command(
    directory: Path,
    classes: int,
    images: int,
    largest_class: int,
    smallest_class: int,
    val_per_class: int,
    noise_fraction: float,
    seed: int,
) -> None:
    """Draw a small web-like data set with known truth into DIR.

    The layout is WebVision 1.0's: info/ with file lists, google/ and flickr/ by query, val_images_256/. Many labels are
    wrong, some files are copies, some are broken; truth.csv (path, label, true_label, kind) tells which. DIR must be
    new, empty, or an earlier sample data set, which is replaced.

    \b
    Examples:
      wv-ingest sample-data raw/
      wv-ingest sample-data raw/ --classes 4 --images 300 --largest-class 150 --smallest-class 20
    """
    try:
        options = SampleDataOptions(
            classes=classes,
            images=images,
            largest_class=largest_class,
            smallest_class=smallest_class,
            val_per_class=val_per_class,
            noise_fraction=noise_fraction,
            seed=seed,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        summary = _write_with_progress(directory, options)
    except SampleDataError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(
            f"{error.filename or directory}: expected to write here, found: {error.strerror or error}"
        ) from error
    click.echo(_summary_text(summary))


def _write_with_progress(directory: Path, options: SampleDataOptions) -> SampleDataSummary:
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("drawing", total=None)
        return write_sample_data(directory, options, lambda done, total: bar.update(task, completed=done, total=total))


def _summary_text(summary: SampleDataSummary) -> str:
    kinds = ", ".join(f"{summary.kinds[kind]:,} {kind.replace('_', ' ')}" for kind in KINDS)
    return (
        f"{summary.directory}: {summary.train_images:,} training images in {len(summary.class_rows)} classes of "
        f"{min(summary.class_rows):,} to {max(summary.class_rows):,}, {summary.val_images:,} validation images, "
        f"{summary.image_bytes / 1e6:.1f} MB\n"
        f"truth in {summary.directory / TRUTH}: {kinds} ({summary.noise_fraction:.0%} wrong labels)"
    )
