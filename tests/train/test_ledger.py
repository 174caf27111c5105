"""The ledger does not depend on who brought a row, and never disagrees with its history."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_shards import Overlay, OverlayMismatchError
from wv_train.errors import CheckpointError
from wv_train.ledger import LEDGER_DTYPE, Ledger, history_of

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


def _enter(ledger: Ledger, label_conf: float) -> None:
    """One visit of sample 1."""
    one = {"label_conf": np.array([label_conf]), "top1_conf": np.array([0.9])}
    ledger.update(np.array([1]), **one, prediction=np.array([0]), kept=np.array([True]))


BATCH = st.tuples(
    st.sampled_from(["shown", "skipped"]), st.lists(st.integers(-1, SAMPLES - 1), min_size=1, max_size=24)
)


@given(st.lists(BATCH, min_size=1, max_size=12))
def test_ledger_is_that_of_a_list_of_visits(batches: list[tuple[str, list[int]]]) -> None:
    ledger = Ledger(SAMPLES)
    visits: dict[int, list[tuple[float, float, int, bool]]] = {ordinal: [] for ordinal in range(SAMPLES)}
    skipped = dict.fromkeys(range(-1, SAMPLES), 0)
    for seed, (what, batch) in enumerate(batches):
        if what == "skipped":
            ledger.skip(np.array(batch))
            for ordinal in batch:
                skipped[ordinal] += 1
            continue
        columns = _update(ledger, np.array(batch), seed)
        for slot, ordinal in enumerate(batch):
            if ordinal >= 0:
                visits[ordinal].append(tuple(columns[name][slot] for name in columns))
    history = history_of(ledger.rows)
    for ordinal, of_it in visits.items():
        row = ledger.rows[ordinal]
        assert row["seen"] == len(of_it)
        assert row["gated"] == sum(not kept for *_, kept in of_it) + skipped[ordinal]
        assert row["prediction"] == (of_it[-1][2] if of_it else -1)
        if of_it:
            assert row["label_conf"] == pytest.approx(of_it[-1][0], rel=1e-6)
            assert row["top1_conf"] == pytest.approx(of_it[-1][1], rel=1e-6)
            assert row["label_conf_mean"] == pytest.approx(np.mean([visit[0] for visit in of_it]), rel=1e-5)
        last = [visit[0] for visit in of_it[-16:]]
        np.testing.assert_allclose(history[ordinal], last + [np.nan] * (16 - len(last)), atol=0.5 / 254 + 1e-6)


def test_history_holds_certainty_and_its_absence_exactly() -> None:
    ledger = Ledger(2)
    for value in (0.0, 1.0):
        _enter(ledger, value)
    assert ledger.rows["history"][1, :3].tolist() == [1, 255, 0]
    assert history_of(ledger.rows)[1, :2].tolist() == [0.0, 1.0]
    assert np.isnan(history_of(ledger.rows)[1, 2:]).all()
    assert np.isnan(history_of(ledger.rows)[0]).all()


def test_history_begins_with_the_oldest_of_the_last_sixteen_visits() -> None:
    ledger = Ledger(2)
    for visit in range(20):
        _enter(ledger, visit / 254)
    assert (history_of(ledger.rows)[1] * 254).round().tolist() == list(range(4, 20))


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
        _enter(ledger, value)
    label_sum, seen = ledger.history(torch.tensor([1, 0, -1]))
    assert seen.tolist() == [2, 0, 0]
    assert label_sum.tolist() == pytest.approx([0.6, 0, 0])


def test_counts_stop_at_the_largest_that_fits() -> None:
    ledger = Ledger(1)
    ledger.rows["seen"] = ledger.rows["gated"] = 65_535
    _update(ledger, np.zeros(20, dtype=np.int64), 0)  # some of them under the gate
    ledger.skip(np.zeros(3, dtype=np.int64))
    assert (ledger.rows["seen"][0], ledger.rows["gated"][0]) == (65_535, 65_535)


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


def test_the_ledger_of_a_checkpoint_of_format_1_goes_on_without_its_history() -> None:
    names = [name for name in LEDGER_DTYPE.names or () if name != "history"]
    was = Ledger(SAMPLES)
    _update(was, np.arange(SAMPLES), 0)
    old = np.zeros(SAMPLES, dtype=[(name, LEDGER_DTYPE[name]) for name in names])
    for name in names:
        old[name] = was.rows[name]
    assert old.itemsize == 20
    ledger = Ledger(SAMPLES)
    ledger.load_state(torch.from_numpy(old.view(np.uint8)))
    assert (ledger.rows[names] == was.rows[names]).all()
    assert np.isnan(history_of(ledger.rows)).all()
    columns = _update(ledger, np.arange(SAMPLES), 1)
    history = history_of(ledger.rows)
    assert np.isnan(history[:, 0]).all()  # seen, but not recorded
    np.testing.assert_allclose(history[:, 1], columns["label_conf"], atol=0.5 / 254 + 1e-6)


@pytest.mark.parametrize("nbytes", [0, 36 * (SAMPLES - 1), 20 * (SAMPLES + 1)])
def test_a_ledger_of_another_size_is_refused(nbytes: int) -> None:
    with pytest.raises(CheckpointError, match=r"for each of 12 samples, found .* resume from last\.pt"):
        Ledger(SAMPLES).load_state(torch.zeros(nbytes, dtype=torch.uint8))
