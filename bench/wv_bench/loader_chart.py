"""The chart of `wv-bench loader`: one HTML file with inline SVG bars, nothing fetched, for light and dark screens.

Bars show the median round, with a line from the slowest to the fastest. Text is HTML, so that it stays readable on a
narrow screen; only the bars stretch.
"""

from html import escape
from typing import Any

from wv_bench.loader_report import about, cpu_text, gpu_texts

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1c; --faint: #6b6b6b; --ours: #0b6e4f; --peer: #8d99ae;
  --ceiling: #d9dde5; --line: #1c1c1c; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #ececec; --faint: #a0a4ab; --ours: #3fc08f;
  --peer: #67748c; --ceiling: #343a46; --line: #ececec; } }
body { background: var(--back); color: var(--text); font: 15px/1.4 system-ui, sans-serif; margin: 0 auto;
  max-width: 52rem; padding: 1rem; }
h1 { font-size: 1.15rem; margin: 0 0 .3rem; } p { color: var(--faint); margin: .3rem 0; overflow-wrap: anywhere; }
.row { margin: .55rem 0; } .head { display: flex; justify-content: space-between; gap: 1rem; }
.head span + span { font-variant-numeric: tabular-nums; white-space: nowrap; } .small { font-size: .82rem; }
svg { display: block; width: 100%; height: 14px; } .ours { fill: var(--ours); } .peer { fill: var(--peer); }
.ceiling, .reading { fill: var(--ceiling); } line { stroke: var(--line); stroke-width: 1.5; }
"""


def chart(result: dict[str, Any], command: str = "loader") -> str:
    """The page, from the document of loader_report; `command` of wv-bench that measured."""
    good = [row for row in result["rows"] if row["status"] == "ok" and row["kind"] != "reading"]
    longest = max((max(row["rates"]) for row in good), default=1.0)
    bars = "\n".join(_bar(row, longest) for row in sorted(good, key=lambda row: -row["rate_median"]))
    absent = [f"{row['status']}: {row['label']}: {row['reason']}" for row in result["rows"] if row["status"] != "ok"]
    lines = "\n".join(f'<p class="small">{escape(line)}</p>' for line in [*absent, *about(result)])
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>wv-bench {escape(command)}</title><style>{_STYLE}</style></head>
<body>
<h1>Images a second</h1>
<p>{escape(result["title"])}. Median; the line spans slowest to fastest.</p>
{bars}
{lines}
</body>
</html>
"""


def _bar(row: dict[str, Any], longest: float) -> str:
    width, low, high = (100 * value / longest for value in (row["rate_median"], min(row["rates"]), max(row["rates"])))
    facts = [f"{cpu_text(row)} CPU s per 1,000"]
    if "peak_pss_mb" in row:
        facts += [f"{row['peak_pss_mb']:,.0f} MB", f"first batch {row['first_batch_s']:.2f} s"]
    facts += [f"GPU {heading} {text}" for heading, text in gpu_texts(row).items()]
    if row["kind"] == "peer" and row["ours_over_this"]:
        facts.insert(0, f"ours is {row['ours_over_this']['median']:.2f} times as fast")
    name = row["label"]
    return f"""<div class="row">
<div class="head"><span>{escape(name)}</span><span>{row["rate_median"]:,.0f}</span></div>
<svg role="img" aria-label="{escape(name, quote=True)}: {row["rate_median"]:,.0f} images a second">
<rect class="{row["kind"]}" width="{width:.2f}%" height="14" rx="2"/>
<line x1="{low:.2f}%" x2="{high:.2f}%" y1="7" y2="7"/></svg>
<div class="head small"><span>{escape(" · ".join(facts))}</span></div>
</div>"""
