"""The page of `wv-bench gpu-check`: verdicts, then every command's table; one HTML file, nothing fetched."""

from collections.abc import Iterable
from html import escape
from typing import Any

from wv_bench.loader_report import about, gpu_texts

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1c; --faint: #6b6b6b; --line: #d9dde5; --good: #0b6e4f;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #ececec; --faint: #a0a4ab; --line: #343a46;
  --good: #3fc08f; --bad: #ff8a80; } }
body { background: var(--back); color: var(--text); font: 15px/1.4 system-ui, sans-serif; margin: 0 auto;
  max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.2rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { color: var(--faint); margin: .3rem 0; overflow-wrap: anywhere; } div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } td, th { border-bottom: 1px solid var(--line);
  padding: .25rem .6rem; text-align: right; } td:first-child, th:first-child { text-align: left; }
.pass { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
"""


def page(result: dict[str, Any]) -> str:
    """The whole page, from the document of gpu_check."""
    verdicts = "\n".join(
        f'<p><span class="{verdict["verdict"].lower()}">{verdict["verdict"]}</span> {escape(verdict["data"])}: '
        f"{escape(verdict['bar'])}: {_number(verdict['found'], 3)}, expected at least {verdict['least']}; "
        f"{escape(verdict['figures'])}</p>"
        for verdict in result["verdicts"]
    )
    runs = "\n".join(_run(run) for run in result["runs"])
    facts = about({"machine": result["machine"], "rows": [], "notes": []})
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>wv-bench gpu-check</title><style>{_STYLE}</style></head>
<body>
<h1>Does the loader keep the GPU fed?</h1>
{verdicts}
{_lines(facts)}
{runs}
</body>
</html>
"""


def _run(run: dict[str, Any]) -> str:
    title = f"<h2>{escape(run['name'])}, {escape(run['data'])}</h2>"
    if run["figures"] is None:
        return f"{title}\n{_lines([run['problem']])}"
    figures = run["figures"]
    chart = f'\n<p><a href="{escape(run["chart"])}">chart</a></p>' if run["chart"] else ""
    rows = "\n".join(_row(row) for row in figures["rows"])
    return f"""{title}
{_lines([figures["title"]])}
<div><table>
<tr><th></th><th>images/s, median</th><th>min</th><th>over synthetic</th><th>waited s per 1,000</th>
<th>CPU s per 1,000</th><th>GPU</th></tr>
{rows}
</table></div>{chart}
{_lines(figures["notes"])}"""


def _row(row: dict[str, Any]) -> str:
    if row.get("status", "ok") != "ok":
        cells = [f"{row['status']}: {row['reason']}"]
        return f'<tr><td>{escape(row["label"])}</td><td colspan="6">{escape(cells[0])}</td></tr>'
    over = row.get("over_synthetic")
    cells = [
        _number(row["rate_median"], 0),
        _number(row["rate_min"], 0),
        _number(over["median"] if over else None, 3),
        _number(row.get("wait_s_per_1000"), 3),
        _number(row["cpu_s_per_1000"], 3),
        ", ".join(f"{heading} {text}" for heading, text in gpu_texts(row).items()),
    ]
    return f"<tr><td>{escape(row['label'])}</td>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(f"<p>{escape(line)}</p>" for line in lines)
