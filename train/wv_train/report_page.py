"""A report's page as one HTML text: no file is read here, nothing is loaded from a network, every text is escaped.

`report` gathers what is shown; `report_charts` draws; `report_style` holds the looks and the script.
"""

import base64
import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_shards import band_range
from wv_train.report_charts import PALETTE_SIZE, Line, Strip, class_chart, histogram, line_chart
from wv_train.report_data import Judgement, RunData
from wv_train.report_style import SCRIPT, STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspect:
    """One picture of the gallery."""

    key: str
    path: str
    label: str
    """Name of the class that the data gives it."""
    prediction: str
    """Name of the class that the model saw at its last visit."""
    confidence: float
    """Of the label, averaged over visits."""
    visits: int
    thumbnail: bytes | None
    """A JPEG; None if the image can't be read."""
    wrong: bool | None
    """Whether the label is wrong, where the truth is known."""
    truth: str
    """What the image really shows; "" where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """One run with all that the page shows of it."""

    run: RunData
    samples: int
    seen: int
    """Samples that training has shown at least once."""
    suspects: tuple[Suspect, ...]
    believed: tuple[tuple[str, NDArray[np.int64]], ...]
    """Histogram of the label's confidence over 0 … 1, by group: (name, (bins,)); empty without a ledger."""
    judgement: Judgement | None


def render_page(reports: Sequence[RunReport]) -> str:
    """The page of one run or of several, compared."""
    names = [report.run.name for report in reports]
    title = f"Run {names[0]}" if len(names) == 1 else f"{len(names)} runs compared"
    body = [
        _summary(reports),
        *([_comparison(reports)] if len(reports) > 1 else []),
        _curves([report.run for report in reports]),
        _classes([report.run for report in reports]),
        _evaluation([report.run for report in reports]),
        *(_suspects(report, opened=number == 0, alone=len(reports) == 1) for number, report in enumerate(reports)),
        _facts([report.run for report in reports]),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(title)} – wv-report</title><style>{STYLE}</style></head>\n<body>"
        f'<header class="page"><h1>{_e(title)}</h1><div class="quiet">{_subtitle(reports)}</div></header>\n'
        f"<main>{''.join(body)}<footer>Made by wv-report of wv-toolkit. One file, which loads nothing.</footer>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )


# Sections


def _subtitle(reports: Sequence[RunReport]) -> str:
    if len(reports) > 1:
        return " ".join(f'<span class="key">{_dot(n)}{_e(report.run.name)}</span>' for n, report in enumerate(reports))
    run = reports[0].run
    return _e(f"{_model(run)} on {run.info['shards']}, {reports[0].samples:,} samples in {len(run.classes):,} classes")


def _summary(reports: Sequence[RunReport]) -> str:
    """Tiles for a single run; several have a table."""
    if len(reports) > 1:
        return ""
    tiles = [(value, label) for label, value, _ in _measures(reports[0]) if value != "–"]
    return f'<div class="tiles">{"".join(_tile(value, label) for value, label in tiles)}</div>'


def _comparison(reports: Sequence[RunReport]) -> str:
    """A column per run, a row per measure; the best of a row in bold."""
    columns = [_measures(report) for report in reports]
    rows = []
    for cells in zip(*columns, strict=True):
        if all(value == "–" for _, value, _ in cells):
            continue
        scores = [score for _, _, score in cells if score is not None]
        best = max(scores) if len(scores) == len(cells) and len(set(scores)) > 1 else None
        texts = "".join(
            f"<td{' class=best' if best is not None and score == best else ''}>{_e(value)}</td>"
            for _, value, score in cells
        )
        rows.append(f"<tr><td>{_e(cells[0][0])}</td>{texts}</tr>")
    heads = "".join(f"<th>{_dot(n)}{_e(report.run.name)}</th>" for n, report in enumerate(reports))
    return (
        f'<h2>Side by side</h2><div class="card scroll"><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _measures(report: RunReport) -> list[tuple[str, str, float | None]]:
    """(what, value, score) of a run, the same rows for every run; a score, where higher is better, marks the best."""
    run, judgement = report.run, report.judgement
    evaluation = run.evaluation or {}
    last_val, last_train = (run.val or [{}])[-1], (run.train or [{}])[-1]
    best_val = max((row["top1"] for row in run.val if row.get("top1") is not None), default=None)
    rates = [row["images_per_s"] for row in run.train if row.get("images_per_s")]
    memorised = judgement.memorised_fraction if judgement else None
    first_100 = judgement.suspects_precision.get("100") if judgement else None
    return [
        ("top-1, wv-eval", _percent(evaluation.get("top1")), evaluation.get("top1")),
        ("top-5, wv-eval", _percent(evaluation.get("top5")), evaluation.get("top5")),
        ("mean class top-1, wv-eval", _percent(evaluation.get("mean_class_top1")), evaluation.get("mean_class_top1")),
        ("validation top-1, last", _percent(last_val.get("top1")), last_val.get("top1")),
        ("validation top-1, best", _percent(best_val), best_val),
        ("training top-1, last", _percent(last_train.get("top1")), None),
        ("training loss, last", _number(last_train.get("loss")), None),
        ("kept by the gate, last", _percent(last_train.get("kept_fraction")), None),
        ("wrong labels memorised", _percent(memorised), None if memorised is None else -memorised),
        ("wrong among first 100 suspects", _percent(first_100), first_100),
        ("AUROC of suspects", _number(judgement.auroc if judgement else None), judgement.auroc if judgement else None),
        ("steps", _count(last_train.get("step")), None),
        ("images/s, median", _count(float(np.median(rates)) if rates else None), None),
        ("parameters", _count(run.info.get("parameters")), None),
    ]


def _curves(runs: Sequence[RunData]) -> str:
    strips = [Strip(colour=number, spans=run.phases) for number, run in enumerate(runs) if run.phases]

    def chart(title: str, *sources: tuple[str, str, str], **options: Any) -> str:
        return line_chart(title, _lines(runs, sources), strips=strips, **options)

    charts = [
        chart("Loss", ("train", "loss", "training"), ("val", "loss", "validation")),
        chart("Top-1", ("train", "top1", "training"), ("val", "top1", "validation"), percent=True),
        chart(
            "Gate: fraction kept, and threshold",
            ("train", "kept_fraction", "kept"),
            ("train", "threshold", "threshold"),
            y_range=(0.0, 1.0),
        ),
        chart("Learning rate", ("train", "lr_backbone", "backbone"), ("train", "lr_head", "head"), log_y=True),
        chart("Images per second", ("train", "images_per_s", "training")),
    ]
    if not any(charts):
        return '<h2>Curves</h2><p class="quiet">No steps have been recorded yet.</p>'
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>'


def _lines(runs: Sequence[RunData], sources: Sequence[tuple[str, str, str]]) -> list[Line]:
    """Lines of (kind of row, its key, name). One run: a colour per source. Several: a colour per run."""
    lines = []
    for number, run in enumerate(runs):
        for place, (kind, key, name) in enumerate(sources):
            rows = [row for row in (run.train if kind == "train" else run.val) if row.get(key) is not None]
            lines.append(
                Line(
                    label=name if len(runs) == 1 else f"{run.name}, {name}",
                    colour=place if len(runs) == 1 else number,
                    dashed=place > 0,
                    x=np.array([row["step"] for row in rows], dtype=np.float64),
                    y=np.array([row[key] for row in rows], dtype=np.float64),
                )
            )
    return lines


def _classes(runs: Sequence[RunData]) -> str:
    charts = []
    for run in runs:
        counts = np.array(run.info["class_counts"], dtype=np.float64)
        phases_of: dict[tuple[float, ...], list[str]] = {}  # phases that show alike share a line
        for phase, shows in run.info["exposures"].items():
            phases_of.setdefault(tuple(shows), []).append(phase)
        shown = [
            (f"shown an epoch: {', '.join(phases)}", np.array(shows, dtype=np.float64))
            for shows, phases in phases_of.items()
        ]
        title = "Images per class" if len(runs) == 1 else f"Images per class, {run.name}"
        charts.append(class_chart(title, run.classes, counts, shown))
    return (
        "<h2>Classes before and after sampling</h2>"
        '<p class="quiet">Bars are what was packed; lines are how often a class is shown in an epoch of each phase.</p>'
        f'<div class="charts">{"".join(charts)}</div>'
    )


def _evaluation(runs: Sequence[RunData]) -> str:
    evaluated = [(number, run, run.evaluation) for number, run in enumerate(runs) if run.evaluation]
    if not evaluated:
        return '<h2>Evaluation</h2><p class="quiet">Not evaluated yet: run <code>wv-eval</code>.</p>'
    heads = [
        (f"{_dot(number) if len(runs) > 1 else ''}{_e(run.name if len(runs) > 1 else 'top-1')}")
        for number, run, _ in evaluated
    ]
    bands = _table_of(
        ["band", "classes", "samples"],
        heads,
        [[(row["band"], row) for row in evaluation.get("per_band", [])] for _, _, evaluation in evaluated],
        lambda row: [_band(row["band"]), _count(row["classes"]), _count(row["samples"])],
    )
    train_counts = dict(enumerate(evaluated[0][1].info["class_counts"]))
    classes = _table_of(
        ["class", "training images", "samples"],
        heads,
        [[(row["class_id"], row) for row in evaluation.get("per_class", [])] for _, _, evaluation in evaluated],
        lambda row: [_without_id(row["name"]), _count(train_counts.get(row["class_id"])), _count(row["samples"])],
    )
    return (
        "<h2>Evaluation</h2>"
        f'<div class="charts"><div><h3>By band</h3>{bands}</div><div><h3>By class</h3>{classes}</div></div>'
        '<p class="quiet">A band holds classes of similar size, half an octave wide, by rows of the training source. '
        "Click a heading to sort.</p>"
    )


def _table_of(
    first: Sequence[str],
    heads: Sequence[str],
    columns: Sequence[Sequence[tuple[object, dict[str, Any]]]],
    describe: Callable[[dict[str, Any]], list[str]],
) -> str:
    """Rows joined by their key over the runs' columns; `heads` is HTML."""
    described: dict[object, list[str]] = {}
    for column in columns:
        for key, row in column:
            described.setdefault(key, describe(row))
    scores = [{key: row["top1"] for key, row in column} for column in columns]
    body = []
    for key, texts in described.items():
        cells = "".join(f'<td data-value="{_e(text.replace(",", ""))}">{_e(text)}</td>' for text in texts)
        cells += "".join(_score_cell(score.get(key)) for score in scores)
        body.append(f"<tr>{cells}</tr>")
    head = "".join(f"<th>{cell}</th>" for cell in [*map(_e, first), *heads])
    return (
        f'<div class="card scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _score_cell(score: float | None) -> str:
    if score is None:
        return '<td data-value="-1">–</td>'
    meter = f'<span class="meter"><i style="width:{100 * score:.0f}%"></i></span>'
    return f'<td data-value="{score:.6f}">{score:.1%}{meter}</td>'


def _suspects(report: RunReport, *, opened: bool, alone: bool) -> str:
    heading = "Least believed labels" if alone else f"Least believed labels, {report.run.name}"
    if not report.believed:
        return f'<h2>{_e(heading)}</h2><p class="quiet">No ledger has been written yet.</p>'
    chart = histogram("Confidence of the label, averaged over visits", "confidence of the given label", report.believed)
    gallery = "".join(map(_card, report.suspects))
    return (
        f"<h2>{_e(heading)}</h2>"
        f'<p class="quiet">{report.seen:,} of {report.samples:,} samples were shown. The lower the confidence that the '
        "model gave a label over all visits, the likelier the label is wrong.</p>"
        f'<div class="charts">{chart}{_judgement(report.judgement)}</div>'
        f"<details{' open' if opened else ''}><summary>The {len(report.suspects)} least believed images</summary>"
        f'<div class="gallery">{gallery}</div></details>'
    )


def _judgement(judgement: Judgement | None) -> str:
    if judgement is None:
        return ""
    rows = "".join(
        f"<tr><td>first {_e(name)}</td>{_score_cell(precision)}<td>{_times(precision, judgement.base_rate)}</td></tr>"
        for name, precision in judgement.suspects_precision.items()
    )
    return (
        '<div class="card"><table><thead><tr><th>suspects</th><th>really wrong</th><th>against chance</th></tr></thead>'
        f"<tbody>{rows}<tr><td>drawn by lot</td>{_score_cell(judgement.base_rate)}<td>1.0×</td></tr></tbody></table>"
        f"<p>{judgement.wrong:,} of {judgement.known:,} labels are wrong. A wrong label has a lower confidence than a "
        f"right one with probability {_number(judgement.auroc)} (AUROC). The model repeated "
        f"{_percent(judgement.memorised_fraction)} of the wrong labels at its last visit.</p></div>"
    )


def _card(suspect: Suspect) -> str:
    if suspect.thumbnail is None:
        picture = '<div class="missing">not readable</div>'
    else:
        data = base64.b64encode(suspect.thumbnail).decode()
        picture = f'<img loading="lazy" alt="{_e(suspect.key)}" src="data:image/jpeg;base64,{data}">'
    badge = ""
    if suspect.wrong is not None:
        badge = f'<span class="badge {"wrong" if suspect.wrong else "right"}">{_e(suspect.truth)}</span>'
    return (
        f'<div class="card suspect" title="{_e(f"{suspect.path}: {suspect.label}")}">{picture}'
        f'<div class="labels"><b>{_e(short_name(suspect.label))}</b><br>'
        f'<span class="quiet">model: {_e(short_name(suspect.prediction))}</span></div>'
        f'<div>{suspect.confidence:.3f} <span class="quiet">over {suspect.visits:,} visits</span></div>'
        f'{badge}<div class="mono">{_e(suspect.key)}</div></div>'
    )


def _facts(runs: Sequence[RunData]) -> str:
    blocks = []
    for run in runs:
        facts = {
            "folder": str(run.path),
            "command": " ".join(map(str, run.info.get("command", []))),
            "shards": str(run.info["shards"]),
            "validation": str(run.info.get("val") or "–"),
            "data set": str(run.info["manifest_digest"]),
            "model": _model(run),
            "ranks": _count(run.info.get("world_size")),
            "engine": str(run.info.get("engine", "–")),
            "versions": ", ".join(f"{name} {version}" for name, version in run.info.get("versions", {}).items()),
            "recipe": _flat(run.info["recipe"]),
        }
        pairs = "".join(f"<dt>{_e(name)}</dt><dd><code>{_e(value)}</code></dd>" for name, value in facts.items())
        blocks.append(f'<h3>{_e(run.name)}</h3><div class="card"><dl class="facts">{pairs}</dl></div>')
    return f"<h2>Facts of the run{'s' if len(runs) > 1 else ''}</h2>{''.join(blocks)}"


# Words and numbers


def _e(text: object) -> str:
    return html.escape(str(text))


def short_name(class_name: str) -> str:
    """WordNet's id left out, and all synonyms but the first: `n01440764 tench, Tinca tinca` is tench."""
    return _without_id(class_name).split(", ")[0]


def _without_id(class_name: str) -> str:
    return re.sub(r"^n\d{8} ", "", class_name)


def _tile(value: str, label: str) -> str:
    return f'<div class="card tile"><b>{_e(value)}</b><span>{_e(label)}</span></div>'


def _dot(number: int) -> str:
    return f'<span class="dot c{number % PALETTE_SIZE}"></span>'


def _model(run: RunData) -> str:
    return str(run.info["recipe"].get("model", "model"))


def _flat(value: object, path: str = "") -> str:
    """A nested table on one line: a.b = 1; a.c = 2."""
    pairs: Iterable[tuple[str, object]]
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        pairs = (
            (item.get("name", str(place)) if isinstance(item, dict) else str(place), item)
            for place, item in enumerate(value)
        )
    else:
        return f"{path} = {value}"
    return "; ".join(_flat(item, f"{path}.{key}" if path else str(key)) for key, item in pairs)


def _band(band: int | None) -> str:
    if band is None:
        return "none"
    first, last = band_range(band)
    return f"{band}: {first:,} images" if last <= first else f"{band}: {first:,} to {last:,} images"


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.1%}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _times(precision: float, base_rate: float) -> str:
    return f"{precision / base_rate:.1f}×" if base_rate else "–"
