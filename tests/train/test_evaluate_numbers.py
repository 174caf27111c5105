"""What `wv-eval` counts: calibration, mistakes, groups of classes; sums that add over batches and ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_train.calibration import BINS, CalibrationSums
from wv_train.confusion import ConfusionCounts
from wv_train.crops import crop_positions, crops_result
from wv_train.distributed import World
from wv_train.errors import FieldError
from wv_train.evaluate import ClassSums, CountGroups, Outcomes, outcomes_of
from wv_train.tally import Tally

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def outcomes(labels: list[int], predictions: list[int], confidences: list[float]) -> Outcomes:
    n = len(labels)
    return Outcomes(
        labels=np.array(labels, dtype=np.int64),
        predictions=np.array(predictions, dtype=np.int64),
        confidences=np.array(confidences, dtype=np.float64),
        in_top5=np.ones(n, dtype=np.bool_),
        losses=np.zeros(n),
    )


def drawn_logs(seed: int, n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator)
    return logits.log_softmax(dim=1), torch.randint(0, classes, (n,), generator=generator)


def test_the_calibration_error_is_the_one_of_its_definition() -> None:
    """Two bins by hand: (0.9 + 0.94)/2 is believed where half is right, 0.3 where all is."""
    sums = CalibrationSums()
    sums.add(outcomes([0, 0, 1], [0, 1, 1], [0.9, 0.925, 0.3]))
    assert sums.expected_error() == pytest.approx((2 * abs(0.5 - 0.9125) + 1 * abs(1 - 0.3)) / 3)
    rows = sums.rows()
    assert [row["samples"] for row in rows if row["samples"]] == [1, 2]
    assert rows[13] == {
        "low": 13 / 15,
        "high": 14 / 15,
        "samples": 2,
        "confidence": pytest.approx(0.9125),
        "top1": 0.5,
    }
    assert rows[0] == {"low": 0.0, "high": 1 / 15, "samples": 0, "confidence": None, "top1": None}


@pytest.mark.parametrize(
    ("confidence", "place"), [(0.0, 0), (1 / BINS, 0), (np.nextafter(1 / BINS, 1), 1), (0.5, 7), (1.0, BINS - 1)]
)
def test_a_bin_holds_its_upper_border_and_not_its_lower(confidence: float, place: int) -> None:
    sums = CalibrationSums()
    sums.add(outcomes([0], [0], [confidence]))
    assert np.flatnonzero(sums.samples).tolist() == [place]


def test_a_model_that_is_right_as_often_as_it_believes_has_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    confidences = rng.random(200_000)
    right = rng.random(200_000) < confidences
    sums = CalibrationSums()
    sums.add(outcomes([0] * 200_000, (~right).astype(int).tolist(), confidences.tolist()))
    assert sums.expected_error() < 0.005


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(0, 60))
def test_mistakes_are_counted_by_pair_however_they_come(pairs: list[tuple[int, int]], cut: int) -> None:
    whole = np.zeros((7, 7), dtype=int)
    for label, prediction in pairs:
        whole[label, prediction] += label != prediction
    counts = ConfusionCounts(7)
    for some in (pairs[:cut], pairs[cut:]):
        counts.add(outcomes([a for a, _ in some], [b for _, b in some], [0.5] * len(some)))
        counts = counts.total(ALONE)
    assert counts.mistakes() == whole.sum()
    names = [f"class {c}" for c in range(7)]
    samples = np.bincount([label for label, _ in pairs], minlength=7).astype(float)
    rows = counts.most(100, names, samples)
    assert {(row["label"], row["prediction"]): row["samples"] for row in rows} == {
        (int(a), int(b)): whole[a, b] for a, b in zip(*np.nonzero(whole), strict=True)
    }
    order = [(-row["samples"], -row["label_fraction"]) for row in rows]
    assert order == sorted(order)
    assert all(row["label_fraction"] == row["samples"] / samples[row["label"]] for row in rows)
    assert counts.most(2, names, samples) == rows[:2]


def test_mistakes_of_five_thousand_classes_take_no_square_of_them() -> None:
    counts = ConfusionCounts(5_000)
    rng = np.random.default_rng(0)
    for _ in range(22):  # more than are kept as a list
        labels = rng.integers(0, 5_000, 50_000)
        counts.add(outcomes(labels.tolist(), ((labels + 1) % 5_000).tolist(), [0.5] * 50_000))
    assert counts.mistakes() == 1_100_000
    assert counts._pairs.nbytes + counts._counts.nbytes < 200_000
    assert counts.most(1, [""] * 5_000, np.ones(5_000))[0]["samples"] > 200


def test_classes_are_many_medium_or_few_by_their_training_samples() -> None:
    sums = ClassSums(
        samples=np.array([10.0, 30.0, 5.0, 0.0, 5.0]),
        top1=np.array([5.0, 30.0, 1.0, 0.0, 0.0]),
        top5=np.zeros(5),
        loss=np.zeros(5),
    )
    rows = sums.by_count([101, 100, 19, 0, 20], CountGroups())
    assert [(row["name"], row["classes"], row["samples"]) for row in rows] == [
        ("many", 1, 10),
        ("medium", 2, 35),
        ("few", 2, 5),
    ]
    assert [row["top1"] for row in rows] == [0.5, 30 / 35, 0.2]
    assert [row["mean_class_top1"] for row in rows] == [0.5, 0.5, 0.2]
    empty = sums.by_count([50] * 5, CountGroups(many_over=49, few_under=20))
    assert [(row["classes"], row["top1"]) for row in empty] == [(5, 36 / 50), (0, None), (0, None)]
    with pytest.raises(FieldError, match="many_over: expected at least 29"):
        CountGroups(many_over=20, few_under=30)


def test_outcomes_are_those_of_the_probabilities() -> None:
    logs, labels = drawn_logs(0, 50, 9)
    one = outcomes_of(logs, labels)
    probabilities = logs.double().exp().numpy()
    assert np.array_equal(one.predictions, probabilities.argmax(axis=1))
    assert np.allclose(one.confidences, probabilities.max(axis=1))
    rank = (probabilities > probabilities[np.arange(50), labels.numpy()][:, None]).sum(axis=1)
    assert np.array_equal(one.in_top5, rank < 5)
    assert np.array_equal(one.correct, rank == 0)
    assert np.allclose(one.losses, -np.log(probabilities[np.arange(50), labels.numpy()]), rtol=1e-6)
    assert outcomes_of(logs[:0], labels[:0]).labels.shape == (0,)


def test_a_tally_of_parts_is_the_tally_of_the_whole() -> None:
    logs, labels = drawn_logs(1, 80, 7)
    whole, parts = Tally.empty(7), Tally.empty(7)
    whole.add(logs, labels)
    for some in (slice(0, 0), slice(0, 33), slice(33, 80)):
        parts.add(logs[some], labels[some])
    assert parts.total(ALONE).numbers() == pytest.approx(whole.total(ALONE).numbers())
    assert whole.numbers()["samples"] == 80


@given(st.integers(1, 33))
def test_crops_are_the_centre_and_distinct_places_on_the_edge(count: int) -> None:
    positions = crop_positions(count)
    assert len(set(positions)) == count
    assert positions[0] == (0.5, 0.5)
    assert all({x, y} & {0.0, 1.0} and 0 <= x <= 1 and 0 <= y <= 1 for x, y in positions[1:])


def test_five_crops_are_the_centre_and_the_corners_nine_a_grid() -> None:
    corners = {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    assert set(crop_positions(5)) == {(0.5, 0.5), *corners}
    assert set(crop_positions(9)) == {(x, y) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)}


def test_the_fluctuation_between_crops_is_their_standard_deviation() -> None:
    sums = [
        ClassSums(samples=np.array([10.0]), top1=np.array([hits]), top5=np.array([10.0]), loss=np.zeros(1))
        for hits in (5.0, 6.0, 7.0)
    ]
    result = crops_result(crop_positions(3), sums, Tally.empty(1))
    assert [row["top1"] for row in result["positions"]] == [0.5, 0.6, 0.7]
    assert (result["top1_mean"], result["top1_std"]) == (pytest.approx(0.6), pytest.approx(0.1))
