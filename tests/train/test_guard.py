"""The guard: classes that are shut out are let in again, and only those."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_train.guard import ClassGuard

visits = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.booleans()), min_size=0, max_size=60)


def _columns(rows: list[tuple[int, float, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    labels, held, keep = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(labels, dtype=np.int64), np.array(held, dtype=np.float64), np.array(keep, dtype=bool)


def test_a_class_that_keeps_nothing_is_let_in_by_its_own_mean() -> None:
    guard = ClassGuard(3)
    assert guard.limits(0.1) is None
    labels, held = np.repeat([0, 1], 40), np.tile([0.1, 0.3], 40)
    keep = labels == 0
    for _ in range(5):
        guard.update(labels, held, keep)
    limits = guard.limits(0.1)
    assert limits is not None
    assert np.isinf(limits[[0, 2]]).all()  # one is kept, one was never seen
    assert abs(limits[1] - 0.2) < 0.01
    guard.update(labels, held, np.ones_like(keep))
    assert guard.limits(0.1) is None


@given(visits)
def test_figures_stay_between_their_extremes_and_untouched_classes_stay(rows: list[tuple[int, float, bool]]) -> None:
    guard = ClassGuard(5)
    guard.update(*_columns(rows))
    state = guard.state()
    assert ((state["kept_share"] >= 0) & (state["kept_share"] <= 1)).all()
    assert ((state["mean_held"] >= 0) & (state["mean_held"] <= 1)).all()
    seen = {label for label, _, _ in rows}
    assert all(state["kept_share"][label] == 1 for label in set(range(5)) - seen)


@given(visits)
def test_its_state_is_all_that_it_knows(rows: list[tuple[int, float, bool]]) -> None:
    one, other = ClassGuard(4), ClassGuard(4)
    one.update(*_columns(rows))
    other.load_state(one.state())
    one.update(*_columns(rows[::-1]))
    other.update(*_columns(rows[::-1]))
    assert all(torch.equal(value, other.state()[name]) for name, value in one.state().items())
