"""Counts, raw and packed, per class, band and source: recounted from the source's lists and from the tars."""

import json
import shutil
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from wv_ingest.build import BuildResult
from wv_ingest.cli import main
from wv_ingest.counts import class_figures, stats_document
from wv_shards import Dataset, Overlay, OverlayMismatchError, band_of

Build = Callable[..., BuildResult]


@pytest.fixture(scope="module")
def tree(webvision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn tree with more glitches: a class of broken files, missing and repeated rows, rows of no source."""
    root = shutil.copytree(webvision, tmp_path_factory.mktemp("counts") / "raw")
    image = (root / "google" / "q0001" / "img0000.jpg").read_bytes()
    (root / "loose.jpg").write_bytes(image)
    (root / "flickr" / "q0007").mkdir()
    lines = ["google/q0001/gone.jpg 1", "google/q0001/img0000.jpg 0", "google/q0001/img0002.jpg 4"]
    with open(root / "info" / "train_filelist_google.txt", "a") as file:
        file.write("".join(f"{line}\n" for line in [*lines, "loose.jpg 1", "lost.jpg 4"]))
    with open(root / "info" / "train_filelist_flickr.txt", "a") as file:
        for i in range(3):
            (root / "flickr" / "q0007" / f"{i}.jpg").write_bytes(b"no image")
            file.write(f"flickr/q0007/{i}.jpg 6\n")
    with open(root / "info" / "synsets.txt", "a") as file:
        file.write("n00010006 nothing that decodes\nn00010007 no rows at all\n")
    return root


def raw_counts(root: Path) -> Counter[tuple[int, str]]:
    """(class, source) → rows, from the lists alone."""
    counts: Counter[tuple[int, str]] = Counter()
    for file in sorted((root / "info").glob("train_filelist_*.txt")):
        for line in file.read_text().splitlines():
            path, label = line.rsplit(" ", 1)
            counts[int(label), path.split("/")[0] if path.count("/") >= 2 else ""] += 1
    return counts


def packed_counts(shards: Path) -> Counter[tuple[int, str]]:
    """(class, source) → samples, from the tars' members alone."""
    labels, origins = {}, {}
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                if kind == "cls":
                    labels[key] = int(tar.extractfile(member).read())  # type: ignore[union-attr] # a file
                elif kind == "json":
                    origins[key] = json.load(tar.extractfile(member)).get("source", "")  # type: ignore[arg-type]
    assert labels.keys() == origins.keys()
    return Counter((labels[key], origins[key]) for key in labels)


def stats_of(shards: Path) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["stats", str(shards), "--json"], catch_exceptions=False)
    document: dict[str, Any] = json.loads(done.output)
    return document


def test_counts_are_those_of_the_lists_and_of_the_tars(tree: Path, tmp_path: Path, build_small: Build) -> None:
    build_small(tree, tmp_path / "out")
    raw, packed = raw_counts(tree), packed_counts(tmp_path / "out")
    stats = stats_of(tmp_path / "out")
    names = ["flickr", "google", ""]
    assert list(stats["sources"]) == names
    assert [c["class_id"] for c in stats["classes"]] == list(range(8))
    for c in stats["classes"]:
        own = {name: (raw[c["class_id"], name], packed[c["class_id"], name]) for name in names}
        assert {name: (n["rows"], n["samples"]) for name, n in c["sources"].items()} == own
        assert (c["rows"], c["samples"]) == tuple(map(sum, zip(*own.values(), strict=True)))
    assert [(c["rows"], c["samples"]) for c in stats["classes"]][3::3] == [(0, 0), (3, 0)]  # no rows; nothing readable
    assert stats["classes"][7]["sources"] == {name: {"rows": 0, "samples": 0} for name in names}
    for name, origin in stats["sources"].items():
        assert origin["rows"] == sum(n for (_, source), n in raw.items() if source == name)
        assert origin["samples"] == sum(n for (_, source), n in packed.items() if source == name)
        assert origin["rows"] - origin["samples"] == sum(origin["rejects"].values())
    assert sum((Counter(origin["rejects"]) for origin in stats["sources"].values()), Counter()) == stats["rejects"]
    assert stats["rows"] == raw.total()
    assert stats["samples"] == packed.total()


def test_counts_of_bands_are_those_of_their_classes(tree: Path, tmp_path: Path, build_small: Build) -> None:
    build_small(tree, tmp_path / "out")
    raw, packed = raw_counts(tree), packed_counts(tmp_path / "out")
    rows: Counter[int] = Counter()
    for (label, _), n in raw.items():
        rows[label] += n
    expected: dict[int | None, list[int]] = defaultdict(lambda: [0, 0, 0])
    for label in range(8):
        mine = (1, rows[label], sum(n for (own, _), n in packed.items() if own == label))
        band = expected[band_of(rows[label])]
        band[:] = [before + more for before, more in zip(band, mine, strict=True)]
    stats = stats_of(tmp_path / "out")
    assert {b["band"]: [b["classes"], b["rows"], b["samples"]] for b in stats["bands"]} == expected
    assert stats["bands"][-1]["band"] is None  # the two classes without rows
    assert expected[None] == [2, 0, 0]
    shards = Counter(int(path.name[1:3]) for path in (tmp_path / "out").glob("*.tar"))
    assert {b["band"]: b["shards"] for b in stats["bands"] if b["shards"]} == shards


def test_rows_that_were_not_asked_for_count_nowhere(tree: Path, tmp_path: Path, build_small: Build) -> None:
    build_small(tree, tmp_path / "out", only="google", class_ids=(0, 1, 3, 6), max_reject_fraction=1.0)
    raw, packed = raw_counts(tree), packed_counts(tmp_path / "out")
    stats = stats_of(tmp_path / "out")
    assert list(stats["sources"]) == ["google"]
    assert [c["original_id"] for c in stats["classes"]] == [0, 1, 3, 6]
    for c in stats["classes"]:
        assert c["rows"] == c["sources"]["google"]["rows"] == raw[c["original_id"], "google"]
        assert c["samples"] == c["sources"]["google"]["samples"] == packed[c["class_id"], "google"]
    asked_for = sum(raw[label, "google"] for label in (0, 1, 3, 6))
    assert stats["rejects"]["filtered"] == raw.total() - asked_for
    assert "filtered" not in stats["sources"]["google"]["rejects"]


def test_excluded_samples_are_counted_by_class_and_band(draw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    shards = draw_dataset(tmp_path / "shards", [40, 20, 0, 3])
    with Dataset.open(shards) as dataset:
        array = np.zeros(63, dtype=bool)
        array[::5] = True
        Overlay(kind="exclude", array=array, manifest_digest=dataset.manifest.digest).save(shards / "exclude")
        stats = stats_document(dataset)
        per_class = np.bincount(dataset.index["label"][array], minlength=4).tolist()
    assert [c["excluded"] for c in stats["classes"]] == per_class
    assert stats["excluded"] == sum(b["excluded"] for b in stats["bands"]) == 13
    assert stats["sources"] == {}
    assert "of these excluded by overlay" in CliRunner().invoke(main, ["stats", str(shards)]).output
    other = Overlay(kind="exclude", array=array, manifest_digest="0" * 32)
    other.save(shards / "exclude")
    with Dataset.open(shards) as dataset, pytest.raises(OverlayMismatchError):
        stats_document(dataset)


def test_figures_of_classes_without_images() -> None:
    nothing = {"classes": 2, "without": 2, "min": 0, "median": 0.0, "max": 0, "imbalance": None}
    assert class_figures([0, 0]) == nothing
    some = {"classes": 4, "without": 1, "min": 2, "median": 3.0, "max": 10, "imbalance": 5.0}
    assert class_figures([10, 0, 2, 3]) == some
