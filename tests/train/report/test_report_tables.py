"""The report's tables: final numbers, settings that differ, warnings, evaluations; and the visits of a suspect."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wv_shards import Overlay
from wv_train.ledger import LEDGER_DTYPE
from wv_train.report import write_report
from wv_train.report_settings import flat


def cells_of(page: Path) -> str:
    """The page with marks and code taken off, so that a table's row is easy to find."""
    text = page.read_text()
    for tag in ("<code>", "</code>", " class=left", " class=words", " class=best"):
        text = text.replace(tag, "")
    return text


def test_every_setting_that_differs_is_listed_by_its_path_and_no_other(
    shards: Path, tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    def recipe(**gate: float) -> dict[str, Any]:
        phases = [{"name": "base", "lr": 0.05, "milestones": [0.5]}, {"name": "gated", "gate": gate}]
        return {"model": "m", "seed": 3, "phases": phases}

    runs = [
        make_run(tmp_path / "a", shards, recipe=recipe(start=0.25, end=0.1), versions={"torch": "2", "commit": "abc"}),
        make_run(tmp_path / "b", shards, recipe=recipe(start=0.3), versions={"torch": "2", "commit": "abd"}),
        make_run(tmp_path / "c", shards, recipe=recipe(start=0.25, end=0.1), world_size=8),
    ]
    document = write_report(runs, tmp_path / "all.html")
    assert document["settings_that_differ"] == {
        "phases.gated.gate.start": [0.25, 0.3, 0.25],
        "phases.gated.gate.end": [0.1, None, 0.1],
        "run.world_size": [1, 1, 8],
        "run.versions.torch": ["2", "2", "2.14.1"],
        "run.versions.commit": ["abc", "abd", None],
    }
    text = cells_of(tmp_path / "all.html")
    assert "<tr><td>phases.gated.gate.end</td><td>0.1</td><td>–</td><td>0.1</td></tr>" in text
    assert "<td>seed</td>" not in text


def test_runs_that_were_asked_for_the_same_say_so(shards: Path, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    runs = [make_run(tmp_path / name, shards) for name in "ab"]
    assert write_report(runs, tmp_path / "both.html")["settings_that_differ"] == {}
    assert "recipes, data and versions are the same" in (tmp_path / "both.html").read_text()


def test_a_nested_table_is_flat_as_set_takes_it() -> None:
    table = {"a": {"b": 1}, "phases": [{"name": "x", "gate": {"start": 0.5}}], "milestones": [0.5, 0.7], "none": []}
    assert flat(table) == {"a.b": 1, "phases.x.gate.start": 0.5, "milestones": [0.5, 0.7], "none": []}


def test_final_numbers_are_of_page_and_json_and_unknown_ones_are_none(modern: Path, run: Path, tmp_path: Path) -> None:
    document = write_report([modern, run], tmp_path / "both.html")
    new, old = (numbers["measures"] for numbers in document["runs"])
    assert new["mean class top-1, many, wv-eval"] == 0.875
    assert new["mean class top-1, few, wv-eval"] is None
    assert new["calibration error, wv-eval"] == 0.2
    assert new["validation top-1 of EMA, best"] == pytest.approx(0.85)
    assert new["kept by the gate, least"] == 0.6
    assert (new["steps guarded against collapse"], new["steps in two passes"], new["warnings"]) == (6, 30, 4)
    assert new["time waited for data, median"] == pytest.approx(0.2)
    assert new["time training"] == pytest.approx(sum(10 / (1000 + step) for step in range(10, 101, 10)))
    assert old["calibration error, wv-eval"] is None
    assert old["warnings"] is None
    assert old["validation top-1, best"] == 0.8
    text = cells_of(tmp_path / "both.html")
    assert "<td>validation top-1 of EMA, best</td><td>85.0%</td><td>–</td>" in text
    assert "<td>mean class top-1, few, wv-eval</td>" not in text, "nobody knows it"


def test_the_best_is_marked_by_what_is_better(shards: Path, tmp_path: Path, make_run: Callable[..., Path]) -> None:
    runs = [make_run(tmp_path / "a", shards, top1=0.7), make_run(tmp_path / "b", shards, top1=0.8)]
    for run, ece in zip(runs, (0.1, 0.2), strict=True):
        evaluation = json.loads((run / "eval.json").read_text())
        (run / "eval.json").write_text(json.dumps(evaluation | {"expected_calibration_error": ece}))
    write_report(runs, tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    assert "<td>top-1, wv-eval</td><td>70.0%</td><td class=best>80.0%</td>" in text
    assert "<td>calibration error, wv-eval</td><td class=best>0.100</td><td>0.200</td>" in text
    assert "<td>validation top-1, last</td><td>70.0%</td><td>70.0%</td>" in text, "alike: none is best"


def test_warnings_that_differ_in_numbers_only_are_one(modern: Path, run: Path, tmp_path: Path) -> None:
    write_report([modern, run], tmp_path / "both.html")
    text = cells_of(tmp_path / "both.html").replace('<span class="dot c0"></span>', "")
    guard = "kept 2%: threshold lowered (3 times alike, the last is shown)"
    assert f"<td>50 to 70</td><td>modern</td><td>gated</td><td>guard</td><td>{guard}</td>" in text
    assert "<td>80</td><td>modern</td><td>gated</td><td>warning</td><td>something else</td>" in text
    write_report([run], run / "report.html")
    assert "<h2>Warnings</h2>" not in (run / "report.html").read_text()


def test_evaluation_shows_groups_calibration_and_what_is_confused(
    modern: Path, read_page: Callable[[Path], Any]
) -> None:
    write_report([modern], modern / "report.html")
    text = read_page(modern / "report.html").text
    assert {"many: more than 50", "90.0%", "few: fewer than 10", "a thing", "a ruse", "60.0%"} <= set(text)
    assert "calibration error 0.200" in text
    assert (
        "Averaged weights of checkpoint last, step 100, 15 samples of val; top-1 over 5 crops 74.0% ± 1.2%, of their "
        "mean 78.0%."
    ) in text
    charts = [json.loads(v) for _, n, v in read_page(modern / "report.html").attributes if n == "data-chart"]
    (calibration,) = [chart for chart in charts if chart["x"] != "step"]
    assert (calibration["lines"][0]["x"], calibration["lines"][0]["y"]) == ([0.8], [0.6]), "no empty bins"


def test_a_suspect_shows_its_visits_oldest_first(modern: Path, read_page: Callable[[Path], Any]) -> None:
    ledger = np.load(modern / "ledger.npy")
    ledger["seen"][3], ledger["gated"][3] = 18, 2  # visits 2 … 17 are left: place 2 is the oldest
    ledger["history"][3] = 1 + np.rint(254 * np.roll(np.arange(16) / 20, 2))
    ledger["history"][4, :2] = (1, 255)  # two visits, 0 and 1
    digest = json.loads((modern / "run.json").read_text())["manifest_digest"]
    Overlay(kind="ledger", array=ledger, manifest_digest=digest).save(modern / "ledger")
    write_report([modern], modern / "report.html")
    page = read_page(modern / "report.html")
    sparks = [v for t, n, v in page.attributes if (t, n) == ("svg", "aria-label") and v.startswith("confidence of")]
    said = ", ".join(f"{place / 20:.2f}" for place in range(16))
    assert sparks == [f"confidence of the label by visit: {said}", "confidence of the label by visit: 0.00, 1.00"]
    assert "over 18 visits, gated at 2" in page.text


def test_a_ledger_of_an_older_run_has_no_small_lines(run: Path, read_page: Callable[[Path], Any]) -> None:
    ledger = np.load(run / "ledger.npy")
    old = np.dtype([item for item in LEDGER_DTYPE.descr if item[0] != "history"])
    digest = json.loads((run / "run.json").read_text())["manifest_digest"]
    Overlay(kind="ledger", array=ledger[list(old.names)].astype(old), manifest_digest=digest).save(run / "ledger")
    write_report([run], run / "report.html")
    page = read_page(run / "report.html")
    assert page.tags.count("img") == 60
    assert ("svg", "class", "spark") not in page.attributes
