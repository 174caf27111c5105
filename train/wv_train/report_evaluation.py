"""A report's section on `eval.json`: bands, classes, many, medium and few, calibration, and what is taken for what.

Fields that an older `wv-eval` did not write are left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wv_train.report_charts import Line, line_chart
from wv_train.report_data import RunData
from wv_train.report_words import (
    band_name,
    count,
    decimal,
    dot,
    escape,
    joined_table,
    percent,
    short_name,
    table,
    without_id,
)

_RUNS_SIDE_BY_SIDE = 2
"""With more runs a table takes the page's whole width."""


def evaluation_section(runs: Sequence[RunData]) -> str:
    """All of the evaluations, the runs beside each other."""
    evaluated = [(number, run, run.evaluation) for number, run in enumerate(runs) if run.evaluation]
    if not evaluated:
        return '<h2>Evaluation</h2><p class="quiet">Not evaluated yet: run <code>wv-eval</code>.</p>'
    heads = [
        (f"{dot(number) if len(runs) > 1 else ''}{escape(run.name if len(runs) > 1 else 'top-1')}")
        for number, run, _ in evaluated
    ]
    evaluations = [evaluation for _, _, evaluation in evaluated]
    bands = joined_table(
        ["band", "classes", "samples"],
        heads,
        [[(row["band"], row) for row in evaluation.get("per_band", [])] for evaluation in evaluations],
        lambda row: [band_name(row["band"]), count(row["classes"]), count(row["samples"])],
    )
    train_counts = dict(enumerate(evaluated[0][1].info["class_counts"]))
    classes = joined_table(
        ["class", "training images", "samples"],
        heads,
        [[(row["class_id"], row) for row in evaluation.get("per_class", [])] for evaluation in evaluations],
        lambda row: [without_id(row["name"]), count(train_counts.get(row["class_id"])), count(row["samples"])],
    )
    tables = f"<div><h3>By band</h3>{bands}{_many_medium_few(evaluations, heads)}</div>"
    tables += f"<div><h3>By class</h3>{classes}</div>"
    if len(runs) <= _RUNS_SIDE_BY_SIDE:
        tables = f'<div class="charts">{tables}</div>'
    blocks = [_calibration(evaluated, alone=len(runs) == 1)]
    blocks += [_confused(run, evaluation, alone=len(runs) == 1) for _, run, evaluation in evaluated]
    said = "".join(f"<p>{_what(run, evaluation, alone=len(runs) == 1)}</p>" for _, run, evaluation in evaluated)
    return (
        f'<h2>Evaluation</h2>{said}<p class="quiet">A band holds classes of similar size, half an octave wide, by rows '
        f"of the training source. Click a heading to sort.</p>{tables}"
        f'<div class="charts after">{"".join(blocks)}</div>'
    )


def _what(run: RunData, evaluation: dict[str, Any], *, alone: bool) -> str:
    """What was evaluated, and how the crops of an image differ."""
    weights = "Averaged weights" if evaluation.get("weights") == "ema" else "Weights"
    text = f"{'' if alone else f'{run.name}: '}{weights} of checkpoint {evaluation.get('checkpoint', '–')}"
    if evaluation.get("step") is not None:
        text += f", step {evaluation['step']:,}"
    text += f", {count(evaluation.get('samples'))} samples of {evaluation.get('shards', '–')}"
    if crops := evaluation.get("crops"):
        text += (
            f"; top-1 over {len(crops['positions'])} crops {percent(crops['top1_mean'])} ± "
            f"{percent(crops['top1_std'])}, of their mean {percent(crops['averaged']['top1'])}"
        )
    return escape(f"{text}.")


def _many_medium_few(evaluations: Sequence[dict[str, Any]], heads: Sequence[str]) -> str:
    columns = [
        [((row["name"], row["rule"]), row) for row in evaluation.get("count_groups") or ()]
        for evaluation in evaluations
    ]
    if not any(columns):
        return ""
    groups = joined_table(
        ["group", "classes", "samples"],
        heads,
        columns,
        lambda row: [f"{row['name']}: {row['rule']}", count(row["classes"]), count(row["samples"])],
    )
    return f"<h3>Many, medium, few</h3>{groups}"


def _calibration(evaluated: Sequence[tuple[int, RunData, dict[str, Any]]], *, alone: bool) -> str:
    """Reliability diagram: how often a prediction of a given confidence is right."""
    lines = []
    for number, run, evaluation in evaluated:
        bins = [row for row in evaluation.get("calibration") or () if row.get("samples")]
        name = "" if alone else f"{run.name}, "
        lines.append(
            Line(
                label=f"{name}calibration error {decimal(evaluation.get('expected_calibration_error'))}",
                colour=0 if alone else number,
                x=np.array([row["confidence"] for row in bins], dtype=np.float64),
                y=np.array([row["top1"] for row in bins], dtype=np.float64),
            )
        )
    return line_chart(
        "Calibration: right predictions by confidence",
        lines,
        x_name="confidence of the prediction",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        diagonal=True,
    )


def _confused(run: RunData, evaluation: dict[str, Any], *, alone: bool) -> str:
    pairs = evaluation.get("most_confused") or ()
    if not pairs:
        return ""
    rows = [
        f"<tr><td>{escape(short_name(pair['label_name']))}</td>"
        f"<td class=left>{escape(short_name(pair['prediction_name']))}</td>"
        f"<td>{count(pair['samples'])}</td><td>{percent(pair['label_fraction'])}</td></tr>"
        for pair in pairs
    ]
    title = "Most confused" if alone else f"Most confused, {run.name}"
    heads = ["label", "<span class=left>taken for</span>", "samples", "of the label"]
    return f"<div><h3>{escape(title)}</h3>{table(heads, rows)}</div>"
