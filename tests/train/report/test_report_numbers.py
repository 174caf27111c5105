"""The report's numbers against hand-computed ones."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wv_shards import Dataset
from wv_train.ledger import LEDGER_DTYPE
from wv_train.report import write_report
from wv_train.report_data import distinct_names, judge, rank_suspects
from wv_train.truth import UNKNOWN


def test_suspects_are_ranked_by_mean_confidence_and_never_seen_ones_are_none() -> None:
    ledger = np.zeros(5, dtype=LEDGER_DTYPE)
    ledger["seen"] = [1, 2, 0, 1, 9]
    ledger["label_conf_mean"] = [0.5, 0.1, 0.0, 0.5, 0.3]
    ledger["label_conf"] = [0.0, 0.9, 0.0, 0.1, 0.2]
    assert rank_suspects(ledger).tolist() == [1, 4, 0, 3]


def test_judgement_is_what_a_hand_counts() -> None:
    samples = 120
    ledger = np.zeros(samples, dtype=LEDGER_DTYPE)
    ledger["seen"] = 1
    ledger["label_conf_mean"] = np.linspace(0, 1, samples)
    labels = np.zeros(samples, dtype=np.int64)
    true_labels = np.zeros(samples, dtype=np.int64)
    true_labels[:30], true_labels[60:70] = 2, -1  # 30 swapped among the first 50, 10 outliers after them
    ledger["prediction"] = np.where(np.arange(samples) < 65, 0, 1)  # repeats the label of 30 + 5 of the 40
    found = judge(ledger, labels, true_labels)
    assert (found.known, found.wrong, found.base_rate) == (120, 40, pytest.approx(1 / 3))
    assert found.suspects_precision == pytest.approx({"50": 0.6, "100": 0.4, "10%": 1.0}), "no 200 of 120"
    assert found.memorised_fraction == pytest.approx(35 / 40)
    # The 30 beat all 80 right ones; the 10 beat those above them: 120 − 70 = 50.
    assert found.auroc == pytest.approx((30 * 80 + 10 * 50) / (40 * 80))


def test_judgement_leaves_out_what_was_not_seen_or_is_not_known() -> None:
    ledger = np.zeros(60, dtype=LEDGER_DTYPE)
    ledger["seen"], ledger["seen"][:10] = 1, 0
    true_labels = np.full(60, 1)
    true_labels[10:20], true_labels[20:] = UNKNOWN, 0
    found = judge(ledger, np.zeros(60, dtype=np.int64), true_labels)
    assert (found.known, found.wrong, found.auroc, found.memorised_fraction) == (40, 0, None, None)


@pytest.mark.parametrize("seed", range(8))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ledger = np.zeros(40, dtype=LEDGER_DTYPE)
    ledger["seen"] = 1
    ledger["label_conf_mean"] = rng.integers(0, 8, 40) / 8  # many ties
    true_labels = rng.integers(0, 2, 40)
    confidence, wrong = ledger["label_conf_mean"], true_labels != 0
    pairs = [0.5 if a == b else float(a < b) for a, b in product(confidence[wrong], confidence[~wrong])]
    found = judge(ledger, np.zeros(40, dtype=np.int64), true_labels)
    assert found.auroc == pytest.approx(np.mean(pairs))


def test_json_and_page_say_the_numbers_of_the_judgement(
    run: Path, shards: Path, tmp_path: Path, write_truth: Callable[..., Path], read_page: Callable[[Path], Any]
) -> None:
    wrong = set(range(10, 40)) | {100, 101}
    truth = write_truth(tmp_path / "truth.csv", shards, wrong)
    document = write_report([run], run / "report.html", truth_path=truth)
    assert json.loads((run / "report.json").read_text()) == document
    (numbers,) = document["runs"]
    # 147 seen, in order of ordinals 3 … 149: the first 50 are 3 … 52, the first 15 are 3 … 17.
    assert (numbers["samples"], numbers["seen"]) == (150, 147)
    assert numbers["suspects_precision"] == pytest.approx({"50": 30 / 50, "100": 32 / 100, "10%": 8 / 15})
    assert numbers["base_rate"] == pytest.approx(32 / 147)
    with Dataset.open(shards) as dataset:
        labels = dataset.index["label"]
    assert numbers["memorised_fraction"] == pytest.approx(np.mean([labels[i] == 1 for i in wrong]))
    assert numbers["eval"] == {"top1": 0.75, "top5": 0.95, "mean_class_top1": 0.5}
    text = " ".join(read_page(run / "report.html").text)
    for shown in ("60.0%", "32.0%", "53.3%", "21.8%", f"{numbers['auroc']:.3f}", "32 of 147 labels are wrong"):
        assert shown in text, shown


def test_without_truth_nothing_is_judged(run: Path, read_page: Callable[[Path], Any]) -> None:
    (numbers,) = write_report([run], run / "report.html")["runs"]
    fields = ("known", "wrong", "base_rate", "suspects_precision", "auroc", "memorised_fraction")
    assert [numbers[field] for field in fields] == [None] * len(fields)
    page = read_page(run / "report.html")
    assert not any(name == "class" and value.startswith("badge") for _, name, value in page.attributes)


def test_names_are_as_short_as_they_can_be() -> None:
    assert distinct_names([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert distinct_names([Path("/x/plain"), Path("/x/gated")]) == ["plain", "gated"]
    assert distinct_names([Path("/x/run"), Path("/x/run")]) == ["run", "run"]
