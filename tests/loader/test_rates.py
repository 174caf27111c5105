"""Repeats of classes from τ, and what a plan refuses to be asked."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wv_loader.plan import MAX_REPEAT_LIMIT, PlanOptions
from wv_loader.rates import ONE, class_rates, divide


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=40).filter(any), st.floats(0, 1), st.floats(1, 64))
def test_wanted_repeats_add_up_and_respect_the_cap(counts: list[int], tau: float, cap: float) -> None:
    rates = class_rates(counts, tau, cap)
    assert (rates >= 0).all()
    assert (rates <= int(cap * ONE)).all()
    assert sum(r * n for r, n in zip(rates.tolist(), counts, strict=True)) / ONE == pytest.approx(sum(counts), rel=1e-6)
    larger = [(n, r) for n, r in sorted(zip(counts, rates.tolist(), strict=True)) if n]
    assert all(a[1] >= b[1] - 1 for a, b in itertools.pairwise(larger))


FRACTIONS = st.integers(1, 2**47).flatmap(
    lambda whole: st.tuples(st.integers(0, min(whole, 2**47 - 1)), st.just(whole))
)


@given(FRACTIONS)
@example((2**47 - 1, 2**47))  # as of a class at the limit of repeats
def test_division_of_fixed_point_numbers_is_exact(fraction: tuple[int, int]) -> None:
    part, whole = fraction
    assert divide(np.array([part]), np.array([whole])).tolist() == [(part << 32) // whole]


def test_rates_at_the_largest_cap_fit_the_division() -> None:
    rates = class_rates([1, 10**9], 0.0, float(MAX_REPEAT_LIMIT))
    assert rates.tolist()[0] == MAX_REPEAT_LIMIT * ONE == 2**47


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 8, "balance": (1.5,)}, "balance"),
        ({"batch_size": 8, "balance": ()}, "balance"),
        ({"batch_size": 8, "balance": (1.0, float("nan"))}, "balance"),
        ({"batch_size": 8, "max_repeat": 0.5}, "max_repeat"),
        ({"batch_size": 8, "max_repeat": 40_000.0}, "max_repeat"),
        ({"batch_size": 8, "streams": 3}, "streams"),
        ({"batch_size": 8, "window": 0}, "window"),
        ({"batch_size": 8, "run_length": 0}, "run_length"),
        ({"batch_size": 8, "seed": -1}, "seed"),
    ],
)
def test_wrong_options_are_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanOptions(**wrong)  # type: ignore[arg-type]
