"""Real images with real noise in, a gated model with its evaluation out, by the commands a user types.

The README's commands, of which test_docs.py holds what they leave, are the same way for drawn WebVision.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


@pytest.mark.slow
def test_real_images_with_human_label_noise_train_and_evaluate(
    test_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    our_commands: dict[str, Callable[[Sequence[str]], int]],
) -> None:
    def run(*words: object) -> None:
        assert our_commands[str(words[0])]([str(word) for word in words]) == 0, words

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
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
    run("wv-ingest", "build-shards", "train/list.csv", "shards/train", "--size", "0")
    val = ["--split", "val", "--classes-from", "shards/train"]
    run("wv-ingest", "build-shards", "test/list.csv", "shards/val", "--size", "0", *val)
    run("wv-ingest", "verify", "shards/train")
    training = ["--shards", "shards/train", "--val", "shards/val", "--recipe", "cifar10n", "--out", "run"]
    training += [word for phase in ("base", "gated") for word in ("--set", f"phases.{phase}.epochs=2")]
    run("wv-train", *training, "--set", "batch_size=32", "--set", "phases.base.warmup_steps=5")
    run("wv-eval", "--run", "run", "--shards", "shards/val")
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["samples"] == 300
    assert result["top1"] > 0.18  # chance is 0.1: something was learned
    kept = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    fractions = [row["kept_fraction"] for row in kept if row["kind"] == "train" and row["phase"] == "gated"]
    assert all(0 < fraction <= 1 for fraction in fractions)
    assert min(fractions) < 1  # the gate held something back
