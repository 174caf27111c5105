"""The sample data: WebVision 1.0's layout, and a truth that agrees with what lies on the disk."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from wv_ingest.cli_sample_data import sample_data_command
from wv_ingest.sample_data import (
    KINDS,
    SampleDataError,
    SampleDataOptions,
    SampleDataSummary,
    write_sample_data,
)
from wv_ingest.sample_drawing import MAX_CLASSES, class_look, draw_object

SMALL = SampleDataOptions(classes=5, images=300, largest_class=150, smallest_class=10, val_per_class=3, seed=7)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> SampleDataSummary:
    return write_sample_data(tmp_path_factory.mktemp("sample") / "raw", SampleDataOptions())


def read_truth(directory: Path) -> list[dict[str, str]]:
    with (directory / "truth.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_list(directory: Path, name: str) -> list[tuple[str, int]]:
    lines = (directory / "info" / name).read_text().splitlines()
    return [(path, int(label)) for path, label in (line.split(" ") for line in lines)]


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_truth_lists_and_files_name_the_same_rows(default: SampleDataSummary) -> None:
    root = default.directory
    truth = {row["path"]: int(row["label"]) for row in read_truth(root)}
    flickr, google = read_list(root, "train_filelist_flickr.txt"), read_list(root, "train_filelist_google.txt")
    assert read_list(root, "train_filelist_all.txt") == flickr + google
    assert all(path.startswith("flickr/q") for path, _ in flickr)
    assert all(path.startswith("google/q") for path, _ in google)
    assert len(flickr + google) == len(truth) == default.train_images
    assert dict(flickr + google) == truth
    on_disk = {
        str(path.relative_to(root)) for source in ("flickr", "google") for path in (root / source).rglob("*.jpg")
    }
    assert on_disk == set(truth)
    assert Counter(row["kind"] for row in read_truth(root)) == {k: n for k, n in default.kinds.items() if n}


def test_validation_images_are_even_over_classes_and_sound(default: SampleDataSummary) -> None:
    rows = read_list(default.directory, "val_filelist.txt")
    assert Counter(label for _, label in rows) == dict.fromkeys(range(16), 25)
    names = [name for name, _ in rows]
    assert names == [f"val{number:06d}.jpg" for number in range(1, 401)]
    assert sorted(path.name for path in (default.directory / "val_images_256").iterdir()) == names
    for name in names:
        Image.open(default.directory / "val_images_256" / name).load()
    assert [label for _, label in rows] != sorted(label for _, label in rows)


def test_classes_are_skewed_from_a_thousand_to_ten(default: SampleDataSummary) -> None:
    labels = Counter(int(row["label"]) for row in read_truth(default.directory))
    assert tuple(labels[label] for label in range(16)) == default.class_rows
    assert (min(default.class_rows), max(default.class_rows)) == (10, 1000)
    assert abs(default.train_images - 3000) <= 16
    assert len(set(default.class_rows)) > 12


def test_labels_are_wrong_in_both_ways_of_the_web_in_every_class(default: SampleDataSummary) -> None:
    rows = read_truth(default.directory)
    for row in rows:
        label, true_label = int(row["label"]), int(row["true_label"])
        assert row["kind"] in KINDS
        assert {"clean": label == true_label, "swapped": true_label not in (label, -1)}.get(row["kind"], True), row
        assert (true_label == -1) == (row["kind"] in ("outlier", "broken")), row
    assert 0.25 <= default.noise_fraction <= 0.40
    assert default.kinds["swapped"] > default.kinds["outlier"] > 0.08 * default.train_images
    for label, size in enumerate(default.class_rows):
        wrong = sum(row["kind"] in ("swapped", "outlier") for row in rows if int(row["label"]) == label)
        assert abs(wrong - 0.35 * size) <= 1


def test_swapped_labels_favour_lookalikes(default: SampleDataSummary) -> None:
    pairs = [(int(r["label"]), int(r["true_label"])) for r in read_truth(default.directory) if r["kind"] == "swapped"]
    lookalike = sum((true - label) % 16 in (1, 2) for label, true in pairs)
    assert 0.4 < lookalike / len(pairs) < 0.75


def test_broken_files_do_not_decode_and_all_others_do(default: SampleDataSummary) -> None:
    for row in read_truth(default.directory):
        path = default.directory / row["path"]
        if row["kind"] == "broken":
            with pytest.raises(OSError, match=r"truncated|cannot identify"):
                Image.open(io.BytesIO(path.read_bytes())).load()
        else:
            with Image.open(path) as image:
                image.load()
                assert min(image.size) >= 58, "64 pixels, or a near copy without up to 6 of them"
                assert max(image.size) <= 96


def test_files_come_in_the_webs_odd_encodings(default: SampleDataSummary) -> None:
    found: Counter[str] = Counter()
    for row in read_truth(default.directory):
        if row["kind"] != "broken":
            with Image.open(default.directory / row["path"]) as image:
                turned = image.getexif().get(0x0112, 1) != 1
                found[f"{image.format} {image.mode}{' turned' if turned else ''}"] += 1
                if turned:
                    assert ImageOps.exif_transpose(image).size == image.size[::-1]
    assert set(found) == {"JPEG RGB", "JPEG RGB turned", "JPEG L", "JPEG CMYK", "PNG RGB"}
    assert 20 < found.total() - found["JPEG RGB"] < 100


def test_duplicates_are_equal_bytes_and_nothing_else_is(default: SampleDataSummary) -> None:
    root, rows = default.directory, read_truth(default.directory)
    holders: dict[bytes, list[dict[str, str]]] = {}
    for row in rows:
        if row["kind"] != "broken":
            holders.setdefault((root / row["path"]).read_bytes(), []).append(row)
    groups = [group for group in holders.values() if len(group) > 1]
    assert sum(len(group) - 1 for group in groups) == default.kinds["duplicate"] > 20
    for group in groups:
        assert sorted(row["kind"] for row in group) == ["clean"] + ["duplicate"] * (len(group) - 1)
        assert len({row["true_label"] for row in group}) == 1
    names = Counter(row["path"].split("/")[2] for row in rows)
    assert max(names.values()) > 1, "one file found by two queries keeps its name"


def test_near_duplicates_look_like_a_clean_image_of_their_true_class(default: SampleDataSummary) -> None:
    def small(row: dict[str, str]) -> np.ndarray:
        image = Image.open(default.directory / row["path"]).convert("L").resize((12, 12))
        return np.asarray(image, dtype=np.float64)

    rows = read_truth(default.directory)
    clean: dict[str, list[np.ndarray]] = {}
    for row in rows:
        if row["kind"] == "clean":
            clean.setdefault(row["true_label"], []).append(small(row))
    near = [row for row in rows if row["kind"] == "near_duplicate"]
    distances = [min(np.abs(small(row) - other).mean() for other in clean[row["true_label"]]) for row in near]
    assert np.median(distances) < 6
    assert len(near) > 20


def test_names_are_those_of_google_and_flickr(default: SampleDataSummary) -> None:
    for row in read_truth(default.directory):
        source, _, name = row["path"].removesuffix(".jpg").split("/")
        if source == "flickr":
            assert name.isdecimal()
        else:
            assert len(name) == 14
            assert name[-1] == "M"
    assert any("/-" in row["path"] for row in read_truth(default.directory))


def test_queries_and_synsets_agree_with_the_lists(default: SampleDataSummary) -> None:
    info = default.directory / "info"
    synsets = (info / "synsets.txt").read_text().splitlines()
    assert len(synsets) == len({line.split(" ")[0] for line in synsets}) == 16
    assert all(len(line.split(" ")[0]) == 9 and ", " in line for line in synsets)
    pairs = [line.split(" ") for line in (info / "queries_synsets_map.txt").read_text().splitlines()]
    synset_of = {int(query): int(synset) for query, synset in pairs}
    assert set(synset_of.values()) == set(range(1, 17))
    assert len(synset_of) > 16, "a few queries per class"
    for path, label in read_list(default.directory, "train_filelist_all.txt"):
        assert synset_of[int(path.split("/")[1].removeprefix("q"))] == label + 1


def test_same_seed_and_options_same_bytes_other_seed_others(tmp_path: Path) -> None:
    write_sample_data(tmp_path / "a", SMALL)
    write_sample_data(tmp_path / "b", SMALL)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    write_sample_data(
        tmp_path / "b", SampleDataOptions(classes=3, images=60, largest_class=40, smallest_class=8, seed=8)
    )
    assert not set(first.values()) & {d for name, d in digests(tmp_path / "b").items() if name.endswith(".jpg")}
    write_sample_data(tmp_path / "b", SMALL)
    assert first == digests(tmp_path / "b"), "an earlier data set is replaced, none of it stays"


def test_progress_counts_every_image(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    summary = write_sample_data(tmp_path, SMALL, lambda done, total: calls.append((done, total)))
    images = summary.train_images + summary.val_images
    assert calls == [(done, images) for done in range(1, images + 1)]


def test_every_class_has_a_look_of_its_own() -> None:
    looks = [class_look(class_id)[:2] for class_id in range(MAX_CLASSES)]
    assert len(set(looks)) == MAX_CLASSES
    pictures = {draw_object(np.random.default_rng(3), class_id, 64, 64).tobytes() for class_id in range(MAX_CLASSES)}
    assert len(pictures) == MAX_CLASSES


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1},
        {"classes": MAX_CLASSES + 1},
        {"images": 1149},
        {"images": 15011},
        {"smallest_class": 2000},
        {"val_per_class": 0},
        {"noise_fraction": 0.95},
        {"shortest_px": 8},
        {"seed": -1},
    ],
)
def test_impossible_options_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"expected|hold"):
        SampleDataOptions(**change)


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SampleDataError, match=r'expected an empty directory .*found "thesis.txt"'):
        write_sample_data(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    raw = tmp_path / "raw"
    write_sample_data(raw, SMALL)
    (raw / "notes.txt").write_text("mine")
    before = digests(raw)
    with pytest.raises(SampleDataError, match=r"notes\.txt"):
        write_sample_data(raw, SMALL)
    assert digests(raw) == before


def test_command_reports_what_it_wrote_and_refuses_in_one_line(tmp_path: Path) -> None:
    runner = CliRunner()
    small = ["--classes", "3", "--images", "60", "--largest-class", "40", "--smallest-class", "8"]
    done = runner.invoke(sample_data_command, [str(tmp_path / "raw"), *small])
    assert done.exit_code == 0, done.output
    assert "3 classes of 8 to 40" in done.output
    assert len(read_truth(tmp_path / "raw")) == pytest.approx(60, abs=3)
    wrong = runner.invoke(sample_data_command, [str(tmp_path / "raw"), "--classes", "1"])
    assert wrong.exit_code == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    for place in ("other", "other/x", "other/x/deeper"):
        refused = runner.invoke(sample_data_command, [str(tmp_path / place), *small])
        assert refused.exit_code == 1
        assert refused.stderr.startswith("Error: ")
        assert refused.stderr.count("\n") == 1
