"""`wv-train`: what it prints, and one line, an exit code and nothing written for every mistake."""

import json
import re
import resource
import shutil
import signal
import socket
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wv_loader import LoaderStats, MetricsServer
from wv_shards import BUILD_DIR, MANIFEST_FILE, Dataset, EarlierInfo, Manifest, Overlay
from wv_train import cli, cli_eval
from wv_train.checkpoint import Checkpoint
from wv_train.zoo import ZOO


@pytest.fixture
def wv_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command as its entry point does: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wv-train", *(str(argument) for argument in arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml", "phases.base.epochs=1", "phases.gated.steps=3")


def _refused(result: tuple[int, str, str], code: int, *parts: str) -> None:
    """One line on stderr, beginning with the command's name; no traceback."""
    assert result[0] == code, result
    lines = result[2].splitlines()
    assert len(lines) == 1, result[2]
    assert lines[0].startswith("wv-train: ")
    for part in parts:
        assert part in lines[0]


def test_help_shows_examples_and_recipes(wv_train: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = wv_train("--help")
    assert code == 0
    assert "wv-train --resume --out runs/gated" in out
    assert "torchrun --nproc-per-node 8 -m wv_train" in out
    assert "demo-plain" in out


def test_print_recipe_prints_a_recipe_that_can_be_used(
    wv_train: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = wv_train("--recipe", "demo", "--seed", 5, "--set", "phases.gated.gate.start=0.31", "--print-recipe")
    assert code == 0
    (tmp_path / "mine.toml").write_text(out)
    assert wv_train("--recipe", tmp_path / "mine.toml", "--print-recipe")[1] == out
    assert "seed = 5" in out
    assert "start = 0.31" in out


def test_list_models_shows_the_zoo(wv_train: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = wv_train("--list-models")
    assert code == 0
    assert len(out.splitlines()) == len(ZOO) + 4
    assert "inception_v4" in out


def test_a_recipe_without_a_size_takes_the_models_own(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    text = recipe.read_text()
    assert text.count("size_px = 16\n") == 1
    (tmp_path / "mine.toml").write_text(text.replace("size_px = 16\n", ""))
    code, out, _ = wv_train("--recipe", tmp_path / "mine.toml", "--print-recipe")
    assert (code, "size_px = 32\n" in out) == (0, True)
    inception = ("--set", "model=inception_v3", "--set", "size_px=0")
    code, out, _ = wv_train("--recipe", recipe, *inception, "--print-recipe")
    assert (code, "size_px = 299\n" in out) == (0, True)
    out_folder = tmp_path / "run"
    short = ("--set", "batch_size=64", "--device", "cpu")
    code, _, err = wv_train("--shards", small_dataset, "--recipe", tmp_path / "mine.toml", "--out", out_folder, *short)
    assert code == 0, err
    assert json.loads((out_folder / "run.json").read_text())["recipe"]["size_px"] == 32
    code, _, err = wv_train(
        "--resume", "--recipe", tmp_path / "mine.toml", "--set", "batch_size=64", "--out", out_folder
    )
    assert code == 0, err  # the same recipe


def test_pretrained_and_head_only_are_keys_of_the_recipe(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path
) -> None:
    odd = "weights of 'mine' = \"1\".pth"
    code, out, _ = wv_train("--recipe", recipe, "--pretrained", odd, "--head-only", "--print-recipe")
    assert code == 0
    table = tomllib.loads(out)
    assert table["pretrained"] == odd
    assert [phase["backbone_factor"] for phase in table["phases"]] == [0.0, 0.0, 0.0]
    options = ("--shards", small_dataset, "--recipe", recipe, "--dry-run", "--device", "cpu")
    code, out, _ = wv_train(*options, "--head-only")
    assert code == 0
    assert "warning: every phase freezes the backbone, which stays as it was drawn" in out
    _refused(wv_train(*options, "--pretrained", odd), 1, odd, "No such file")


def test_dry_run_says_what_would_run_and_writes_nothing(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    code, out, _ = wv_train("--shards", small_dataset, "--recipe", recipe, "--out", tmp_path / "run", "--dry-run")
    assert code == 0
    assert "78,070 parameters" in out
    assert "phase gated: 3 steps" in out
    assert "24 steps in all; nothing was written" in out
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_it_is(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, lines, err = wv_train(
        "--shards", small_dataset, "--recipe", recipe, "--out", out, "--device", "cpu", "--engine", "pillow"
    )
    assert code == 0, err
    first, second, third = err.splitlines()[:3]
    assert re.fullmatch(r"engine pillow \(Pillow(-SIMD)? [\w.]+\)", first)  # named: there is no reason to tell
    assert second.startswith("device cpu, world size 1, global batch 16, ")
    assert second.endswith("seed 3")
    assert third == "239 samples in 6 classes, 3 to 120 a class (imbalance 40.0)"
    assert err.splitlines()[-1].startswith("done: 24 steps, ")
    assert lines == (out / "metrics.jsonl").read_text()  # JSON lines where there is no terminal
    info = json.loads((out / "run.json").read_text())
    assert info["manifest_digest"] == Checkpoint.load(out / "checkpoints" / "last.pt").manifest_digest
    assert info["class_counts"] == [120, 61, 30, 17, 8, 3]
    assert info["val"] is None
    assert info["parameters"] == 78_070
    assert info["engine"] == "pillow"
    assert set(info["exposures"]) == {"base", "gated", "finetune"}
    assert sum(info["exposures"]["gated"]) == pytest.approx(239)
    assert info["recipe"]["phases"][1]["gate"]["start"] == 0.3
    assert not list(out.rglob("*.tmp"))
    assert list((out / "tensorboard").iterdir())


def test_a_resumed_run_keeps_its_engine_and_another_one_is_said(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ("--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--engine", "pillow")
    assert wv_train(*options, "--out", out)[0] == 0
    _, _, err = wv_train("--resume", "--out", out, "--device", "cpu")
    assert err.startswith("engine pillow (")
    assert "note: started with engine" not in err
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**info, "engine_description": "Pillow 1.0"}))
    _, _, err = wv_train("--resume", "--out", out, "--device", "cpu")
    assert "note: started with engine pillow (Pillow 1.0), goes on with pillow (Pillow" in err


def test_the_first_line_says_why_auto_took_an_engine(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path
) -> None:
    code, out, _ = wv_train("--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--dry-run")
    assert code == 0
    assert re.fullmatch(r"engine (turbo|pillow) \(.*\): (the fastest on a CPU|no turbo: .*)", out.splitlines()[0])


@pytest.mark.usefixtures("dali")
def test_a_run_trains_and_validates_with_dali(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """Two pipelines in one process, and a resumed run that goes on with another decoder."""
    out = tmp_path / "run"
    options = ("--shards", small_dataset, "--val", small_dataset, "--recipe", recipe, "--device", "cpu")
    code, _, err = wv_train(*options, "--engine", "dali-cpu", "--out", out)
    assert code == 0, err
    assert re.fullmatch(r"engine dali-cpu \(DALI [\d.]+ on the CPU, else .*\)", err.splitlines()[0])
    assert json.loads((out / "run.json").read_text())["engine"] == "dali-cpu"
    assert wv_train("--resume", "--out", out, "--device", "cpu")[2].startswith("engine dali-cpu (")
    err = wv_train("--resume", "--out", out, "--device", "cpu", "--engine", "pillow")[2]
    assert re.search(r"note: started with engine dali-cpu \(.*\), goes on with pillow \(", err)


def test_a_run_whose_engine_cannot_work_here_resumes_with_another(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """It was decoded by DALI on a GPU; this is resumed on a CPU."""
    out = tmp_path / "run"
    options = ("--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--engine", "pillow")
    assert wv_train(*options, "--out", out)[0] == 0
    info = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**info, "engine": "dali-gpu", "engine_description": "DALI 2.4.0"}))
    code, _, err = wv_train("--resume", "--out", out, "--device", "cpu")
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith("wv-train: engine 'dali-gpu': it decodes on a GPU, found device cpu")
    assert "resume with --engine auto" in line
    code, _, err = wv_train("--resume", "--out", out, "--device", "cpu", "--engine", "auto")
    assert code == 0
    assert "note: started with engine dali-gpu (DALI 2.4.0), goes on with " in err


def test_each_epoch_ends_with_a_line_that_names_the_slow_stage(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """15 steps of the first phase, in one epoch; then 3 and 6 steps of two more."""
    out = tmp_path / "run"
    code, lines, err = wv_train("--shards", small_dataset, "--recipe", recipe, "--out", out, "--device", "cpu")
    assert code == 0, err
    said = [line for line in err.splitlines() if "waited for data" in line]
    assert [line.split(": ")[0] for line in said] == [
        f"phase {name}, epoch 0" for name in ("base", "gated", "finetune")
    ]
    assert all("slow stage: " in line or "no stage stands out" in line for line in said)
    rows = [row for line in lines.splitlines() if (row := json.loads(line))["kind"] == "loader"]
    assert [(row["phase"], row["epoch"], row["step"]) for row in rows] == [
        ("base", 0, 15),
        ("gated", 0, 18),
        ("finetune", 0, 24),
    ]
    train = [row for line in lines.splitlines() if (row := json.loads(line))["kind"] == "train"]
    assert sum(row["samples"] for row in rows) == train[-1]["samples"]  # figures of an epoch, not of a run
    for row in rows:
        assert row["bottleneck"] in {"consumer", "plan", "read", "decode", "none"}
        assert 0 <= row["wait_fraction"] <= 1


def test_the_budget_for_bad_samples_can_be_set(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    shards = shutil.copytree(small_dataset, tmp_path / "rotten")
    with Dataset.open(shards) as dataset:
        dataset.shard_path(5).unlink()
        name = dataset.shard_path(5).name
    start = ("--shards", shards, "--recipe", recipe, "--device", "cpu", "--out")
    _, _, err = stopped = wv_train(*start, tmp_path / "default")
    assert stopped[0] == 1
    assert "samples of epoch 0 failed, 16 are allowed (" in err.splitlines()[-1]
    assert f"{name}: " in err.splitlines()[-1]
    assert "with ENOENT (No such file or directory): the disk or mount, not the images" in err.splitlines()[-1]
    assert wv_train(*start, tmp_path / "count", "--bad-budget", "200")[0] == 0
    assert wv_train(*start, tmp_path / "none", "--bad-budget", "none")[0] == 0
    assert wv_train(*start, tmp_path / "fraction", "--bad-budget", "0.9")[0] == 0
    for wrong in ("1.5", "-1", "some", "nan"):
        _refused(wv_train(*start, tmp_path / "wrong", "--bad-budget", wrong), 2, "--bad-budget", "a fraction (0.02)")
    assert not (tmp_path / "wrong").exists()


def test_metrics_are_served_while_it_trains(
    wv_train: Callable[..., tuple[int, str, str]],
    recipe: Path,
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus_client (extra [metrics]) is missing")
    start = ("--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--out")
    scraped, show = [], MetricsServer.show

    def show_and_scrape(server: MetricsServer, stats: LoaderStats) -> None:
        """When a phase begins, with the figures of its loader."""
        show(server, stats)
        stats.samples += 1_000_000
        with urllib.request.urlopen(server.url, timeout=10) as answer:
            scraped.append((server.url, answer.read().decode()))

    monkeypatch.setattr(MetricsServer, "show", show_and_scrape)
    code, _, err = wv_train(*start, tmp_path / "run", "--metrics-port", 0)
    assert code == 0, err
    assert len(scraped) == 3
    assert f"metrics of rank 0 at {scraped[0][0]}" in err
    assert all('wv_loader_samples_total{rank="0"} 1e+06' in text for _, text in scraped)
    with pytest.raises(urllib.error.URLError):  # it ends with the run
        urllib.request.urlopen(scraped[0][0], timeout=10)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = wv_train(*start, tmp_path / "refused", "--metrics-port", port)
    _refused(refused, 1, f"metrics can't be served at 127.0.0.1:{port}: Address already in use")
    assert not (tmp_path / "refused").exists()
    monkeypatch.setenv("LOCAL_RANK", "70000")
    _refused(wv_train(*start, tmp_path / "refused", "--metrics-port", 1), 1, "ports go from 0 to 65535")


def test_worker_processes_and_little_memory_train_the_same_model(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    options = ("--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--threads", 1)
    assert wv_train(*options, "--out", tmp_path / "plain")[0] == 0
    code, _, err = wv_train(*options, "--out", tmp_path / "few", "--loader-processes", 2, "--read-ahead-mb", 0)
    assert code == 0, err
    plain, few = (Checkpoint.load(tmp_path / run / "checkpoints" / "last.pt").model for run in ("plain", "few"))
    assert all(torch.equal(plain[name], few[name]) for name in plain)


def test_a_gate_that_keeps_almost_nothing_is_warned_about(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    changes = ["--set=phases.gated.gate.start=0.99", "--set=phases.gated.gate.end=0.99"]
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu")
    code, _, err = wv_train(*arguments, *changes)
    assert code == 0
    assert "warning: step 16: the gate keeps 0 of 16 samples; lower phases.gated.gate.start" in err


def test_rotten_samples_are_named_in_the_run_and_do_not_stop_it(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    shards = shutil.copytree(small_dataset, tmp_path / "rotten")
    with Dataset.open(shards) as dataset:
        tar, start = dataset.shard_path(int(dataset.shard_of(50))), int(dataset.index[50]["offset"])
    data = bytearray(tar.read_bytes())
    data[start + 9] ^= 1
    tar.write_bytes(data)
    out = tmp_path / "run"
    code, _, _ = wv_train("--shards", shards, "--recipe", recipe, "--out", out, "--device", "cpu")
    assert code == 0
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {(row["ordinal"], row["shard"], row["reason"]) for row in rows} == {(50, tar.name, "checksum")}


def test_resuming_on_other_shards_blames_the_shards_and_not_the_validation_set(
    wv_train: Callable[..., tuple[int, str, str]],
    recipe: Path,
    small_dataset: Path,
    val_dataset: Path,
    tmp_path: Path,
    draw_dataset: Callable[..., Path],
) -> None:
    out = tmp_path / "run"
    start = ("--shards", small_dataset, "--val", val_dataset, "--recipe", recipe, "--out", out, "--device", "cpu")
    assert wv_train(*start)[0] == 0
    other = draw_dataset(tmp_path / "other", [40, 20])
    resumed = wv_train("--resume", "--out", out, "--shards", other, "--device", "cpu")
    _refused(resumed, 1, "last.pt: trained on 6 classes, these shards have 2; give the shards that the run began with")


def test_wrong_usage_is_exit_code_2(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    _refused(wv_train("--shards", small_dataset, "--out", out), 2, "--recipe is missing", "demo")
    _refused(wv_train("--recipe", recipe, "--out", out), 2, "--shards is missing")
    _refused(wv_train("--shards", small_dataset, "--recipe", recipe), 2, "--out is missing")
    _refused(wv_train("--shards", small_dataset, "--recipe", "dmeo", "--out", out), 2, "did you mean demo")
    _refused(
        wv_train("--shards", small_dataset, "--recipe", recipe, "--out", out, "--set", "phases.base.lr=-1"),
        2,
        "phases.base.lr: expected 0 or more, found -1",
    )
    _refused(wv_train("--shards", small_dataset, "--recipes", recipe), 2, "No such option")
    assert not out.exists()


def test_data_that_cannot_be_used_are_refused_before_anything_is_written(
    wv_train: Callable[..., tuple[int, str, str]],
    recipe: Path,
    small_dataset: Path,
    tmp_path: Path,
    draw_dataset: Callable[..., Path],
) -> None:
    out = tmp_path / "run"
    _refused(wv_train("--shards", tmp_path / "absent", "--recipe", recipe, "--out", out), 1, "absent")
    unfinished = tmp_path / "unfinished"
    (unfinished / BUILD_DIR).mkdir(parents=True)
    _refused(wv_train("--shards", unfinished, "--recipe", recipe, "--out", out), 1, "unfinished")
    newer = shutil.copytree(small_dataset, tmp_path / "newer")
    manifest = json.loads((newer / MANIFEST_FILE).read_text())
    (newer / MANIFEST_FILE).write_text(json.dumps({**manifest, "format_version": 99}))
    _refused(wv_train("--shards", newer, "--recipe", recipe, "--out", out), 1, "99", "upgrade")
    val = draw_dataset(tmp_path / "val", [4, 4])
    _refused(
        wv_train("--shards", small_dataset, "--val", val, "--recipe", recipe, "--out", out),
        1,
        "6 classes in training, 2 here",
        "--classes-from",
    )
    missing = ("--exclude", tmp_path / "nothing")
    _refused(wv_train("--shards", small_dataset, "--recipe", recipe, "--out", out, *missing), 1, "nothing")
    for change, part in (
        ("model=resnet_5", "did you mean"),
        ("model=vit_tiny_patch16_224", "does not take images of 16 px"),
    ):
        _refused(
            wv_train("--shards", small_dataset, "--recipe", recipe, "--out", out, "--set", change, "--device", "cpu"),
            1,
            part,
        )
    assert not out.exists()


def test_output_that_holds_something_else_is_refused(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--out")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    _refused(wv_train(*arguments, tmp_path / "photos"), 1, "found cat.jpg and no run.json")
    _refused(wv_train(*arguments, tmp_path / "photos" / "cat.jpg"), 1, "found a file")
    _refused(wv_train("--resume", "--out", tmp_path / "photos"), 1, "found no run.json")
    assert wv_train(*arguments, tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    _refused(wv_train(*arguments, tmp_path / "run"), 1, "--resume continues it")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resume_auto_begins_a_run_and_then_continues_it(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ("--resume", "auto", "--shards", small_dataset, "--recipe", recipe, "--out", out, "--device", "cpu")
    code, _, err = wv_train(*command)
    assert code == 0
    assert "resuming" not in err
    weights = Checkpoint.load(out / "checkpoints" / "last.pt").model
    code, _, err = wv_train(*command)
    assert code == 0
    assert "resuming at step" in err
    after = Checkpoint.load(out / "checkpoints" / "last.pt").model
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    _refused(wv_train("--resume", "sometimes", "--out", out), 2, "'sometimes' is not one of 'must', 'auto'")


def test_resume_refuses_another_recipe_data_set_or_damage(
    wv_train: Callable[..., tuple[int, str, str]],
    recipe: Path,
    small_dataset: Path,
    tmp_path: Path,
    draw_dataset: Callable[..., Path],
) -> None:
    out = tmp_path / "run"
    cpu = ("--device", "cpu")
    assert wv_train("--shards", small_dataset, "--recipe", recipe, "--out", out, *cpu)[0] == 0
    resume = ("--resume", "--out", out, *cpu)
    _refused(wv_train(*resume, "--seed", 9), 2, "seed: the run", "has 3, asked for was 9")
    _refused(
        wv_train(*resume, "--recipe", recipe, "--set", "phases.gated.gate.start=0.2"),
        2,
        "phases.gated.gate.start: the run",
        "has 0.3, asked for was 0.2",
    )
    other = draw_dataset(tmp_path / "other", [120, 61, 30, 17, 8, 3], seed=1)
    _refused(wv_train(*resume, "--shards", other), 1, "these shards are", "start a new run")
    assert wv_train(*resume, "--recipe", recipe)[0] == 0
    moved = small_dataset.parent / "moved"
    shutil.copytree(small_dataset, moved)
    assert wv_train(*resume, "--shards", moved)[0] == 0  # the same data elsewhere are the same data
    (out / "checkpoints" / "last.pt").write_bytes(b"half")
    _refused(wv_train(*resume), 1, "last.pt: not a checkpoint of wv-train, or damaged")
    (out / "run.json").write_text("{")
    _refused(wv_train(*resume), 1, "run.json: cannot be read")
    (out / "run.json").write_text('{"format_version": 9}')
    _refused(wv_train(*resume), 1, "upgrade wv-toolkit")


def test_no_space_left_is_one_line_and_nothing_half_written(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk: run.json fits, the checkpoint does not."""
    out = tmp_path / "run"
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", out, "--device", "cpu")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        code, _, err = wv_train(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert code == 1
    assert "last.pt: not saved" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert list((out / "checkpoints").iterdir()) == []
    assert wv_train("--resume", "--out", out, "--device", "cpu")[0] == 0


def test_a_folder_that_cannot_be_made_is_one_line(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    out = tmp_path / "file" / "run"
    code, _, err = wv_train("--shards", small_dataset, "--recipe", recipe, "--out", out, "--device", "cpu")
    assert code == 1
    assert err.splitlines()[-1] == f"wv-train: {out}: cannot be written: Not a directory"


def test_excluded_samples_are_never_shown(
    wv_train: Callable[..., tuple[int, str, str]], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    excluded = np.zeros(239, dtype=bool)
    excluded[::3] = True
    digest = Manifest.load(small_dataset).digest
    Overlay(kind="exclude", array=excluded, manifest_digest=digest).save(tmp_path / "pruned")
    out = tmp_path / "run"
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", out, "--device", "cpu")
    assert wv_train(*arguments, "--exclude", tmp_path / "pruned")[0] == 0
    seen = np.load(out / "ledger.npy")["seen"]
    assert (seen[excluded] == 0).all()
    assert (seen[~excluded] > 0).mean() > 0.8
    assert sum(json.loads((out / "run.json").read_text())["class_counts"]) == (~excluded).sum()
    grown = tmp_path / "grown"
    shutil.copytree(small_dataset, grown)
    earlier = EarlierInfo(digest="e" * 32, samples=200)
    replace(Manifest.load(small_dataset), earlier=(earlier,)).save(grown)
    Overlay(kind="exclude", array=excluded[:200], manifest_digest="e" * 32).save(tmp_path / "older")
    out = tmp_path / "later"
    arguments = ("--shards", grown, "--recipe", recipe, "--out", out, "--device", "cpu")
    assert wv_train(*arguments, "--exclude", tmp_path / "older")[0] == 0
    seen = np.load(out / "ledger.npy")["seen"]
    assert (seen[:200][excluded[:200]] == 0).all()
    assert (seen[200:] > 0).mean() > 0.8


def test_wv_eval_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_dataset: Path
) -> None:
    arguments = ["wv-eval", "--run", str(tmp_path), "--shards", str(small_dataset)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli_eval.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"wv-eval: {tmp_path}: expected a run of wv-train, found no run.json\n"
    monkeypatch.setattr(sys, "argv", arguments[:3])
    with pytest.raises(SystemExit) as stop:
        cli_eval.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("wv-eval: Missing option '--shards'")
    monkeypatch.setattr(sys, "argv", [*arguments, "--bad-budget", "many"])
    with pytest.raises(SystemExit) as stop:
        cli_eval.main()
    assert stop.value.code == 2
    assert "expected a count (100), a fraction (0.02) or none, found 'many'" in capsys.readouterr().err
