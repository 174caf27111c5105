"""Fixtures of the report's tests: runs written by hand as the trainer and wv-eval write them, and a page's parts."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wv_shards import Dataset, Manifest, Overlay
from wv_train import cli_report
from wv_train.ledger import LEDGER_DTYPE

CLASS_SIZES = [90, 40, 14, 6]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, draw_dataset: Callable[..., Path]) -> Path:
    """150 samples in four classes."""
    return draw_dataset(tmp_path_factory.mktemp("report") / "shards", CLASS_SIZES)


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    return _make_run(tmp_path / "gated", shards)


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    return _make_run


@pytest.fixture(scope="session")
def make_ledger() -> Callable[[int], np.ndarray]:
    return _make_ledger


@pytest.fixture(scope="session")
def write_truth() -> Callable[..., Path]:
    return _write_truth


@pytest.fixture(scope="session")
def read_page() -> Callable[[Path], "Page"]:
    return lambda path: Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run wv-report as its entry point does: exit code, stdout, stderr."""

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["wv-report", *map(str, arguments)])
        code = 0
        try:
            cli_report.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return called


def _make_run(path: Path, shards: Path, *, top1: float = 0.75, **info: object) -> Path:
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
        "recipe": {
            "model": "wv_resnet_16_32_64",
            "phases": [{"name": "base", "lr": 0.05}, {"name": "gated", "gate": {"start": 0.25, "end": 0.1}}],
        },
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
    ledger = _make_ledger(manifest.samples)
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


def _make_ledger(samples: int) -> np.ndarray:
    """Sample i has the confidence i / samples; the first three were never seen."""
    ledger = np.zeros(samples, dtype=LEDGER_DTYPE)
    ledger["seen"], ledger["seen"][:3] = 7, 0
    ledger["label_conf_mean"] = np.arange(samples) / samples
    ledger["prediction"] = np.where(ledger["seen"] > 0, 1, -1)
    return ledger


def _write_truth(path: Path, shards: Path, wrong: set[int]) -> Path:
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


@pytest.fixture
def modern(tmp_path: Path, shards: Path) -> Path:
    """A run with every field that the trainer, wv-eval and the ledger have learned to write since."""
    path = _make_run(tmp_path / "modern", shards)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "train":
            row |= {"images_per_s_without_wait": 1.25 * row["images_per_s"], "grad_norm": 2.0, "nonfinite_steps": 0}
            row |= {"guarded_steps": 0, "two_pass_steps": 0}
        if row["kind"] == "train" and row["phase"] == "gated":
            row |= {"kept_precision": 0.9, "shown_precision": 0.7, "guarded_steps": 1, "two_pass_steps": 5}
            row["kept_by_band"] = [[None, 0, 0], [5, 20, 4], [12, 80, 60]]
        if row["kind"] == "val":
            row |= {"ema_top1": row["top1"] + 0.05, "ema_loss": row["loss"] - 0.1}
    for step, kept in ((50, "3.5%"), (60, "4%"), (70, "2%")):
        rows.append({"kind": "guard", "step": step, "phase": "gated", "text": f"kept {kept}: threshold lowered"})
    rows.append({"kind": "warning", "step": 80, "phase": "gated", "text": "something else"})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = json.loads((path / "eval.json").read_text())
    group = {"classes": 2, "samples": 10}
    evaluation["count_groups"] = [
        {"name": "many", "rule": "more than 50", **group, "top1": 0.9, "mean_class_top1": 0.875},
        {"name": "few", "rule": "fewer than 10", **group, "top1": None, "mean_class_top1": None},
    ]
    empty = {"low": 0.0, "high": 0.5, "samples": 0, "confidence": None, "top1": None}
    full = {"low": 0.5, "high": 1.0, "samples": 15, "confidence": 0.8, "top1": 0.6}
    evaluation |= {"calibration": [empty, full], "expected_calibration_error": 0.2, "step": 100, "weights": "ema"}
    pair = {"label": 0, "label_name": "n00000000 a thing", "prediction": 1, "prediction_name": "n00000001 a ruse"}
    evaluation["most_confused"] = [{**pair, "samples": 3, "label_fraction": 0.6}]
    crops = {"positions": [{}] * 5, "top1_mean": 0.74, "top1_std": 0.012, "averaged": {"top1": 0.78}}
    evaluation |= {"crops": crops, "shards": "val"}
    (path / "eval.json").write_text(json.dumps(evaluation))
    return path
