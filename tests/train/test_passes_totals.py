"""When a step has two passes, and sums over steps."""

from dataclasses import fields

import numpy as np
import pytest

from wv_train.gate import GateConfig
from wv_train.passes import PassChoice
from wv_train.totals import Totals, train_row


def _kept(fraction: float) -> Totals:
    return Totals(steps=1, samples=1000, kept=round(1000 * fraction))


def test_two_passes_where_less_than_two_thirds_are_kept_and_not_to_and_fro() -> None:
    gate, choice = GateConfig(start=0.5), PassChoice()
    assert not choice.two(gate)
    choice.update(_kept(0.6))
    assert choice.two(gate)
    for _ in range(50):
        choice.update(_kept(0.7))
    assert choice.two(gate)  # between the borders it stays
    for _ in range(50):
        choice.update(_kept(0.75))
    assert not choice.two(gate)
    for _ in range(50):
        choice.update(_kept(0.7))
    assert not choice.two(gate)


def test_a_recipe_decides_if_it_says_so_and_the_past_needs_no_pass() -> None:
    choice = PassChoice()
    choice.update(_kept(0.1))
    assert choice.two(GateConfig(start=0.5, passes="auto"))
    assert not choice.two(GateConfig(start=0.5, passes="one"))
    assert not choice.two(GateConfig(start=0.5, kind="label_past", passes="two"))
    assert not choice.two(None)
    assert PassChoice().two(GateConfig(start=0.5, passes="two"))


def test_a_choice_goes_on_where_its_state_was_taken() -> None:
    one, other = PassChoice(), PassChoice()
    for fraction in (0.9, 0.3, 0.2):
        one.update(_kept(fraction))
    other.load_state(one.state())
    assert other.state() == one.state()


def test_totals_add_in_every_field_and_survive_a_checkpoint() -> None:
    one, other = Totals(), Totals()
    for number, item in enumerate(fields(Totals)):
        band = item.name.startswith("band")
        setattr(one, item.name, np.array([number, 1]) if band else number)
        setattr(other, item.name, np.array([10, 20]) if band else 2)
    expected = {
        name: [value[0] + 10, value[1] + 20] if isinstance(value, list) else value + 2
        for name, value in one.state().items()
    }
    one.add(other)
    assert one.state() == expected
    assert Totals.from_state(one.state()).state() == one.state()
    empty = Totals()
    empty.add(one)
    assert empty.state() == one.state()


def test_a_row_divides_last_and_names_what_is_known_only() -> None:
    totals = Totals(steps=2, samples=10, judged=8, correct=4, kept=5, weight=4.0, loss=6.0)
    row = train_row(totals, [3, None])
    assert (row["loss"], row["top1"], row["kept_fraction"]) == (1.5, 0.5, 0.5)
    assert not {"kept_by_band", "kept_precision", "shown_precision"} & set(row)
    totals.band_samples, totals.band_kept = np.array([6, 4]), np.array([2, 3])
    totals.shown_known, totals.shown_right, totals.kept_known, totals.kept_right = 10, 6, 5, 4
    row = train_row(totals, [3, None])
    assert row["kept_by_band"] == [[3, 6, 2], [None, 4, 3]]
    assert row["shown_precision"] == pytest.approx(0.6)
    assert row["kept_precision"] == pytest.approx(0.8)
