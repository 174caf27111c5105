"""The report's page: one safe file, whatever the names; what it shows of the classes and of a run half done."""

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wv_shards import SAMPLES_FILE, Dataset
from wv_train.report import GALLERY_IMAGES, write_report

CLASSES = range(4)


def test_gallery_shows_the_least_believed_images_with_label_and_prediction(
    run: Path, shards: Path, read_page: Callable[[Path], Any]
) -> None:
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


def test_truth_marks_each_image_of_the_gallery(
    run: Path, shards: Path, tmp_path: Path, write_truth: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
    truth = write_truth(tmp_path / "truth.csv", shards, {3, 4, 9})
    write_report([run], run / "report.html", truth_path=truth)
    badges = [
        value for _, name, value in read_page(run / "report.html").attributes if name == "class" and "badge" in value
    ]
    assert badges == ["badge wrong"] * 2 + ["badge right"] * 4 + ["badge wrong"] + ["badge right"] * (
        GALLERY_IMAGES - 7
    )


def test_page_is_one_file_that_loads_nothing(
    run: Path, shards: Path, tmp_path: Path, write_truth: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
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


def test_hostile_names_stay_text(
    tmp_path: Path, shards: Path, make_run: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
    evil = """</script><script>alert(1)</script><img src=x onerror="alert('2')">"""
    hostile = tmp_path / "hostile"
    shutil.copytree(shards, hostile)
    table = pq.read_table(hostile / SAMPLES_FILE)
    for column in ("key", "path"):
        column_values = pa.array([f"{evil}{i}" for i in range(table.num_rows)])
        table = table.set_column(table.schema.get_field_index(column), column, column_values)
    pq.write_table(table, hostile / SAMPLES_FILE)
    names = [f"{evil} {c}" for c in CLASSES]
    exposures = {evil: [1.0] * len(CLASSES)}
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


def test_classes_show_counts_and_exposures(run: Path, read_page: Callable[[Path], Any]) -> None:
    write_report([run], run / "report.html")
    tips = [text for text in read_page(run / "report.html").text if "images; shown an epoch" in text]
    assert len(tips) == len(CLASSES)
    assert tips[0] == "n00000000 thing 0, Res 0: 90 images; shown an epoch: base 90.0; shown an epoch: gated 37.5"
    assert "6 images; shown an epoch: base 6.0; shown an epoch: gated 37.5" in tips[-1]


def test_evaluation_lists_bands_and_classes(run: Path, read_page: Callable[[Path], Any]) -> None:
    write_report([run], run / "report.html")
    text = read_page(run / "report.html").text
    assert {"12: 64 to 90 images", "62.5%", "thing 2", "40.0%", "thing without images"} <= set(text)


def test_several_runs_stand_side_by_side(
    tmp_path: Path, shards: Path, make_run: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
    runs = [make_run(tmp_path / "a" / "run", shards, top1=0.7), make_run(tmp_path / "b" / "run", shards, top1=0.8)]
    write_report(runs, tmp_path / "both.html")
    page = read_page(tmp_path / "both.html")
    assert {"a/run", "b/run", "70.0%", "80.0%", "2 runs compared"} <= set(page.text)
    assert "<td>top-1, wv-eval</td><td>70.0%</td><td class=best>80.0%</td>" in (tmp_path / "both.html").read_text()
    labels = {line["label"] for _, n, v in page.attributes if n == "data-chart" for line in json.loads(v)["lines"]}
    assert {"a/run, training", "b/run, training", "b/run, kept"} <= labels


def test_a_run_that_has_only_begun_has_a_page(
    tmp_path: Path, shards: Path, make_run: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
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


def test_a_damaged_image_costs_its_picture_only(
    tmp_path: Path, shards: Path, make_run: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
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
