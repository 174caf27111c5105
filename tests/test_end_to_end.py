"""Raw images in, a gated model with its evaluation and report out, by the commands a user types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wv_shards import Dataset, Overlay

BIN = Path(sys.executable).parent
SHORT = ["base", "gated", "finetune"]


def run(*words: object, cwd: Path) -> str:
    """Run a command that must succeed; its standard output."""
    program, *arguments = map(str, words)
    done = subprocess.run(
        [BIN / program, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def short(epochs: int) -> list[str]:
    return [word for phase in SHORT for word in ("--set", f"phases.{phase}.epochs={epochs}")]


@pytest.mark.slow
def test_a_webvision_directory_becomes_a_gated_model_and_a_report(tmp_path: Path) -> None:
    options = ["--classes", "6", "--images", "400", "--largest-class", "150", "--smallest-class", "20"]
    run("wv-ingest", "sample-data", "raw", *options, "--val-per-class", "8", cwd=tmp_path)
    run("wv-ingest", "build-shards", "raw", "train", "--size", "48", cwd=tmp_path)
    run(
        "wv-ingest",
        "build-shards",
        "raw",
        "val",
        "--size",
        "48",
        "--split",
        "val",
        "--classes-from",
        "train",
        cwd=tmp_path,
    )
    run("wv-ingest", "verify", "train", cwd=tmp_path)
    training = ["--shards", "train", "--val", "val", "--recipe", "demo", "--out", "run", *short(1)]
    run("wv-train", *training, cwd=tmp_path)
    run("wv-eval", "--run", "run", "--shards", "val", cwd=tmp_path)
    run("wv-report", "run", "--truth", "raw/truth.csv", cwd=tmp_path)

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    phases = [row["phase"] for row in rows if row["kind"] == "phase" and row["event"] == "end"]
    assert phases == SHORT
    assert all(np.isfinite(row["loss"]) for row in rows if row["kind"] == "train")
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["samples"] == 48
    assert result["top1"] == pytest.approx(sum(c["top1"] * c["samples"] for c in result["per_class"]) / 48)
    with Dataset.open(tmp_path / "train") as dataset:
        ledger = Overlay.load(tmp_path / "run" / "ledger", manifest_digest=dataset.manifest.digest, kind="ledger").array
        labels = dataset.index["label"]
    assert ledger["seen"].sum() == max(row["samples"] for row in rows if row["kind"] == "train")
    assert (ledger["seen"] > 0).mean() > 0.9
    assert ((ledger["prediction"] >= -1) & (ledger["prediction"] < 6)).all()
    page = (tmp_path / "run" / "report.html").read_text()
    judged = json.loads((tmp_path / "run" / "report.json").read_text())["runs"][0]
    assert 0 < judged["base_rate"] < 1
    assert "data:image/jpeg;base64," in page
    assert len(labels) == judged["samples"]


@pytest.mark.slow
def test_real_images_with_human_label_noise_train_and_evaluate(test_data: Path, tmp_path: Path) -> None:
    for split, npz, limit in (("train", "cifar10n_train.npz", 1200), ("test", "cifar10n_test.npz", 300)):
        export = [
            sys.executable,
            test_data / "export_cifar10n.py",
            test_data / npz,
            tmp_path / split,
            "--limit",
            str(limit),
        ]
        subprocess.run(export, check=True, timeout=60)
    run("wv-ingest", "build-shards", "train/list.csv", "shards/train", "--size", "0", cwd=tmp_path)
    val = ["--split", "val", "--classes-from", "shards/train"]
    run("wv-ingest", "build-shards", "test/list.csv", "shards/val", "--size", "0", *val, cwd=tmp_path)
    run("wv-ingest", "verify", "shards/train", cwd=tmp_path)
    training = ["--shards", "shards/train", "--val", "shards/val", "--recipe", "cifar10n", "--out", "run", *short(3)]
    run("wv-train", *training, "--set", "batch_size=32", "--set", "phases.base.warmup_steps=5", cwd=tmp_path)
    run("wv-eval", "--run", "run", "--shards", "shards/val", cwd=tmp_path)
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["samples"] == 300
    assert result["top1"] > 0.18  # chance is 0.1: something was learned
    kept = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    fractions = [row["kept_fraction"] for row in kept if row["kind"] == "train" and row["phase"] == "gated"]
    assert all(0 < fraction <= 1 for fraction in fractions)
    assert min(fractions) < 1  # the gate held something back
