"""The report: its numbers against hand-computed ones, its page as one safe file, its refusals as one line."""

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from wv_shards import SAMPLES_FILE, Dataset, EarlierInfo, Manifest, Overlay
from wv_train import cli_report
from wv_train.ledger import LEDGER_DTYPE
from wv_train.report import GALLERY_IMAGES, write_report
from wv_train.report_charts import MAX_POINTS, Line, Strip, class_chart, histogram, line_chart
from wv_train.report_data import UNKNOWN, ReportError, Truth, distinct_names, judge, rank_suspects

CLASS_SIZES = [90, 40, 14, 6]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, draw_dataset: Callable[..., Path]) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("report") / "shards", CLASS_SIZES)


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    return make_run(tmp_path / "gated", shards)


def make_run(path: Path, shards: Path, *, top1: float = 0.75, **info: object) -> Path:
    """A finished run's folder, written by hand as the trainer and wv-eval write it."""
    path.mkdir(parents=True)
    manifest = Manifest.load(shards)
    counts = [c.samples for c in manifest.classes]
    facts: dict[str, object] = {
        "format_version": 1,
        "command": ["wv-train", "--recipe", "demo"],
        "shards": str(shards),
        "val": None,
        "manifest_digest": manifest.digest,
        "classes": [f"n0000000{c} thing {c}, Res {c}" for c in range(len(counts))],
        "class_counts": counts,
        "class_bands": [c.band for c in manifest.classes],
        "exposures": {"base": [float(n) for n in counts], "gated": [37.5] * len(counts)},
        "recipe": {"model": "wv_resnet_16_32_64", "phases": [{"name": "base"}, {"name": "gated"}]},
        "world_size": 1,
        "versions": {"torch": "2.14.1"},
        "engine": "pillow",
        "parameters": 78_000,
    }
    (path / "run.json").write_text(json.dumps(facts | info))
    rows: list[dict[str, Any]] = [{"kind": "phase", "step": 0, "phase": "base", "event": "start"}]
    for step in range(10, 101, 10):
        phase = "base" if step <= 40 else "gated"
        rows.append(
            {"kind": "train", "step": step, "phase": phase, "epoch": 0, "loss": 2.0 - step / 100, "top1": step / 200}
        )
        rows[-1] |= {"kept_fraction": 1.0 if phase == "base" else 0.6, "threshold": 0.25 * (phase == "gated")}
        rows[-1] |= {"lr_backbone": 0.05, "lr_head": 0.5, "images_per_s": 1000.0 + step, "wait_s": 0.0, "samples": step}
    rows.append({"kind": "val", "step": 50, "phase": "gated", "epoch": 0, "top1": 0.8, "top5": 0.9, "loss": 1.0})
    rows.append({"kind": "val", "step": 100, "phase": "gated", "epoch": 1, "top1": 0.7, "top5": 0.9, "loss": 1.1})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger = make_ledger(manifest.samples)
    Overlay(kind="ledger", array=ledger, manifest_digest=manifest.digest).save(path / "ledger")
    per_class = [{"class_id": c, "name": f"thing {c}", "samples": 5, "top1": 0.2 * c} for c in range(len(counts) - 1)]
    per_class.append({"class_id": len(counts) - 1, "name": "thing without images", "samples": 0, "top1": None})
    evaluation = {
        "top1": top1,
        "top5": 0.95,
        "mean_class_top1": 0.5,
        "loss": 1.0,
        "samples": 15,
        "per_class": per_class,
    }
    evaluation |= {"per_band": [{"band": 12, "classes": 1, "samples": 5, "top1": 0.625}], "checkpoint": "last"}
    (path / "eval.json").write_text(json.dumps(evaluation))
    return path


def make_ledger(samples: int) -> np.ndarray:
    """Sample i has the confidence i / samples; the first three were never seen."""
    ledger = np.zeros(samples, dtype=LEDGER_DTYPE)
    ledger["seen"], ledger["seen"][:3] = 7, 0
    ledger["label_conf_mean"] = np.arange(samples) / samples
    ledger["prediction"] = np.where(ledger["seen"] > 0, 1, -1)
    return ledger


def write_truth(path: Path, shards: Path, wrong: set[int]) -> Path:
    """The truth in which the ordinals of `wrong` show no class."""
    with Dataset.open(shards) as dataset:
        paths = dataset.samples_table(["path"])["path"].to_pylist()
        labels = dataset.index["label"].tolist()
    lines = [
        f"{p},{n},{-1 if i in wrong else n},{'outlier' if i in wrong else 'clean'}"
        for i, (p, n) in enumerate(zip(paths, labels, strict=True))
    ]
    path.write_text("path,label,true_label,kind\n" + "\n".join(lines) + "\n")
    return path


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


# Numbers


def test_suspects_are_ranked_by_mean_confidence_and_never_seen_ones_are_none() -> None:
    ledger = np.zeros(5, dtype=LEDGER_DTYPE)
    ledger["seen"] = [1, 2, 0, 1, 9]
    ledger["label_conf_mean"] = [0.5, 0.1, 0.0, 0.5, 0.3]
    ledger["label_conf"] = [0.0, 0.9, 0.0, 0.1, 0.2]
    assert rank_suspects(ledger).tolist() == [1, 4, 0, 3]


def test_judgement_is_what_a_hand_counts() -> None:
    samples = 120
    ledger = np.zeros(samples, dtype=LEDGER_DTYPE)
    ledger["seen"] = 1
    ledger["label_conf_mean"] = np.linspace(0, 1, samples)
    labels = np.zeros(samples, dtype=np.int64)
    true_labels = np.zeros(samples, dtype=np.int64)
    true_labels[:30], true_labels[60:70] = 2, -1  # 30 swapped among the first 50, 10 outliers after them
    ledger["prediction"] = np.where(np.arange(samples) < 65, 0, 1)  # repeats the label of 30 + 5 of the 40
    found = judge(ledger, labels, Truth(true_labels=true_labels))
    assert (found.known, found.wrong, found.base_rate) == (120, 40, pytest.approx(1 / 3))
    assert found.suspects_precision == pytest.approx({"50": 0.6, "100": 0.4, "10%": 1.0}), "no 200 of 120"
    assert found.memorised_fraction == pytest.approx(35 / 40)
    # The 30 beat all 80 right ones; the 10 beat those above them: 120 − 70 = 50.
    assert found.auroc == pytest.approx((30 * 80 + 10 * 50) / (40 * 80))


def test_judgement_leaves_out_what_was_not_seen_or_is_not_known() -> None:
    ledger = np.zeros(60, dtype=LEDGER_DTYPE)
    ledger["seen"], ledger["seen"][:10] = 1, 0
    true_labels = np.full(60, 1)
    true_labels[10:20], true_labels[20:] = UNKNOWN, 0
    found = judge(ledger, np.zeros(60, dtype=np.int64), Truth(true_labels=true_labels))
    assert (found.known, found.wrong, found.auroc, found.memorised_fraction) == (40, 0, None, None)


@pytest.mark.parametrize("seed", range(8))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ledger = np.zeros(40, dtype=LEDGER_DTYPE)
    ledger["seen"] = 1
    ledger["label_conf_mean"] = rng.integers(0, 8, 40) / 8  # many ties
    true_labels = rng.integers(0, 2, 40)
    confidence, wrong = ledger["label_conf_mean"], true_labels != 0
    pairs = [0.5 if a == b else float(a < b) for a, b in product(confidence[wrong], confidence[~wrong])]
    found = judge(ledger, np.zeros(40, dtype=np.int64), Truth(true_labels=true_labels))
    assert found.auroc == pytest.approx(np.mean(pairs))


def test_json_and_page_say_the_numbers_of_the_judgement(run: Path, shards: Path, tmp_path: Path) -> None:
    wrong = set(range(10, 40)) | {100, 101}
    truth = write_truth(tmp_path / "truth.csv", shards, wrong)
    document = write_report([run], run / "report.html", truth_path=truth)
    assert json.loads((run / "report.json").read_text()) == document
    (numbers,) = document["runs"]
    # 147 seen, in order of ordinals 3 … 149: the first 50 are 3 … 52, the first 15 are 3 … 17.
    assert (numbers["samples"], numbers["seen"]) == (150, 147)
    assert numbers["suspects_precision"] == pytest.approx({"50": 30 / 50, "100": 32 / 100, "10%": 8 / 15})
    assert numbers["base_rate"] == pytest.approx(32 / 147)
    with Dataset.open(shards) as dataset:
        labels = dataset.index["label"]
    assert numbers["memorised_fraction"] == pytest.approx(np.mean([labels[i] == 1 for i in wrong]))
    assert numbers["eval"] == {"top1": 0.75, "top5": 0.95, "mean_class_top1": 0.5}
    text = " ".join(read_page(run / "report.html").text)
    for shown in ("60.0%", "32.0%", "53.3%", "21.8%", f"{numbers['auroc']:.3f}", "32 of 147 labels are wrong"):
        assert shown in text, shown


def test_without_truth_nothing_is_judged(run: Path) -> None:
    (numbers,) = write_report([run], run / "report.html")["runs"]
    fields = ("known", "wrong", "base_rate", "suspects_precision", "auroc", "memorised_fraction")
    assert [numbers[field] for field in fields] == [None] * len(fields)
    page = read_page(run / "report.html")
    assert not any(name == "class" and value.startswith("badge") for _, name, value in page.attributes)


# The page


def test_gallery_shows_the_least_believed_images_with_label_and_prediction(run: Path, shards: Path) -> None:
    (numbers,) = write_report([run], run / "report.html")["runs"]
    with Dataset.open(shards) as dataset:
        keys = dataset.samples_table(["key"])["key"].to_pylist()
        first = Image.open(io.BytesIO(dataset.read(3)))
    assert numbers["least_believed"] == keys[3 : 3 + GALLERY_IMAGES]
    text = (run / "report.html").read_text()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(pictures) == GALLERY_IMAGES
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert shown.size == first.size
    assert np.abs(np.asarray(shown, dtype=float) - np.asarray(first, dtype=float)).mean() < 6
    page = read_page(run / "report.html")
    assert [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")] == numbers["least_believed"]
    assert "0.020 " in page.text  # 3 / 150
    assert "model: thing 1" in page.text


def test_truth_marks_each_image_of_the_gallery(run: Path, shards: Path, tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.csv", shards, {3, 4, 9})
    write_report([run], run / "report.html", truth_path=truth)
    badges = [
        value for _, name, value in read_page(run / "report.html").attributes if name == "class" and "badge" in value
    ]
    assert badges == ["badge wrong"] * 2 + ["badge right"] * 4 + ["badge wrong"] + ["badge right"] * (
        GALLERY_IMAGES - 7
    )


def test_page_is_one_file_that_loads_nothing(run: Path, shards: Path, tmp_path: Path) -> None:
    write_report([run], run / "report.html", truth_path=write_truth(tmp_path / "truth.csv", shards, {5}))
    page = read_page(run / "report.html")
    for _tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith("data:image/jpeg;base64,"), value[:60]
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    text = (run / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(|//[a-z0-9.-]+\.[a-z]{2,}/", text)
    policy = next(v for t, n, v in page.attributes if (t, n) == ("meta", "content") and "default-src" in v)
    assert "default-src 'none'" in policy


def test_hostile_names_stay_text(tmp_path: Path, shards: Path) -> None:
    evil = """</script><script>alert(1)</script><img src=x onerror="alert('2')">"""
    hostile = tmp_path / "hostile"
    shutil.copytree(shards, hostile)
    table = pq.read_table(hostile / SAMPLES_FILE)
    for column in ("key", "path"):
        column_values = pa.array([f"{evil}{i}" for i in range(table.num_rows)])
        table = table.set_column(table.schema.get_field_index(column), column, column_values)
    pq.write_table(table, hostile / SAMPLES_FILE)
    names = [f"{evil} {c}" for c in range(len(CLASS_SIZES))]
    exposures = {evil: [1.0] * len(CLASS_SIZES)}
    facts = {"classes": names, "command": [evil], "engine": evil, "exposures": exposures, "recipe": {evil: evil}}
    run = make_run(tmp_path / "<b onclick=x>&amp;", hostile, versions={evil: evil}, **facts)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 200, "phase": evil, "loss": 1.0}) + "\n")
    evaluation = json.loads((run / "eval.json").read_text())
    evaluation["per_class"][0]["name"] = evil
    (run / "eval.json").write_text(json.dumps(evaluation))
    write_report([run, make_run(tmp_path / "other", hostile)], tmp_path / "report.html")
    page = read_page(tmp_path / "report.html")
    assert page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(v.startswith("data:") for t, n, v in page.attributes if n == "src")
    assert html.escape(evil) in (tmp_path / "report.html").read_text()
    assert evil not in (tmp_path / "report.html").read_text()


def test_curves_have_every_metric_and_the_phases(run: Path) -> None:
    write_report([run], run / "report.html")
    page = read_page(run / "report.html")
    charts = [json.loads(value) for _, name, value in page.attributes if name == "data-chart"]
    lines = {line["label"]: line for chart in charts for line in chart["lines"]}
    assert lines["kept"]["y"] == [1.0] * 4 + [0.6] * 6
    assert lines["threshold"]["y"] == [0.0] * 4 + [0.25] * 6
    assert lines["head"]["y"] == [0.5] * 10
    assert lines["backbone"]["x"] == [float(step) for step in range(10, 101, 10)]
    validations = [line for chart in charts for line in chart["lines"] if line["label"] == "validation"]
    assert [line["y"] for line in validations] == [[1.0, 1.1], [0.8, 0.7]]
    assert {"base: steps 0 to 40", "gated: steps 40 to 100"} <= set(page.text)


def test_classes_show_counts_and_exposures(run: Path) -> None:
    write_report([run], run / "report.html")
    tips = [text for text in read_page(run / "report.html").text if "images; shown an epoch" in text]
    assert len(tips) == len(CLASS_SIZES)
    assert tips[0] == "n00000000 thing 0, Res 0: 90 images; shown an epoch: base 90.0; shown an epoch: gated 37.5"
    assert "6 images; shown an epoch: base 6.0; shown an epoch: gated 37.5" in tips[-1]


def test_evaluation_lists_bands_and_classes(run: Path) -> None:
    write_report([run], run / "report.html")
    text = read_page(run / "report.html").text
    assert {"12: 64 to 90 images", "62.5%", "thing 2", "40.0%", "thing without images"} <= set(text)


def test_several_runs_stand_side_by_side(tmp_path: Path, shards: Path) -> None:
    runs = [make_run(tmp_path / "a" / "run", shards, top1=0.7), make_run(tmp_path / "b" / "run", shards, top1=0.8)]
    write_report(runs, tmp_path / "both.html")
    page = read_page(tmp_path / "both.html")
    assert {"a/run", "b/run", "70.0%", "80.0%", "2 runs compared"} <= set(page.text)
    assert "<td>top-1, wv-eval</td><td>70.0%</td><td class=best>80.0%</td>" in (tmp_path / "both.html").read_text()
    labels = {line["label"] for _, n, v in page.attributes if n == "data-chart" for line in json.loads(v)["lines"]}
    assert {"a/run, training", "b/run, training", "b/run, kept"} <= labels


def test_names_are_as_short_as_they_can_be() -> None:
    assert distinct_names([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert distinct_names([Path("/x/plain"), Path("/x/gated")]) == ["plain", "gated"]
    assert distinct_names([Path("/x/run"), Path("/x/run")]) == ["run", "run"]


# Partial and damaged runs


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, shards: Path) -> None:
    run = make_run(tmp_path / "run", shards)
    for name in ("metrics.jsonl", "ledger.npy", "ledger.json", "eval.json"):
        (run / name).unlink()
    (numbers,) = write_report([run], run / "report.html")["runs"]
    assert numbers["seen"] == 0
    text = " ".join(read_page(run / "report.html").text)
    assert "No steps have been recorded yet" in text
    assert "No ledger has been written yet" in text
    assert "Not evaluated yet" in text


def test_a_half_written_last_line_of_metrics_is_left_out(run: Path) -> None:
    write_report([run], run / "report.html")
    before = (run / "report.html").read_bytes()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    write_report([run], run / "report.html")
    assert (run / "report.html").read_bytes() == before


def test_a_damaged_image_costs_its_picture_only(tmp_path: Path, shards: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    with Dataset.open(damaged) as dataset:
        tar, offset = dataset.shard_path(int(dataset.shard_of(3))), int(dataset.index[3]["offset"])
    with tar.open("r+b") as file:
        file.seek(offset + 20)
        byte = file.read(1)[0]
        file.seek(offset + 20)
        file.write(bytes([byte ^ 0xFF]))
    run = make_run(tmp_path / "run", damaged)
    write_report([run], run / "report.html")
    page = read_page(run / "report.html")
    assert page.text.count("not readable") == 1
    assert page.tags.count("img") == GALLERY_IMAGES - 1


# The command


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["wv-report", *map(str, arguments)])
    code = 0
    try:
        cli_report.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_command_writes_beside_the_run_and_prints_the_numbers(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = write_truth(tmp_path / "truth.csv", shards, set(range(10, 40)))
    code, out, err = call(capsys, monkeypatch, run, "--truth", truth)
    assert (code, err) == (0, "")
    assert "first 50 60%" in out
    assert "by chance 20%" in out
    assert (run / "report.html").is_file()
    assert call(capsys, monkeypatch, run, run, "--out", tmp_path / "new" / "page.html")[0] == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"page.html", "page.json"}


def test_wrong_usage_is_code_2(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], [run, run], [run, "--out", "page.txt"], [run, "--nonsense"]):
        code, _, err = call(capsys, monkeypatch, *arguments)
        assert code == 2
        assert err.startswith("wv-report: ")
        assert err.count("\n") == 1


def test_moved_shards_are_found_with_the_option(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", shards)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"shards": "gone/away"}))
    code, _, err = call(capsys, monkeypatch, run)
    assert (code, "--shards" in err) == (1, True)
    assert call(capsys, monkeypatch, run, "--shards", shards)[0] == 0


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
    Overlay(kind="ledger", array=make_ledger(150), manifest_digest="0" * 32).save(run / "ledger")
    return [run]


def _short_ledger(run: Path, tmp: Path) -> list[object]:
    digest = json.loads((run / "run.json").read_text())["manifest_digest"]
    Overlay(kind="ledger", array=make_ledger(149), manifest_digest=digest).save(run / "ledger")
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
        (_no_numbers, "expected whole numbers"),
        (_other_paths, "names none of the 150 samples"),
        (_out_is_a_folder, "cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_code_1(
    spoil: Spoil,
    said: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, out, err = call(capsys, monkeypatch, *spoil(run, tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith("wv-report: ")
    assert err.count("\n") == 1
    assert re.search(said, err), err


def test_a_run_on_other_shards_is_refused(run: Path, small_dataset: Path) -> None:
    with pytest.raises(ReportError, match=r"trained on data set [0-9a-f]{12}…, .* holds [0-9a-f]{12}…"):
        write_report([run], run / "report.html", shards=small_dataset)


def test_a_run_is_reported_on_what_it_saw_when_the_data_set_has_grown_since(
    run: Path, shards: Path, tmp_path: Path
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


def test_a_truth_with_other_labels_is_refused(run: Path, shards: Path, tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.csv", shards, set())
    truth.write_text(re.sub(r",\d+,\d+,clean", ",77,77,clean", truth.read_text()))
    with pytest.raises(ReportError, match="the label 77, the shards"):
        write_report([run], run / "report.html", truth_path=truth)


# Charts


def corners(svg: str) -> list[tuple[float, float]]:
    points = re.search(r'<polyline[^>]*points="([^"]+)"', svg)
    assert points
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points[1].split())]


def test_a_line_spans_the_plot_and_higher_values_stand_higher() -> None:
    x = np.array([0.0, 50.0, 100.0])
    svg = line_chart("t", [Line(label="l", colour=0, x=x, y=np.array([1.0, 3.0, 2.0]))])
    (x0, y0), (x1, y1), (x2, y2) = corners(svg)
    assert (x0, x1, x2) == (50.0, 299.0, 548.0)
    assert y0 > y2 > y1
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_a_log_axis_spaces_decades_evenly_and_names_them() -> None:
    line = Line(label="l", colour=0, x=np.arange(3.0), y=np.array([0.001, 0.01, 0.1]))
    svg = line_chart("t", [line], log_y=True)
    ys = [y for _, y in corners(svg)]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert {">0.001<", ">0.01<", ">0.1<"} <= set(re.findall(r">[\d.]+<", svg))


def test_long_lines_are_averaged_and_gaps_left_out() -> None:
    y = np.where(np.arange(10_000) % 2, 1.0, 3.0)
    line = Line(label="l", colour=0, x=np.arange(10_000.0), y=y)
    assert len(corners(line_chart("t", [line]))) == MAX_POINTS
    assert all(
        value == pytest.approx(2.0, abs=0.2)
        for value in json.loads(html.unescape(line_chart("t", [line]).split('data-chart="')[1].split('"')[0]))["lines"][
            0
        ]["y"]
    )
    gaps = Line(label="l", colour=0, x=np.arange(4.0), y=np.array([1.0, np.nan, np.inf, 2.0]))
    assert len(corners(line_chart("t", [gaps]))) == 2
    assert line_chart("t", [Line(label="l", colour=0, x=np.arange(1.0), y=np.array([np.nan]))]) == ""


def test_a_single_point_and_equal_values_have_a_chart() -> None:
    strip = Strip(colour=0, spans=(("base", 5.0, 5.0),))
    for values in ([2.0], [0.0]):
        assert "nan" not in line_chart(
            "t", [Line(label="l", colour=0, x=np.array([5.0]), y=np.array(values))], strips=[strip]
        )


def test_many_classes_are_one_outline_and_few_are_bars() -> None:
    for classes, bars in ((16, 16), (5000, 0)):
        counts = np.arange(classes, dtype=float)  # one class is empty
        svg = class_chart("t", [f"c{c}" for c in range(classes)], counts, [("shown", np.full(classes, 7.0))])
        assert svg.count("<g><title>") == bars
        assert ("<polygon" in svg) == (bars == 0)
        assert "nan" not in svg
        assert len(svg) < 400_000


def test_histogram_bars_stack_to_the_sum() -> None:
    svg = histogram("t", "x", [("right", np.array([2, 0])), ("wrong", np.array([1, 4]))])
    heights = [float(h) for h in re.findall(r'class="bar c\d" x="[^"]+" y="[^"]+" width="[^"]+" height="([^"]+)"', svg)]
    assert len(heights) == 3
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert heights[2] == pytest.approx(4 * heights[1], abs=0.3)
