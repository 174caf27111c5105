"""Words, numbers and tables of a report's page as escaped HTML."""

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

from wv_shards import band_range
from wv_train.report_svg import PALETTE_SIZE


def escape(value: object) -> str:
    return html.escape(str(value))


def short_name(class_name: str) -> str:
    """WordNet's id left out, and all synonyms but the first: `n01440764 tench, Tinca tinca` is tench."""
    return without_id(class_name).split(", ")[0]


def without_id(class_name: str) -> str:
    return re.sub(r"^n\d{8} ", "", class_name)


def dot(number: int) -> str:
    """A run's mark."""
    return f'<span class="dot c{number % PALETTE_SIZE}"></span>'


def percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.1%}"


def decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def band_name(band: int | None) -> str:
    """The band and what it holds: `12: 64 to 90 images`."""
    if band is None:
        return "none"
    first, last = band_range(band)
    return f"{band}: {first:,} images" if last <= first else f"{band}: {first:,} to {last:,} images"


def score_cell(score: float | None) -> str:
    """A cell with a fraction and a meter of it."""
    if score is None:
        return '<td data-value="-1">–</td>'
    meter = f'<span class="meter"><i style="width:{100 * score:.0f}%"></i></span>'
    return f'<td data-value="{score:.6f}">{score:.1%}{meter}</td>'


def table(heads: Sequence[str], rows: Sequence[str], *, css: str = "") -> str:
    """A card with a table that scrolls; heads and rows (`<tr>…</tr>`) are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    return (
        f'<div class="card scroll"><table{f" class={css}" if css else ""}><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def joined_table(
    first: Sequence[str],
    heads: Sequence[str],
    columns: Sequence[Sequence[tuple[object, dict[str, Any]]]],
    describe: Callable[[dict[str, Any]], list[str]],
) -> str:
    """A sortable table of the runs' top-1: rows joined by their key over the runs' columns; `heads` is HTML."""
    described: dict[object, list[str]] = {}
    for column in columns:
        for key, row in column:
            described.setdefault(key, describe(row))
    scores = [{key: row.get("top1") for key, row in column} for column in columns]
    body = []
    for key, texts in described.items():
        cells = "".join(f'<td data-value="{escape(text.replace(",", ""))}">{escape(text)}</td>' for text in texts)
        cells += "".join(score_cell(score.get(key)) for score in scores)
        body.append(f"<tr>{cells}</tr>")
    return table([*map(escape, first), *heads], body, css="sortable")
