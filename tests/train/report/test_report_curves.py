"""The report's curves: what each chart holds, of one run and of several, and where phases and gate are."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wv_train.report import write_report

STEPS = [float(step) for step in range(10, 101, 10)]


def charts_of(page: Path) -> dict[str, dict[str, Any]]:
    """Title of each line chart → its lines by label."""
    figures = re.findall(r'<figcaption>([^<]*)</figcaption><svg[^>]*data-chart="([^"]*)"', page.read_text())
    return {
        html.unescape(title): {line["label"]: line for line in json.loads(html.unescape(data))["lines"]}
        for title, data in figures
    }


def test_curves_have_every_metric_and_the_phases(run: Path, read_page: Callable[[Path], Any]) -> None:
    write_report([run], run / "report.html")
    charts = charts_of(run / "report.html")
    gate, rates = charts["Gate: fraction kept, and threshold"], charts["Learning rate"]
    assert gate["kept"]["y"] == [1.0] * 4 + [0.6] * 6
    assert gate["threshold"]["y"] == [0.0] * 4 + [0.25] * 6
    assert (rates["head"]["y"], rates["backbone"]["x"]) == ([0.5] * 10, STEPS)
    assert charts["Loss"]["validation"]["y"] == [1.0, 1.1]
    assert charts["Top-1"]["validation"]["y"] == [0.8, 0.7]
    assert {"base: steps 0 to 40", "gated: steps 40 to 100"} <= set(read_page(run / "report.html").text)


def test_what_a_run_did_not_record_has_no_chart(run: Path) -> None:
    write_report([run], run / "report.html")
    assert set(charts_of(run / "report.html")) == {
        "Loss",
        "Top-1",
        "Gate: fraction kept, and threshold",
        "Learning rate",
        "Images per second",
    }


def test_a_run_that_records_all_has_all_charts(modern: Path) -> None:
    write_report([modern], modern / "report.html")
    charts = charts_of(modern / "report.html")
    assert charts["Top-1"]["EMA"]["y"] == [0.85, 0.75]
    assert charts["Loss"]["EMA"]["y"] == [0.9, 1.0]
    precision = charts["Right labels among kept and among shown samples"]
    assert (precision["kept"]["x"], precision["kept"]["y"]) == (STEPS[4:], [0.9] * 6)
    assert precision["shown"]["y"] == [0.7] * 6
    bands = charts["Kept by band"]
    assert list(bands) == ["band 5: 6 to 7 images", "band 12: 64 to 90 images"], "rare first, none where none was shown"
    assert [bands[band]["y"][0] for band in bands] == [0.2, 0.75]
    assert [bands[band]["css"] for band in bands] == ["r0", "r9"], "the ends of the ramp"
    assert charts["Share of time waited for data"]["waited"]["y"] == [0.2] * 10
    assert charts["Images per second"]["without waiting for data"]["y"][0] == 1262.0
    steps = charts["Steps: in two passes, guarded, without an update"]
    assert {name: line["y"][-1] for name, line in steps.items()} == {"two passes": 0.5, "guarded": 0.1}
    assert charts["Gradient norm"]["mean"]["y"] == [2.0] * 10


def test_the_gate_is_marked_where_it_came_and_where_it_went(
    modern: Path, shards: Path, tmp_path: Path, make_run: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
    write_report([modern], modern / "report.html")
    text = read_page(modern / "report.html").text
    assert "gate on at step 40, threshold 0.25 to 0.1" in text
    assert not [words for words in text if words.startswith("gate off")], "it is on at the last step"
    with (modern / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 130, "phase": "tail", "loss": 1.0}) + "\n")
    write_report([modern], modern / "report.html")
    assert "gate off at step 100" in read_page(modern / "report.html").text
    gates = [{"name": "gated", "gate": {"start": 0.25, "end": 0.1}}, {"name": "tail", "gate": {"start": 0.1}}]
    info = json.loads((modern / "run.json").read_text())
    (modern / "run.json").write_text(json.dumps(info | {"recipe": {"model": "m", "phases": gates}}))
    write_report([modern], modern / "report.html")
    said = {words for words in read_page(modern / "report.html").text if re.match("gate o.* at step", words)}
    assert said == {"gate on at step 40, threshold 0.25 to 0.1, 0.1 to 0.0"}, "neighbours are one gate"
    ungated = make_run(tmp_path / "ungated", shards, recipe={"model": "m", "phases": [{"name": "gated"}]})
    write_report([ungated], ungated / "report.html")
    assert not [words for words in read_page(ungated / "report.html").text if words.startswith("gate o")]


def test_runs_lie_over_each_other_a_colour_each_and_a_pattern_for_each_quantity(
    modern: Path, run: Path, tmp_path: Path
) -> None:
    write_report([modern, run], tmp_path / "both.html")
    charts = charts_of(tmp_path / "both.html")
    assert {label: line["css"] for label, line in charts["Top-1"].items()} == {
        "modern, training": "c0",
        "modern, validation": "c0 dashed",
        "modern, EMA": "c0 dotted",
        "gated, training": "c1",
        "gated, validation": "c1 dashed",
    }
    assert "Kept by band, modern" in charts
    assert "Kept by band, gated" not in charts
    text = (tmp_path / "both.html").read_text()
    legend = re.search(r"<figcaption>Top-1.*?<div class=\"legend\">(.*?)</div>", text, re.S)
    assert legend
    assert re.findall(r"</svg>([^<]+)</span>", legend[1]) == ["modern", "gated", "training", "validation", "EMA"]


@pytest.mark.parametrize(("changed", "strips"), [(False, 1), (True, 2)])
def test_runs_with_the_same_phases_share_a_strip(
    changed: bool, strips: int, shards: Path, tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    runs = [make_run(tmp_path / name, shards) for name in ("a", "b")]
    if changed:
        with (runs[1] / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "train", "step": 130, "phase": "gated", "loss": 1.0}) + "\n")
    write_report(runs, tmp_path / "both.html")
    loss = re.search(r"<figcaption>Loss.*?</figure>", (tmp_path / "both.html").read_text(), re.S)
    assert loss
    assert loss[0].count(">base: steps 0 to 40<") == strips
    assert ("neutral" in loss[0].split("<div")[0]) == (not changed)
