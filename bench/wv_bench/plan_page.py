"""The page of `wv-bench plan --html`: two charts in one file that loads nothing."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WIDE, _HIGH = 860, 300
_LEFT, _RIGHT, _TOP, _FLOOR = 70, 16, 14, 262
_MOST_POINTS = 600
"""Of a line; more would only be drawn over one another."""

_MOST_TICKS = 12
"""With as many places on the axis each has its number; with more, five have."""

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --rule: #ddd; --a: #999; --b: #0a6ebd; }
@media (prefers-color-scheme: dark) {
:root { --ink: #ddd; --paper: #181818; --rule: #3a3a3a; --a: #888; --b: #59b0f5; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
max-width: 900px; margin: 2em auto; padding: 0 1em; }
svg { width: 100%; } text { fill: var(--ink); font-size: 12px; }
path { fill: none; stroke-width: 1.6; } .rule { stroke: var(--rule); stroke-width: 1; }
.ideal { stroke: var(--a); stroke-width: 4; } .measured { stroke: var(--b); }
.key span { margin-right: 2em; } .key i { display: inline-block; width: 2em; border-top: 3px solid var(--b);
vertical-align: middle; margin-right: .5em; } .key i.ideal { border-color: var(--a); }
"""


def write_page(path: Path, result: dict[str, Any]) -> None:
    """Write the charts of a result of `wv-bench plan`."""
    classes = sorted((row for row in result["classes"] if row["target"]), key=lambda row: -row["samples"])
    every = max(1, -(-len(classes) // _MOST_POINTS))
    ranks = range(1, len(classes) + 1, every)
    exposures = _chart(
        "Shows of a class in an epoch; classes by size, the largest first",
        ranks,
        [row["target"] for row in classes[::every]],
        [row["achieved"] for row in classes[::every]],
        ("target", f"achieved, mean of {result['epochs']} epochs"),
        "class",
    )
    mixed = result["mixing"]
    dispersion = _chart(
        "Dispersion of class counts over consecutive batches; 1 is an independent draw",
        list(mixed["dispersion"]),
        list(mixed["dispersion_shuffle"].values()),
        list(mixed["dispersion"].values()),
        ("a perfect shuffle", "this plan"),
        "batches",
        stretched=True,
    )
    about = result["machine"]
    facts = (
        f"{result['subject']}: {result['samples']:,} samples, {len(result['classes']):,} classes, "
        f"{result['shards']:,} shards; τ {', '.join(f'{tau:g}' for tau in result['options']['balance'])}; "
        f"{mixed['distinct_classes']:.1f} distinct classes in a batch of {result['options']['batch_size']:,} "
        f"(ideal draw {mixed['distinct_classes_ideal']:.1f})"
    )
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>wv-bench plan</title><style>{_STYLE}</style>'
        f"<h1>The plan of {html.escape(result['subject'])}</h1><p>{html.escape(facts)}</p>{exposures}{dispersion}"
        f"<p><code>{html.escape(about['command'])}</code></p></html>\n",
        encoding="utf-8",
    )


def _chart(
    title: str,
    x: Sequence[int],
    ideal: Sequence[float],
    measured: Sequence[float],
    names: tuple[str, str],
    unit: str,
    *,
    stretched: bool = False,
) -> str:
    """Two lines over x, if there is any. Heights are from 0, or by powers of ten where they differ a hundredfold;
    `stretched`: x too.
    """
    if not x:
        return f"<h2>{html.escape(title)}</h2><p>No whole batch in an epoch.</p>"
    heights = [value for value in (*ideal, *measured) if value > 0]
    low, high = min(heights, default=1.0), max(heights, default=1.0)
    powers = high > 100 * low

    def across(value: float) -> float:
        first, last = (math.log(x[0]), math.log(x[-1])) if stretched else (x[0], x[-1])
        at = math.log(value) if stretched else value
        return _LEFT + (at - first) / ((last - first) or 1) * (_WIDE - _LEFT - _RIGHT)

    def up(value: float) -> float:
        share = math.log(max(value, low) / low) / math.log(high / low) if powers else value / high
        return _FLOOR - share * (_FLOOR - _TOP)

    if powers:
        marks = [10.0**e for e in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    else:
        power = 10.0 ** math.floor(math.log10(high / 4))
        step = power * next(factor for factor in (1, 2, 5, 10) if power * factor >= high / 5)
        marks = [step * number for number in range(int(high / step) + 1)]
    parts = [
        f'<path class="rule" d="M{_LEFT} {up(mark):.1f}H{_WIDE - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{up(mark) + 4:.1f}" text-anchor="end">{mark:,.4g}</text>'
        for mark in marks
    ]
    ticks = (
        x if stretched or len(x) <= _MOST_TICKS else [x[len(x) * part // 4] if part < 4 else x[-1] for part in range(5)]
    )
    parts += [
        f'<text x="{across(tick):.1f}" y="{_FLOOR + 18}" text-anchor="middle">{tick:,}</text>'
        for tick in dict.fromkeys(ticks)
    ]
    parts.append(f'<text x="{_WIDE / 2}" y="{_HIGH - 4}" text-anchor="middle">{html.escape(unit)}</text>')
    for css, line in (("ideal", ideal), ("measured", measured)):
        if len(line) == 1:  # a line needs two ends to be seen
            parts.append(f'<path class="{css}" d="M{across(x[0]) - 4:.1f} {up(line[0]):.1f}h8"/>')
            continue
        points = " L".join(f"{across(a):.1f} {up(b):.1f}" for a, b in zip(x, line, strict=True))
        parts.append(f'<path class="{css}" d="M{points}"/>')
    key = "".join(
        f'<span><i class="{css}"></i>{html.escape(name)}</span>'
        for css, name in zip(("ideal", "measured"), names, strict=True)
    )
    return (
        f"<h2>{html.escape(title)}</h2>"
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f'<p class="key">{key}</p>'
    )
