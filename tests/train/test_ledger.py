"""The ledger does not depend on who brought a row, and never disagrees with its history."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_shards import Overlay, OverlayMismatchError
from wv_train.ledger import LEDGER_DTYPE, Ledger

SAMPLES = 12


def _update(ledger: Ledger, ordinals: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    columns = {
        "label_conf": generator.random(len(ordinals)),
        "top1_conf": generator.random(len(ordinals)),
        "prediction": generator.integers(0, 9, len(ordinals)),
        "kept": generator.random(len(ordinals)) < 0.5,
    }
    ledger.update(ordinals, **columns)
    return columns


@given(st.lists(st.lists(st.integers(-1, SAMPLES - 1), min_size=1, max_size=16), min_size=1, max_size=6))
def test_ledger_counts_every_visit_and_averages_over_them(batches: list[list[int]]) -> None:
    ledger = Ledger(SAMPLES)
    history: dict[int, list[tuple[float, float, int, bool]]] = {}
    for seed, batch in enumerate(batches):
        columns = _update(ledger, np.array(batch), seed)
        for slot, ordinal in enumerate(batch):
            if ordinal >= 0:
                history.setdefault(ordinal, []).append(tuple(columns[name][slot] for name in columns))
    for ordinal in range(SAMPLES):
        row, visits = ledger.rows[ordinal], history.get(ordinal, [])
        assert row["seen"] == len(visits)
        assert row["gated"] == sum(not kept for *_, kept in visits)
        assert row["prediction"] == (visits[-1][2] if visits else -1)
        if visits:
            assert row["label_conf"] == pytest.approx(visits[-1][0], rel=1e-6)
            assert row["top1_conf"] == pytest.approx(visits[-1][1], rel=1e-6)
            assert row["label_conf_mean"] == pytest.approx(np.mean([visit[0] for visit in visits]), rel=1e-5)


@given(st.permutations(range(SAMPLES)))
def test_order_of_different_samples_within_a_batch_makes_no_difference(order: list[int]) -> None:
    one, other = Ledger(SAMPLES), Ledger(SAMPLES)
    for seed in range(3):
        columns = _update(one, np.arange(SAMPLES), seed)
        other.update(np.array(order), **{name: values[order] for name, values in columns.items()})
    assert (one.rows == other.rows).all()


def test_history_gives_sums_and_counts_and_nothing_for_padding() -> None:
    ledger = Ledger(3)
    for value in (0.2, 0.4):
        ledger.update(
            np.array([1]),
            label_conf=np.array([value]),
            top1_conf=np.array([0.9]),
            prediction=np.array([0]),
            kept=np.array([True]),
        )
    label_sum, seen = ledger.history(torch.tensor([1, 0, -1]))
    assert seen.tolist() == [2, 0, 0]
    assert label_sum.tolist() == pytest.approx([0.6, 0, 0])


def test_counts_stop_at_the_largest_that_fits() -> None:
    ledger = Ledger(1)
    ledger.rows["seen"] = ledger.rows["gated"] = 65_535
    _update(ledger, np.array([0]), 0)
    assert ledger.rows["seen"][0] == 65_535


def test_state_and_overlay_hold_the_same_rows(tmp_path: Path) -> None:
    ledger = Ledger(SAMPLES)
    _update(ledger, np.arange(SAMPLES), 0)
    ledger.save(tmp_path / "ledger", "a" * 32, step=5)
    overlay = Overlay.load(tmp_path / "ledger", manifest_digest="a" * 32, kind="ledger")
    assert overlay.array.dtype == LEDGER_DTYPE
    assert overlay.neutral == {"prediction": -1}, "so a grown data set's new samples read as never seen"
    assert np.array_equal(Ledger(1).rows["prediction"], [-1])
    again = Ledger(SAMPLES)
    again.load_state(ledger.state())
    assert (again.rows == overlay.array).all()
    with pytest.raises(OverlayMismatchError):
        Overlay.load(tmp_path / "ledger", manifest_digest="b" * 32)
