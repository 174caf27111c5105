"""`wv-bench train`: the trainer against a bare loop, the parts of a step, and what a gate's two passes save."""

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from wv_bench import cli
from wv_bench.train_components import ASKED, BOTH, GATE, LEDGER, OURS, STEP
from wv_bench.train_gate_loader import GATED
from wv_bench.train_gate_passes import KEPT, WAYS
from wv_bench.train_report import OURS_SYNTHETIC, OURS_TRAINED, SYNTHETIC, TRAINED, Row, document, verdict, verdict_line
from wv_bench.train_step import synthetic_batch
from wv_bench.train_turns import Clock, Subject, Turn, run_turns
from wv_loader import Batch

TINY = ("--size-px", 8, "--batch-size", 16, "--repeats", 2, "--steps", 2, "--model", "wv_resnet_16_32_64")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [*map(str, arguments)])


def test_the_trainer_is_held_against_the_bare_loop_on_the_same_batches_round_by_round(
    small_dataset: Path, tmp_path: Path
) -> None:
    result = run("train", small_dataset, *TINY, "--warmup", 1, "--json", tmp_path / "train.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "train.json").read_text())
    rows = {row["name"]: row for row in figures["rows"]}
    for ours, bare in ((OURS_SYNTHETIC, SYNTHETIC), (OURS_TRAINED, TRAINED)):
        ratios = [a / b for a, b in zip(rows[ours]["rates"], rows[bare]["rates"], strict=True)]
        assert rows[ours]["over_bare"]["min"] == pytest.approx(min(ratios))
        assert rows[ours]["over_bare"]["median"] == pytest.approx(sum(ratios) / 2)
        assert rows[bare]["over_bare"] is None
    assert [held["found"] for held in figures["verdicts"]] == [
        rows[name]["over_bare"]["median"] for name in (OURS_SYNTHETIC, OURS_TRAINED)
    ]
    assert all(held["least"] == 0.97 for held in figures["verdicts"])
    text = " ".join(result.output.split())
    for held in figures["verdicts"]:
        assert " ".join(verdict_line(held).split()) in text


@pytest.mark.parametrize(("rate", "word"), [(970.0, "PASS"), (969.0, "MISSED")])
def test_the_bar_is_passed_at_its_value_and_missed_below(rate: float, word: str) -> None:
    rows = [Row(name=SYNTHETIC), Row(name=OURS_SYNTHETIC)]
    for row, value in zip(rows, (1000.0, rate), strict=True):
        for _ in range(3):
            row.add(images=100, seconds=100 / value, waited_s=0.0, cpu_s=0.2, used=[])
    assert [held["verdict"] for held in document("", rows, {}, [])["verdicts"]] == [word]
    assert verdict("", 0.01, most=0.01)["verdict"] == "PASS"
    assert verdict("", 0.0101, most=0.01)["verdict"] == "MISSED"


def test_the_real_trainer_takes_its_turns_between_the_others_and_writes_its_metrics(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    batch = synthetic_batch(16, 8, 6, cpu)
    said: list[str] = []

    def given(name: str) -> Iterator[Batch]:
        for _ in repeat(None):
            said.append(name)
            yield batch

    ours = Turn(row=Row(name="ours"), batches=given("ours"), step=None)
    other = Turn(row=Row(name="other"), batches=given("other"), step=lambda _: said.append("step"))
    subject = Subject(
        model="wv_resnet_16_32_64", classes=6, samples=16, batch_size=16, size_px=8, amp="off", device=cpu
    )
    clock = Clock(warmup=1, steps=10, device=cpu)
    run_turns(iter([other, ours, ours, other]), subject, clock, tmp_path, None)
    others = ["other", "step"] * 11
    assert said == [*others, *["ours"] * 22, *others]
    assert (len(ours.row.rates), len(other.row.rates)) == (2, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (trained,) = [row for row in rows if row["kind"] == "train"]  # one row of twenty steps
    assert (trained["step"], trained["samples"], trained["kept_fraction"]) == (20, 320, 1.0)


def test_every_part_of_a_step_has_its_time_and_says_whose_it_is(small_dataset: Path, tmp_path: Path) -> None:
    result = run("train", small_dataset, *TINY, "--components", "--json", tmp_path / "parts.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "parts.json").read_text())
    rows = {row["name"]: row for row in figures["rows"]}
    assert {
        "data wait", "forward, loss", "backward", "optimiser", "all-reduce of gradients", "all-gather of rows", "guard",
        "counting, logging", "EMA", "clip", GATE, LEDGER,
    } <= rows.keys()  # fmt: skip
    assert {row["whose"] for row in rows.values()} == {STEP, BOTH, OURS, ASKED}
    alone = {name for name, row in rows.items() if row["us_median"] == 0}
    assert alone == {"all-reduce of gradients", "all-gather of rows"}
    assert rows[STEP]["share"] == 1
    for row in rows.values():
        assert 0 <= row["us_min"] <= row["us_median"]
        assert row["share"] == pytest.approx(row["us_median"] / rows[STEP]["us_median"])
    assert [held["found"] for held in figures["verdicts"]] == [rows[GATE]["share"], rows[LEDGER]["share"]]
    assert all(held["most"] == 0.01 for held in figures["verdicts"])


def test_a_gate_keeps_what_is_asked_for_in_every_way(tmp_path: Path) -> None:
    result = run("train", *TINY, "--gate-passes", "--classes", 5, "--json", tmp_path / "passes.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "passes.json").read_text())
    assert [(row["asked"], row["way"]) for row in figures["rows"]] == [(kept, way) for kept in KEPT for way in WAYS]
    for row in figures["rows"]:
        assert row["kept_fraction"] == 1 - int(16 * (1 - row["asked"])) / 16
        assert (row["way"] == WAYS[0]) <= (row["over_one_pass"] == {"median": 1, "min": 1})
    assert [row["samples"] for row in figures["parts"]] == [16, 12, 8, 4, 2]
    assert all(row[name]["min"] > 0 for row in figures["parts"] for name in ("look_ms", "forward_ms", "backward_ms"))


def test_in_every_way_the_same_share_of_all_samples_teaches(small_dataset: Path, tmp_path: Path) -> None:
    arguments = ("train", small_dataset, *TINY, "--warmup", 1, "--gate-loader")
    result = run(*arguments, "--json", tmp_path / "loader.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "loader.json").read_text())["rows"]
    for row in rows:
        assert (1 - row["skipped_fraction"]) * row["kept_fraction"] == pytest.approx(1 - GATED)
        assert 0 < row["kept_per_s"] < row["shown_per_s"]
    alone = [row for row in rows if row["way"].startswith("loader alone")]
    for base in (rows[0], alone[0]):
        assert base["skipped_fraction"] == 0
        assert base["kept_over_all"] == base["kept_per_cpu_over_all"] == {"median": 1, "min": 1}
    assert "expected SHARDS" in run("train", "--gate-loader").output
