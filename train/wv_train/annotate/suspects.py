"""`wv-annotate suspects`: how probably each label of a training set is wrong, by what a run has seen of its samples.

Nothing is trained or shown again: the ledger says it all, in seconds. `suspect_scores` does the sums; this reads the
run, writes the overlay, a CSV and a page, and tells what it found.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wv_shards import Dataset, write_atomic
from wv_train.annotate.suspect_scores import Suspicions, suspicions_of
from wv_train.annotate.suspects_choice import Choice, probability_option, top_option
from wv_train.annotate.suspects_csv import write_csv
from wv_train.annotate.suspects_judged import Judged, Reliability, calibration_error, judge_order, reliability
from wv_train.annotate.suspects_overlay import save_suspects
from wv_train.report_data import ReportError, RunData, load_run, open_shards
from wv_train.report_suspects import PAGE_IMAGES, gather_page
from wv_train.report_suspects_page import render_suspects
from wv_train.report_words import short_name
from wv_train.truth import UNKNOWN, read_true_labels

EPILOG = """\b
Examples:
  wv-annotate suspects runs/gated --page suspects.html --csv suspects.csv --top 0.1
  wv-annotate exclude runs/gated/suspects --top 0.1 --out worst
  wv-train --exclude worst --shards shards/train --recipe cifar10n --out runs/without
"""
TABLE_CLASSES = 12
"""Classes in the table on the screen."""
MIN_PROBABILITY = 0.5
"""From which on samples come into the CSV where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A run, its samples, and what is thought of them. Arrays are (N,)."""

    run: RunData
    ledger: NDArray[Any]
    labels: NDArray[np.int64]
    suspicions: Suspicions
    true_labels: NDArray[np.int64] | None
    """As `read_true_labels` gives them; None without a truth."""


def find_suspects(run: RunData, dataset: Dataset, truth: Path | None) -> Found:
    """Judge all samples of a run.

    Raises:
        ReportError: no ledger has been written yet, or it has not a row per sample.
        TruthError: the truth can't be read or is not these samples'.
    """
    if run.ledger is None:
        raise ReportError(f"{run.path}: has no ledger yet; it is written with each checkpoint")
    samples = dataset.manifest.samples_at(run.info["manifest_digest"])
    if len(run.ledger) != samples:
        raise ReportError(
            f"{run.path}: its ledger has {len(run.ledger):,} rows, {run.shards} {samples:,} samples; "
            "write the ledger again with --resume"
        )
    labels = dataset.index["label"][:samples].astype(np.int64)
    return Found(
        run=run,
        ledger=run.ledger,
        labels=labels,
        suspicions=suspicions_of(run.ledger, labels, len(run.classes)),
        true_labels=None if truth is None else read_true_labels(truth, dataset, samples=samples),
    )


@click.command(epilog=EPILOG)
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The overlay, without suffix. Default: RUN/suspects.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the worst as a table.")
@top_option("Of --csv: so many of the worst: a share (0.1, 10%) of the samples that have a probability, or a number.")
@probability_option(f"Of --csv: labels that are wrong with this probability or more; {MIN_PROBABILITY} without --top.")
@click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page of one file to browse them by class."
)
@click.option(
    "--page-images",
    type=click.IntRange(min=1),
    default=PAGE_IMAGES,
    show_default=True,
    help="Pictures on the page, at most: some 3 KB each.",
)
@click.option("--truth", type=click.Path(path_type=Path), help="CSV with path, label, true_label: judge the suspects.")
@click.option("--shards", type=click.Path(path_type=Path), help="Where the run's shards are now, if they were moved.")
def command(
    run_path: Path,
    out: Path | None,
    csv_file: Path | None,
    top: Any,
    min_probability: float | None,
    page: Path | None,
    page_images: int,
    truth: Path | None,
    shards: Path | None,
) -> None:
    """Write how probably each label of RUN's training set is wrong, and the class that the model believes in."""
    if (top is not None or min_probability is not None) and csv_file is None:
        raise click.UsageError("--top and --min-probability choose what --csv writes; wv-annotate exclude has its own")
    for option, file in (("--out", out), ("--csv", csv_file), ("--page", page)):
        if file is not None and not file.parent.is_dir():
            raise click.UsageError(f"{option} {file}: expected a folder that is there, found no {file.parent}")
    run = load_run(run_path, run_path.resolve().name, shards)
    base = out or run_path / "suspects"
    with open_shards(run) as dataset:
        found = find_suspects(run, dataset, truth)
        said = found.suspicions
        _save(base, found)
        _print(found)
        click.echo(f"overlay: {base}")
        if csv_file is not None:
            least = MIN_PROBABILITY if top is None and min_probability is None else min_probability or 0.0
            ordinals = Choice(top=top, min_probability=least).ordinals(said.wrong)
            write_csv(
                csv_file,
                ordinals,
                dataset,
                found.ledger,
                wrong=said.wrong,
                believed=said.believed,
                names=run.classes,
            )
            click.echo(f"table: {csv_file}, {len(ordinals):,} samples")
        if page is not None:
            content = gather_page(
                dataset,
                found.ledger,
                said.wrong,
                said.believed,
                run=run.name,
                names=run.classes,
                interval=said.interval,
                images=page_images,
            )
            write_atomic(page, render_suspects(content).encode())
            click.echo(f"page: {page}, {len(content.images):,} pictures")


def _save(base: Path, found: Found) -> None:
    said = found.suspicions
    save_suspects(
        base,
        said.wrong,
        said.believed,
        manifest_digest=found.run.info["manifest_digest"],
        info={
            "run": str(found.run.path),
            "shards": str(found.run.shards),
            "expected_wrong": said.expected_wrong,
            "interval": list(said.interval),
        },
    )


def _print(found: Found) -> None:
    said, names = found.suspicions, found.run.classes
    known = ~np.isnan(said.wrong)
    counts = np.bincount(found.labels[known], minlength=len(names))
    expected = np.bincount(found.labels[known], weights=said.wrong[known], minlength=len(names))
    console = Console()
    total, low, high = said.expected_wrong, *said.interval
    console.print(
        f"{int(known.sum()):,} of {len(known):,} samples judged; wrong labels expected: {total:,.0f} "
        f"({total / max(1, known.sum()):.1%}), likely between {low:,.0f} and {high:,.0f}",
        highlight=False,
    )
    table = Table("class", *("samples", "wrong", "share"), title="Classes with the most wrong labels to be expected")
    for column in table.columns[1:]:
        column.justify = "right"
    for class_id in np.argsort(-expected, kind="stable")[:TABLE_CLASSES].tolist():
        if counts[class_id]:
            share = f"{expected[class_id] / counts[class_id]:.0%}"
            table.add_row(
                escape(short_name(names[class_id])), f"{counts[class_id]:,}", f"{expected[class_id]:,.0f}", share
            )
    console.print(table)
    if found.true_labels is not None:
        _print_judged(console, found, found.true_labels)


def _print_judged(console: Console, found: Found, true_labels: NDArray[np.int64]) -> None:
    said = found.suspicions
    known = ~np.isnan(said.wrong) & (true_labels != UNKNOWN)
    if not known.any():
        console.print("truth: names none of the samples that were judged")
        return
    wrong = true_labels[known] != found.labels[known]
    judged = judge_order(said.suspicion[known], wrong)
    bins = reliability(said.wrong[known], wrong)
    console.print(judged_line(judged), highlight=False)
    console.print(_reliability_table(bins))
    console.print(
        f"expected {said.wrong[known].mean():.1%} wrong, found {wrong.mean():.1%}; "
        f"mean error of the probability (ECE) {calibration_error(bins):.3f}",
        highlight=False,
    )


def judged_line(judged: Judged) -> str:
    """For a person."""
    scores = "" if judged.auroc is None else f"AUROC {judged.auroc:.3f}, AP {judged.average_precision:.3f}, "
    return (
        f"truth: {judged.wrong:,} of {judged.samples:,} labels are wrong; {scores}"
        f"precision at 1% {judged.precision_at_1:.2f}, at 10% {judged.precision_at_10:.2f}"
    )


def _reliability_table(bins: tuple[Reliability, ...]) -> Table:
    table = Table("probability", "samples", "expected", "found", title="Is the probability right?")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in bins:
        table.add_row(f"{one.low:.1f} to {one.high:.1f}", f"{one.samples:,}", f"{one.expected:.2f}", f"{one.found:.2f}")
    return table
