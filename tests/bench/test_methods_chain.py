"""`wv-bench methods` with everything that it starts: sets, trainings, overlays, judgements, tables; and once only."""

import json
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from wv_bench import cli, methods_run
from wv_bench.stage_process import Cost
from wv_shards import Manifest, Overlay

CLASSES, IMAGES, TEST_IMAGES = 10, 240, 40
WORDS = ("--sets", "worse", "--regimes", "memorise", "--methods", "without_suspects", "--seeds", "0", "--jobs", "1")
SHORT = ("--images", "200", "--epochs", "3", "--size-px", "16")


def write_npz(file: Path, draw_jpeg: Callable[..., bytes], images: int, wrong: int, first_seed: int) -> None:
    """As CIFAR-10N's files are: the first `wrong` images have other labels than their true ones."""
    pictures = [draw_jpeg(first_seed + at) for at in range(images)]
    clean = (np.arange(images) % CLASSES).astype(np.uint8)
    worse = np.where(np.arange(images) < wrong, (clean + 1) % CLASSES, clean).astype(np.uint8)
    offsets = np.cumsum([0, *map(len, pictures)])
    jpeg = np.frombuffer(b"".join(pictures), dtype=np.uint8)
    np.savez(file, jpeg=jpeg, offsets=offsets, clean=clean, worse=worse, random1=worse)


def test_a_chain_trains_annotates_excludes_judges_and_is_made_once(
    tmp_path: Path,
    draw_jpeg: Callable[..., bytes],
    start_ranks: Callable[..., list[BaseProcess]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    def stage(done: Path, log: Path, module: str, words: Sequence[str], **_: Any) -> Cost:
        """`run_stage` with a process that has imported torch already."""
        started.append(module)
        code = f"import runpy\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        (process,) = start_ranks(1, code, *words, stderr=log)
        process.join(120)
        assert process.exitcode == 0, log.read_text()
        return Cost(wall_s=1.0, cpu_s=1.0)

    monkeypatch.setattr(methods_run, "run_stage", stage)
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    write_npz(data / "cifar10n_train.npz", draw_jpeg, IMAGES, IMAGES // 4, 0)
    write_npz(data / "cifar10n_test.npz", draw_jpeg, TEST_IMAGES, 0, 10_000)
    command = ["methods", str(out), "--data", str(data), *WORDS, *SHORT]
    done = CliRunner().invoke(cli.main, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert started.count("wv_train") == started.count("wv_bench.methods_judge") == 2
    assert started.count("wv_train.annotate.cli") == 2
    (folder,) = out.glob("runs/worse/memorise/without_suspects/*")
    digest = Manifest.load(out / "data" / "worse-200" / "train").digest
    excluded = Overlay.load(folder / "overlays" / "worst", manifest_digest=digest).array.astype(bool)
    ledger = Overlay.load(folder / "train" / "ledger", manifest_digest=digest).array
    assert 0.1 * 200 < excluded.sum() <= 0.3 * 200  # of no class more than half
    assert (ledger["seen"][excluded] == 0).all()
    assert (ledger["seen"][~excluded] > 0).all()
    result = json.loads((folder / "result.json").read_text())
    assert result["cost"]["wall_s"] > result["own_cost"]["wall_s"]  # the run that it starts from counts
    assert {"top1", "mean_class_top1", "few_top1", "memorised_fraction"} <= result["ema"].keys()
    rows = json.loads((out / "methods.json").read_text())["rows"]
    assert {row["label"] for row in rows} == {"gate", "without_suspects"}
    started.clear()
    again = CliRunner().invoke(cli.main, command, catch_exceptions=False)
    assert "2 of 2 runs are done already" in again.output
    assert started == []
