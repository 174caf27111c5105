"""The tables of `wv-bench methods` as Markdown, for documents: a row per contestant, both kinds of weights in it."""

from collections.abc import Callable, Mapping, Sequence

from wv_bench.methods_data import is_skewed
from wv_bench.methods_results import Row, tables_of
from wv_bench.methods_table import points, ratio


def markdown(rows: Sequence[Row], verdicts: Sequence[Mapping[str, str]], ensembles: Sequence[str]) -> str:
    """A table per set and regime, then the bars and the ensembles where there are any."""
    parts = []
    for data, regime, some in tables_of(rows):
        parts.append(f"### {data}, {regime}\n\n{_results(some, skewed=is_skewed(data))}")
    if verdicts:
        cells = [[one["word"], one["bar"], one["data"], one["expected"], one["found"]] for one in verdicts]
        parts.append("### Bars\n\n" + _table(["", "bar", "data", "expected", "found"], cells))
    if ensembles:
        parts.append("### Ensembles\n\n" + "\n".join(f"- {line}" for line in ensembles))
    return "\n\n".join(parts) + "\n"


def _results(rows: Sequence[Row], *, skewed: bool) -> str:
    by_label: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_label.setdefault(row.label, {})[row.weights] = row
    columns: list[tuple[str, Callable[[Row, Row | None], str]]] = [
        ("top-1", lambda model, _: points(model.measures["top1"])),
        ("over ce", lambda model, _: points(model.over_ce, signed=True)),
        ("top-1, EMA", lambda _, ema: points(ema.measures["top1"] if ema else None)),
        ("over ce, EMA", lambda _, ema: points(ema.over_ce if ema else None, signed=True)),
    ]
    if skewed:
        columns += [
            ("mean per class", lambda model, _: points(model.measures["mean_class_top1"])),
            ("over ce", lambda model, _: points(model.mean_class_over_ce, signed=True)),
            ("rare third", lambda model, _: points(model.measures["few_top1"])),
            ("kept of the rare", lambda model, _: points(model.rare_kept_fraction)),
        ]
    columns += [
        ("memorised", lambda model, _: points(model.measures["memorised_fraction"])),
        ("kept", lambda model, _: points(model.kept_fraction)),
        ("of it right", lambda model, _: points(model.kept_precision)),
        ("× wall", lambda model, _: ratio(model.wall_ratio)),
        ("seeds", lambda model, _: str(top1.seeds if (top1 := model.measures["top1"]) else 0)),
    ]
    cells = [
        [label, *(cell(of["model"], of.get("ema")) for _, cell in columns)]
        for label, of in by_label.items()
        if "model" in of
    ]
    return _table(["", *(heading for heading, _ in columns)], cells)


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
