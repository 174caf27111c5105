"""`wv-report`: what it writes and prints, and one line for every mistake."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wv_shards import Dataset, EarlierInfo, Manifest, Overlay
from wv_train.report import write_report
from wv_train.report_data import ReportError
from wv_train.truth import TruthError


def test_command_writes_beside_the_run_and_prints_the_numbers(
    run: Path, shards: Path, tmp_path: Path, write_truth: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    truth = write_truth(tmp_path / "truth.csv", shards, set(range(10, 40)))
    code, out, err = call(run, "--truth", truth)
    assert (code, err) == (0, "")
    assert "first 50 60%" in out
    assert "by chance 20%" in out
    assert (run / "report.html").is_file()
    assert call(run, run, "--out", tmp_path / "new" / "page.html")[0] == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"page.html", "page.json"}


def test_wrong_usage_is_code_2(run: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    for arguments in ([], [run, run], [run, "--out", "page.txt"], [run, "--nonsense"]):
        code, _, err = call(*arguments)
        assert code == 2
        assert err.startswith("wv-report: ")
        assert err.count("\n") == 1


def test_moved_shards_are_found_with_the_option(
    tmp_path: Path,
    shards: Path,
    make_run: Callable[..., Path],
    make_ledger: Callable[[int], np.ndarray],
    call: Callable[..., tuple[int, str, str]],
) -> None:
    run = make_run(tmp_path / "run", shards)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"shards": "gone/away"}))
    code, _, err = call(run)
    assert (code, "--shards" in err) == (1, True)
    assert call(run, "--shards", shards)[0] == 0


Spoil = Callable[[Path, Path], list[object]]


def _no_run(run: Path, tmp: Path) -> list[object]:
    return [tmp / "nothing"]


def _newer_format(run: Path, tmp: Path) -> list[object]:
    (run / "run.json").write_text(json.dumps({"format_version": 99}))
    return [run]


def _missing_key(run: Path, tmp: Path) -> list[object]:
    (run / "run.json").write_text(json.dumps({"format_version": 1, "classes": []}))
    return [run]


def _other_ledger(run: Path, tmp: Path) -> list[object]:
    Overlay(kind="ledger", array=np.load(run / "ledger.npy"), manifest_digest="0" * 32).save(run / "ledger")
    return [run]


def _short_ledger(run: Path, tmp: Path) -> list[object]:
    digest = json.loads((run / "run.json").read_text())["manifest_digest"]
    Overlay(kind="ledger", array=np.load(run / "ledger.npy")[:-1], manifest_digest=digest).save(run / "ledger")
    return [run]


def _damaged_metrics(run: Path, tmp: Path) -> list[object]:
    (run / "metrics.jsonl").write_text('{"kind": "tr\n{"kind": "train"}\n')
    return [run]


def _no_truth(run: Path, tmp: Path) -> list[object]:
    return [run, "--truth", tmp / "none.csv"]


def _other_columns(run: Path, tmp: Path) -> list[object]:
    (tmp / "t.csv").write_text("file,label\nx.jpg,0\n")
    return [run, "--truth", tmp / "t.csv"]


def _no_numbers(run: Path, tmp: Path) -> list[object]:
    (tmp / "t.csv").write_text("path,label,true_label\nx.jpg,cat,dog\n")
    return [run, "--truth", tmp / "t.csv"]


def _other_paths(run: Path, tmp: Path) -> list[object]:
    (tmp / "t.csv").write_text("path,label,true_label\nx.jpg,0,0\n")
    return [run, "--truth", tmp / "t.csv"]


def _out_is_a_folder(run: Path, tmp: Path) -> list[object]:
    (run / "report.html").mkdir()
    return [run]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_run, r"expected a run of wv-train, found no run\.json"),
        (_newer_format, "format 99"),
        (_missing_key, "expected the key"),
        (_other_ledger, r"made for data set 000000000000…"),
        (_short_ledger, "149 rows"),
        (_damaged_metrics, "line 1: expected a JSON object"),
        (_no_truth, r"none\.csv: expected a table"),
        (_other_columns, "expected the columns path, label, true_label"),
        (_no_numbers, "expected a CSV with whole numbers"),
        (_other_paths, "names none of the 150 samples"),
        (_out_is_a_folder, "cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_code_1(
    spoil: Spoil, said: str, run: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, err = call(*spoil(run, tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith("wv-report: ")
    assert err.count("\n") == 1
    assert re.search(said, err), err


def test_a_run_on_other_shards_is_refused(run: Path, small_dataset: Path) -> None:
    with pytest.raises(ReportError, match=r"trained on data set [0-9a-f]{12}…, .* holds [0-9a-f]{12}…"):
        write_report([run], run / "report.html", shards=small_dataset)


def test_a_run_is_reported_on_what_it_saw_when_the_data_set_has_grown_since(
    run: Path, shards: Path, tmp_path: Path, make_ledger: Callable[[int], np.ndarray], write_truth: Callable[..., Path]
) -> None:
    """The last shard came later: its images are neither suspects nor missing in the ledger."""
    now = Manifest.load(shards)
    samples = now.samples - now.shards[-1].samples
    grown = tmp_path / "grown"
    shutil.copytree(shards, grown)
    replace(now, earlier=(EarlierInfo(digest="e" * 32, samples=samples),)).save(grown)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"manifest_digest": "e" * 32}))
    ledger = make_ledger(samples)
    Overlay(kind="ledger", array=ledger, manifest_digest="e" * 32).save(run / "ledger")
    truth = write_truth(tmp_path / "truth.csv", shards, {samples - 1, samples})
    (numbers,) = write_report([run], run / "report.html", shards=grown, truth_path=truth)["runs"]
    assert numbers["samples"] == samples
    assert numbers["known"] == np.count_nonzero(ledger["seen"])
    with Dataset.open(shards) as dataset:
        later = set(dataset.samples_table(["key"])["key"].to_pylist()[samples:])
    assert not later & set(numbers["least_believed"])
    Overlay(kind="ledger", array=make_ledger(now.samples), manifest_digest="e" * 32).save(run / "ledger")
    with pytest.raises(ReportError, match="its ledger has 150 rows"):
        write_report([run], run / "report.html", shards=grown)


def test_a_truth_with_other_labels_is_refused(
    run: Path, shards: Path, tmp_path: Path, write_truth: Callable[..., Path]
) -> None:
    truth = write_truth(tmp_path / "truth.csv", shards, set())
    truth.write_text(re.sub(r",\d+,\d+,clean", ",77,77,clean", truth.read_text()))
    with pytest.raises(TruthError, match="the label 77, the shards"):
        write_report([run], run / "report.html", truth_path=truth)
