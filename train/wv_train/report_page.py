"""A report's page as one HTML text: no file is read here, nothing is loaded from a network, every text is escaped.

`report` gathers what is shown; this puts the sections together, which have a file each (`report_measures`, `_settings`,
`_curves`, `_evaluation`, `_gallery`); `report_style` holds the looks and the script.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_train.report_bars import class_chart
from wv_train.report_curves import curves_section
from wv_train.report_data import Judgement, RunData
from wv_train.report_evaluation import evaluation_section
from wv_train.report_gallery import Suspect, gallery_section
from wv_train.report_measures import comparison, tiles
from wv_train.report_settings import flat, settings_section
from wv_train.report_style import SCRIPT, STYLE
from wv_train.report_words import count, dot, escape, table

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_MAX_EVENTS = 100


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
    runs = [report.run for report in reports]
    alone = len(runs) == 1
    title = f"Run {runs[0].name}" if alone else f"{len(runs)} runs compared"
    body = [
        tiles(runs[0], reports[0].judgement) if alone else comparison(runs, [report.judgement for report in reports]),
        settings_section(runs),
        _events(runs),
        curves_section(runs),
        _classes(runs),
        evaluation_section(runs),
        *(
            gallery_section(
                "Least believed labels" if alone else f"Least believed labels, {report.run.name}",
                suspects=report.suspects,
                believed=report.believed,
                judgement=report.judgement,
                seen=report.seen,
                samples=report.samples,
                opened=place == 0,
            )
            for place, report in enumerate(reports)
        ),
        _facts(runs),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – wv-report</title><style>{STYLE}</style></head>\n<body>"
        f'<header class="page"><h1>{escape(title)}</h1><div class="quiet">{_subtitle(reports)}</div></header>\n'
        f"<main>{''.join(body)}<footer>Made by wv-report of wv-toolkit. One file, which loads nothing.</footer>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def _subtitle(reports: Sequence[RunReport]) -> str:
    if len(reports) > 1:
        return " ".join(
            f'<span class="key">{dot(n)}{escape(report.run.name)}</span>' for n, report in enumerate(reports)
        )
    run = reports[0].run
    return escape(
        f"{_model(run)} on {run.info['shards']}, {reports[0].samples:,} samples in {len(run.classes):,} classes"
    )


def _events(runs: Sequence[RunData]) -> str:
    """Warnings and what the guard did; "" where there was nothing."""
    rows = []
    for number, run in enumerate(runs):
        for event in run.events[:_MAX_EVENTS]:
            steps = f"{event.first:,}" if event.first == event.last else f"{event.first:,} to {event.last:,}"
            name = f"<td class=left>{dot(number)}{escape(run.name)}</td>" if len(runs) > 1 else ""
            text = event.text if event.count == 1 else f"{event.text} ({event.count:,} times alike, the last is shown)"
            rows.append(
                f"<tr><td>{steps}</td>{name}<td class=left>{escape(event.phase)}</td>"
                f"<td class=left>{escape(event.kind)}</td><td class=words>{escape(text)}</td></tr>"
            )
        if (hidden := len(run.events) - _MAX_EVENTS) > 0:
            rows.append(f'<tr><td colspan="5">{hidden:,} more in {escape(run.name)}, see its metrics.jsonl</td></tr>')
    if not rows:
        return ""
    heads = ["step", *(["<span class=left>run</span>"] if len(runs) > 1 else [])]
    heads += ['<span class="left">phase</span>', '<span class="left">kind</span>', '<span class="left">text</span>']
    return f"<h2>Warnings</h2>{table(heads, rows, css='events')}"


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
            "ranks": count(run.info.get("world_size")),
            "engine": str(run.info.get("engine", "–")),
            "versions": ", ".join(f"{name} {version}" for name, version in run.info.get("versions", {}).items()),
            "recipe": "; ".join(f"{key} = {value}" for key, value in flat(run.info["recipe"]).items()),
        }
        pairs = "".join(
            f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in facts.items()
        )
        blocks.append(f'<h3>{escape(run.name)}</h3><div class="card"><dl class="facts">{pairs}</dl></div>')
    return f"<h2>Facts of the run{'s' if len(runs) > 1 else ''}</h2>{''.join(blocks)}"


def _model(run: RunData) -> str:
    return str(run.info["recipe"].get("model", "model"))
