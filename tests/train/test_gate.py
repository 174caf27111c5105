"""The gate's threshold and confidences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_train.errors import FieldError
from wv_train.gate import GateConfig, GateSchedule, confidence, passes, past_confidence

thresholds = st.floats(0.0, 0.999)


@given(thresholds, thresholds, st.integers(1, 10_000), st.data())
def test_threshold_never_rises_and_stays_between_its_ends(
    one: float, other: float, steps: int, data: st.DataObject
) -> None:
    start, end = max(one, other), min(one, other)
    schedule = GateSchedule(start=start, end=end, steps=steps)
    step = data.draw(st.integers(0, 2 * steps))
    assert schedule.threshold(0) == pytest.approx(start)
    assert schedule.threshold(steps) == end
    assert end <= schedule.threshold(step + 1) <= schedule.threshold(step) <= start + 1e-12


def test_threshold_is_linear() -> None:
    schedule = GateSchedule(start=0.4, end=0.2, steps=10)
    assert [round(schedule.threshold(step), 6) for step in (0, 5, 10, 15)] == [0.4, 0.3, 0.2, 0.2]


def test_a_threshold_falls_in_levels_or_along_a_cosine() -> None:
    steps = GateSchedule(start=0.8, end=0.0, steps=8, curve="step", levels=4)
    assert [round(steps.threshold(step), 6) for step in range(9)] == [0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2, 0.0]
    cosine = GateSchedule(start=0.4, end=0.2, steps=10, curve="cosine")
    assert [round(cosine.threshold(step), 4) for step in (0, 5, 10, 20)] == [0.4, 0.3, 0.2, 0.2]
    assert cosine.threshold(1) > 0.38  # slowly at first


def test_agreement_is_one_exactly_where_the_prediction_is_the_label() -> None:
    probabilities = torch.rand(200, 7).softmax(dim=1)
    labels = torch.arange(200) % 7
    top1, prediction = probabilities.max(dim=1)
    label = probabilities.gather(1, labels[:, None]).squeeze(1)
    none = torch.zeros(200)
    held = confidence("agreement", top1=top1, label=label, label_sum=none, seen=none)
    assert torch.equal(held >= 1.0, prediction == labels)
    assert GateConfig(kind="agreement", start=1.0).over(10).threshold(0) == 1.0


def test_the_past_is_the_mean_of_earlier_visits_and_lets_the_unknown_pass() -> None:
    held = past_confidence(torch.tensor([0.0, 0.9, 0.5]), torch.tensor([0.0, 3.0, 1.0]))
    assert held.tolist() == pytest.approx([1.0, 0.3, 0.5])


def test_gate_is_lowered_by_the_stated_part_of_the_phase() -> None:
    assert GateConfig(start=0.3, lowered_by=0.25).over(100).steps == 25
    assert GateConfig(start=0.3, lowered_by=0.25).over(1).steps == 1


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("start", {"start": 1.0}),
        ("start", {"start": -0.1}),
        ("end", {"start": 0.2, "end": 0.3}),
        ("lowered_by", {"start": 0.2, "lowered_by": 0.0}),
        ("levels", {"start": 0.2, "levels": 0}),
        ("min_kept_fraction", {"start": 0.2, "min_kept_fraction": 1.0}),
        ("revisit_fraction", {"start": 0.2, "revisit_fraction": -0.1}),
        ("start", {"start": 1.0, "unit": "share", "kind": "agreement"}),
    ],
)
def test_impossible_gates_are_refused(field: str, values: dict[str, float]) -> None:
    with pytest.raises(FieldError) as caught:
        GateConfig(**values)
    assert caught.value.field == field


def test_label_average_includes_the_present_visit_and_all_before() -> None:
    top1, label = torch.tensor([0.9, 0.9]), torch.tensor([0.1, 0.6])
    label_sum, seen = torch.tensor([0.0, 1.2]), torch.tensor([0.0, 2.0])
    arguments = {"top1": top1, "label": label, "label_sum": label_sum, "seen": seen}
    assert confidence("top1", **arguments).tolist() == top1.tolist()
    assert confidence("label", **arguments).tolist() == label.tolist()
    assert confidence("label_average", **arguments).tolist() == pytest.approx([0.1, 0.6])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.floats(0, 0.999))
def test_a_share_gates_exactly_the_least_confident_of_the_valid(batch: list[tuple[float, bool]], share: float) -> None:
    columns = torch.tensor([item[0] for item in batch], dtype=torch.float64), torch.tensor([item[1] for item in batch])
    keep = passes(*columns, unit="share", threshold=share).numpy()
    held, valid = (column.numpy() for column in columns)
    gated = valid & ~keep
    assert not (keep & ~valid).any()
    assert gated.sum() <= int(share * valid.sum())
    if len(set(held[valid])) == valid.sum():  # no ties
        assert gated.sum() == int(share * valid.sum())
    if gated.any():
        assert held[gated].max() < held[keep].min()


def test_a_threshold_of_confidence_keeps_what_reaches_it() -> None:
    held = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    valid = torch.tensor([True, True, True, False])
    assert passes(held, valid, unit="confidence", threshold=0.3).tolist() == [False, True, True, False]
    assert passes(held, valid, unit="confidence", threshold=0.0).tolist() == [True, True, True, False]
