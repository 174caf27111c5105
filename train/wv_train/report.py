"""Builds the report of one run or several: `report.html`, and `report.json` beside it with the numbers.

It reads runs, shards and a truth, and gathers what the page shows; `report_page` writes the words, `report_data` does
the sums. Nothing of a run or a data set is changed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_shards import Dataset, write_atomic
from wv_train.ledger import history_of
from wv_train.report_data import (
    ReportError,
    RunData,
    distinct_names,
    judge,
    load_run,
    open_shards,
    rank_suspects,
)
from wv_train.report_gallery import Suspect
from wv_train.report_measures import measures
from wv_train.report_page import RunReport, render_page
from wv_train.report_settings import differences
from wv_train.report_words import short_name
from wv_train.thumbnail import thumbnail
from wv_train.truth import UNKNOWN, read_true_labels

GALLERY_IMAGES = 60
THUMBNAIL_PX = 160
_BINS = 40


def write_report(
    run_paths: Sequence[Path], out: Path, *, truth_path: Path | None = None, shards: Path | None = None
) -> dict[str, Any]:
    """Write `out` (a page) and the same name with `.json`; returns what the JSON says.

    Args:
        run_paths: folders of `wv-train`, one or more.
        out: the page.
        truth_path: table with the columns path, label, true_label, joined to the samples by their path in the source.
        shards: where the runs' shards are, if not where the runs say.

    Raises:
        TrainError, ShardsError: no such run, a data set that is not the run's, a bad truth, no space to write.
    """
    names = distinct_names(run_paths)
    runs = [load_run(path, name, shards) for path, name in zip(run_paths, names, strict=True)]
    reports = [_gather(run, truth_path) for run in runs]
    document = {
        "format_version": 1,
        "runs": [_numbers(report) for report in reports],
        "settings_that_differ": {path: list(values) for path, values in differences(runs).items()},
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, render_page(reports).encode())
        write_atomic(out.with_suffix(".json"), text.encode())
    except OSError as error:
        raise ReportError(f"{out}: cannot be written: {error.strerror}") from error
    return document


def _gather(run: RunData, truth_path: Path | None) -> RunReport:
    """Everything that the page shows of one run."""
    with open_shards(run) as dataset:
        if run.ledger is None:
            return RunReport(
                run=run, samples=dataset.manifest.samples, seen=0, suspects=(), believed=(), judgement=None
            )
        samples = dataset.manifest.samples_at(run.info["manifest_digest"])  # what was appended since is not its concern
        if len(run.ledger) != samples:
            raise ReportError(
                f"{run.path}: its ledger has {len(run.ledger):,} rows, "
                f"{run.shards} {samples:,} samples; write the ledger again with --resume"
            )
        labels = dataset.index["label"][:samples].astype(np.int64)
        truth = read_true_labels(truth_path, dataset, samples=samples) if truth_path else None
        ranked = rank_suspects(run.ledger)
        first = ranked[:GALLERY_IMAGES]
        names = dataset.samples_table(["key", "path"]).take(first).to_pylist()
        suspects = tuple(
            _suspect(run, dataset, int(ordinal), name["key"], name["path"], truth)
            for ordinal, name in zip(first, names, strict=True)
        )
    return RunReport(
        run=run,
        samples=len(run.ledger),
        seen=int(ranked.size),
        suspects=suspects,
        believed=_believed(run.ledger, ranked, labels, truth),
        judgement=None if truth is None else judge(run.ledger, labels, truth),
    )


def _suspect(
    run: RunData, dataset: Dataset, ordinal: int, key: str, path: str, truth: NDArray[np.int64] | None
) -> Suspect:
    row = run.ledger[ordinal]  # type: ignore[index]  # only runs with a ledger have suspects
    label = int(dataset.index[ordinal]["label"])
    true_label = UNKNOWN if truth is None else int(truth[ordinal])
    return Suspect(
        key=key,
        path=path,
        label=_class_name(run, label),
        prediction=_class_name(run, int(row["prediction"])),
        confidence=float(row["label_conf_mean"]),
        visits=int(row["seen"]),
        gated=int(row["gated"]),
        history=_history(run.ledger[[ordinal]]),  # type: ignore[index]
        thumbnail=thumbnail(dataset, ordinal, THUMBNAIL_PX),
        wrong=None if true_label == UNKNOWN else true_label != label,
        truth=_verdict(run, label, true_label),
    )


def _history(row: NDArray[Any]) -> tuple[float, ...]:
    """Of a row of the ledger, (1,): the label's confidence at the last visits, oldest first; old ledgers have none."""
    if "history" not in (row.dtype.names or ()):
        return ()
    values = history_of(row)[0]
    return tuple(float(value) for value in values[np.isfinite(values)])


def _class_name(run: RunData, class_id: int) -> str:
    names = run.classes
    return names[class_id] if 0 <= class_id < len(names) else f"class {class_id}"


def _verdict(run: RunData, label: int, true_label: int) -> str:
    if true_label == UNKNOWN:
        return ""
    if true_label == label:
        return "label is right"
    return "shows no class" if true_label < 0 else f"shows {short_name(_class_name(run, true_label))}"


def _believed(
    ledger: NDArray[Any], seen: NDArray[np.int64], labels: NDArray[np.int64], truth: NDArray[np.int64] | None
) -> tuple[tuple[str, NDArray[np.int64]], ...]:
    """Histogram of the label's mean confidence of the samples seen; by right and wrong labels where that is known."""
    confidence = ledger["label_conf_mean"]

    def counted(ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.histogram(confidence[ordinals], bins=_BINS, range=(0.0, 1.0))[0].astype(np.int64)

    if truth is None:
        return (("samples", counted(seen)),)
    true_labels = truth[seen]
    groups = {
        "right labels": true_labels == labels[seen],
        "wrong labels": (true_labels != labels[seen]) & (true_labels != UNKNOWN),
        "unknown to the truth": true_labels == UNKNOWN,
    }
    return tuple((name, counted(seen[members])) for name, members in groups.items() if members.any())


def _numbers(report: RunReport) -> dict[str, Any]:
    """What `report.json` says of a run. Without a truth the judgement's fields are null."""
    evaluation = report.run.evaluation or {}
    fields = ("known", "wrong", "base_rate", "suspects_precision", "auroc", "memorised_fraction")
    judgement: dict[str, Any] = asdict(report.judgement) if report.judgement else dict.fromkeys(fields)
    return {
        "run": str(report.run.path),
        "samples": report.samples,
        "seen": report.seen,
        **judgement,
        "eval": {name: _finite(evaluation.get(name)) for name in ("top1", "top5", "mean_class_top1")},
        "measures": {measure.name: _finite(measure.value) for measure in measures(report.run, report.judgement)},
        "least_believed": [suspect.key for suspect in report.suspects],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
