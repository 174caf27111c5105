"""What is measured and judged on a GPU, tried on the CPU with tiny figures: sweep, training, verdicts, all of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from wv_bench import cli
from wv_bench.gpu_check import Check
from wv_bench.gpu_check_data import draw, make_sets
from wv_bench.gpu_check_page import page
from wv_bench.gpu_check_verdict import judge
from wv_bench.train_report import ALONE, OURS_SYNTHETIC, OURS_TRAINED, SYNTHETIC, TRAINED, Row, document
from wv_bench.train_step import bare_step, synthetic_batch
from wv_loader import DaliOptions, Loader
from wv_train.models import make_model

TINY = ("--size-px", 8, "--batch-size", 16, "--repeats", 1)
MODEL = ("--model", "wv_resnet_16_32_64", "--steps", 2)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [*map(str, arguments)])


def trained(rates: dict[str, list[float]], *, cores: int = 8) -> dict[str, Any]:
    """A run of `wv-bench train` with made-up rates."""
    rows = []
    for name, values in rates.items():
        row = Row(name=name)
        for rate in values:
            row.add(images=100, seconds=100 / rate, waited_s=0.5, cpu_s=0.2, used=[])
        rows.append(row)
    return document("", rows, {"cores": cores}, [])


def test_a_sweep_times_every_combination_and_names_the_best(small_dataset: Path, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "sweep.json", "--chart", tmp_path / "sweep.html", "--work", tmp_path / "work")
    result = run(
        "loader-sweep", small_dataset, "--engine", "pillow", "--threads", "1,2", "--batch-size", 32, "--size-px", 8,
        "--repeats", 1, *files,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "sweep.json").read_text())
    rates = {row["label"]: row["rate_median"] for row in figures["rows"]}
    assert set(rates) == {"1 thread, batch 32", "2 threads, batch 32"}
    assert all(len(row["rates"]) == 1 for row in figures["rows"])
    best = figures["best"]
    assert rates[best] == max(rates.values())
    assert figures["best_settings"] == {
        "engine": "pillow", "threads": int(best[0]), "batch_size": 32, "dali": {},
    }  # fmt: skip
    assert f"best: {best}" in result.output
    assert best in (tmp_path / "sweep.html").read_text()


def test_dalis_options_reach_the_loader(small_dataset: Path, tmp_path: Path, dali: None) -> None:
    file = tmp_path / "sweep.json"
    result = run("loader-sweep", small_dataset, "--engine", "dali-cpu", "--region", "no", *TINY, "--json", file)
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert figures["best_settings"]["dali"] == {"region": False}
    assert figures["best"].endswith("whole images")
    options = [*TINY, *MODEL, "--warmup", 0, "--engine", "dali-cpu", "--json"]
    with pytest.MonkeyPatch.context() as patched:
        given: list[Any] = []
        patched.setattr("wv_bench.train.Loader", lambda *a, **o: given.append(o["dali"]) or Loader(*a, **o))
        trained_on = run("train", small_dataset, "--whole-images", "--hw-decoder-load", 0.5, *options)
    assert trained_on.exit_code == 0, trained_on.output
    assert given == [DaliOptions(region=False, hw_decoder_load=0.5)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("loader-sweep SET --engine nobody", "expected one of turbo, pillow"),
        ("loader-sweep SET --engine dali-gpu", "dali-gpu"),
        ("loader-sweep SET --engine turbo --region yes", "--region is of dali-cpu and dali-gpu"),
        ("loader-sweep SET --engine turbo --hw-decoder-load 0.5", "--hw-decoder-load is of dali-gpu"),
        ("loader-sweep SET --threads 1,x", "'--threads'"),
        ("loader-sweep SET --batch-size 16,4096", "lower --batch-size 4096"),
        ("train SET --batch-size 4096 --model wv_resnet_16_32_64", "lower --batch-size 4096"),
        ("train SET --cores 100000", "this process may use"),
        ("gpu-check SET --device cpu --cores 9", "'--cores'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(small_dataset: Path, words: str, message: str) -> None:
    result = run(*words.replace("SET", str(small_dataset)).split())
    assert (result.exit_code, type(result.exception)) == (2, SystemExit), result.output
    assert message in result.output[result.output.index("Error: ") :]


def test_an_unknown_model_is_a_line(small_dataset: Path) -> None:
    result = run("train", small_dataset, "--model", "resnet5000", "--batch-size", 16)
    assert (result.exit_code, result.output.count("Error: model resnet5000")) == (1, 1)


def test_training_is_timed_on_a_batch_that_lies_ready_and_on_the_loaders(small_dataset: Path, tmp_path: Path) -> None:
    result = run("train", small_dataset, *TINY, *MODEL, "--json", tmp_path / "train.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "train.json").read_text())
    rows = {row["name"]: row for row in figures["rows"]}
    assert list(rows) == [SYNTHETIC, OURS_SYNTHETIC, TRAINED, OURS_TRAINED, ALONE]
    for row in rows.values():
        assert min(row["rate_min"], row["cpu_s_per_1000"]) > 0
        assert row["over_synthetic"]["median"] == pytest.approx(row["rates"][0] / rows[SYNTHETIC]["rates"][0])
        assert f"{row['rate_median']:,.0f}" in result.output
    assert rows[ALONE]["wait_s_per_1000"] > rows[SYNTHETIC]["wait_s_per_1000"]
    assert "float32, on cpu" in figures["title"]


def test_without_shards_a_synthetic_batch_is_trained_on() -> None:
    figures = json.loads(run("train", *TINY, *MODEL, "--json").output)
    assert [row["name"] for row in figures["rows"]] == [SYNTHETIC, OURS_SYNTHETIC]


def test_the_bare_loop_learns_from_the_batches_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("wv_resnet_16_32_64", 6)
    monkeypatch.setattr("wv_bench.train_step.make_model", lambda *_: model)
    cpu = torch.device("cpu")
    batch = synthetic_batch(16, 8, 6, cpu)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    step = bare_step("", classes=6, amp="auto", device=cpu)
    before = [parameter.clone() for parameter in model.parameters()]
    step(batch)
    assert any(not torch.equal(was, now) for was, now in zip(before, model.parameters(), strict=True))


def test_each_bar_is_passed_at_its_value_and_missed_below() -> None:
    at = trained({SYNTHETIC: [1000.0] * 3, TRAINED: [980.0] * 3, ALONE: [1150.0] * 3})
    assert [(v.word, v.found) for v in judge("set", at)] == [("PASS", 1.15), ("PASS", 0.98)]
    for name, rates, words in (
        (ALONE, [1149.0] * 3, ["MISSED", "PASS"]),
        (TRAINED, [979.0] * 3, ["PASS", "MISSED"]),
    ):
        given = {SYNTHETIC: [1000.0] * 3, TRAINED: [990.0] * 3, ALONE: [1200.0] * 3, name: rates}
        assert [v.word for v in judge("set", trained(given))] == words


def test_the_median_of_the_rounds_is_judged_and_the_worst_is_said() -> None:
    loader, training = judge(
        "set", trained({SYNTHETIC: [100.0, 100.0, 100.0], TRAINED: [50.0, 99.0, 99.0], ALONE: [200.0, 100.0, 100.0]})
    )
    assert (training.passed, training.found) == (True, 0.99)
    assert "worst round 0.500" in str(training)
    assert (loader.passed, loader.found) == (False, 1.0)


def test_more_cores_than_the_bar_allows_and_runs_that_failed_miss_both_bars() -> None:
    rates = {SYNTHETIC: [1.0], TRAINED: [1.0], ALONE: [2.0]}
    for verdict in judge("set", trained(rates, cores=9)):
        assert not verdict.passed
        assert "9 cores were used" in str(verdict)
    for verdict in judge("set", None, "Error: out of memory"):
        assert not verdict.passed
        assert "out of memory" in str(verdict)


def test_the_data_is_as_heavy_as_photographs_and_made_once(tmp_path: Path) -> None:
    sizes = [len(draw(number)) for number in range(6)]
    assert draw(0) == draw(0)
    assert 85_000 < sum(sizes) / len(sizes) < 120_000
    sets = make_sets(tmp_path, samples=100, distinct=10)
    made = {name: (path / "index.npy").stat().st_mtime_ns for name, path in sets.items()}
    for path in sets.values():
        with Loader(path, batch_size=20, size_px=8) as loader:
            assert loader.num_samples == 100
            assert all(batch.valid.all() for batch in loader)
    again = make_sets(tmp_path, samples=100, distinct=10)
    assert {name: (path / "index.npy").stat().st_mtime_ns for name, path in again.items()} == made


@pytest.mark.slow
def test_a_dry_run_of_the_whole_check_writes_its_verdicts(small_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "check"
    result = run(
        "gpu-check", small_dataset, "--device", "cpu", "--out", out, *TINY, *MODEL, "--threads", 1, "--cores", 1,
        "--max-samples", 32, "--engine", "pillow", "--only", "ours, pillow",
    )  # fmt: skip
    figures = json.loads((out / "gpu-check.json").read_text())
    assert [run["name"] for run in figures["runs"]] == ["sweep-0", "loader-0", "train-0"]
    assert not any(run["problem"] for run in figures["runs"]), figures["runs"]
    found = {verdict["verdict"] for verdict in figures["verdicts"]}
    assert len(figures["verdicts"]) == 2
    assert result.exit_code == int("MISSED" in found)
    text = " ".join(result.output.split())
    shown = (out / "gpu-check.html").read_text()
    for verdict in figures["verdicts"]:
        assert f"{verdict['verdict']} your shards: {verdict['bar']}: {verdict['found']:.3f}" in text
        assert f"{verdict['found']:.3f}" in shown
    assert "ours, pillow" in shown
    assert (out / figures["runs"][0]["chart"]).exists()
    assert page(figures) == shown


def test_a_command_that_fails_is_a_missed_bar_with_its_reason(tmp_path: Path) -> None:
    said: list[str] = []
    check = Check(out=tmp_path, say=said.append)
    assert check.run("train-0", "set", ["train", tmp_path / "nowhere", *TINY, *MODEL]) is None
    assert "wv-bench train" in said[0]
    assert check.runs[0]["figures"] is None
    for verdict in judge("set", None, check.problem):
        assert not verdict.passed
        assert "nowhere" in str(verdict)


def test_shards_that_are_none_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    result = run("gpu-check", tmp_path / "nowhere", "--device", "cpu", "--out", tmp_path / "check")
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert not (tmp_path / "check").exists()


@pytest.mark.slow
def test_a_gpu_is_measured_and_judged(cuda: object, tmp_path: Path) -> None:
    result = run(
        "gpu-check", "--out", tmp_path / "check", "--model", "resnet18", "--size-px", 64, "--batch-size", 64,
        "--steps", 5, "--repeats", 1, "--samples", 1000, "--distinct", 50, "--max-samples", 512,
    )  # fmt: skip
    figures = json.loads((tmp_path / "check" / "gpu-check.json").read_text())
    assert not any(run["problem"] for run in figures["runs"]), result.output
    assert all(verdict["found"] is not None for verdict in figures["verdicts"])


def test_a_check_that_can_only_fail_does_not_begin(tmp_path: Path) -> None:
    out = tmp_path / "check"
    on_cpu = CliRunner().invoke(cli.main, ["gpu-check", "--device", "cpu", "--engine", "dali-gpu", "--out", str(out)])
    assert on_cpu.exit_code == 2
    assert "--engine dali-gpu decodes on a GPU, found --device cpu" in on_cpu.output
    ready = CliRunner().invoke(cli.main, ["gpu-check", "--device", "cpu", "--ready", "--out", str(out)])
    assert (ready.exit_code, ready.output) == (0, "cpu: the dry run\n")
    assert not out.exists()
