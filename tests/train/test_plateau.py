"""Where the plateau rule fires: on recorded losses of real runs (`curves/record.py`), and what it does not look at."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wv_train.plateau import PlateauDetector
from wv_train.recipe import PlateauConfig

CURVES: dict[str, NDArray[np.float64]] = {
    name: losses.astype(np.float64) for name, losses in np.load(Path(__file__).parent / "curves" / "curves.npz").items()
}


def fires(losses: NDArray[np.float64], config: PlateauConfig) -> int | None:
    """Steps after which the phase ends."""
    detector = PlateauDetector(config)
    for step, loss in enumerate(losses, start=1):
        detector.update(float(loss))
        if detector.reached:
            return step
    return None


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("falling", None),  # 4% and more every 500 steps to the end
        ("rate_step", None),  # flattens before the rate falls at 2,500, and falls steeply after it
        ("noisy", None),  # batches of 64, 1.2 … 3% every 500 steps
        ("slow", None),  # a rate far too small: 1% every 500 steps, far from its end
        ("stable", 2500),  # 0.3% every 500 steps from step 1,500 on
    ],
)
def test_the_defaults_end_the_run_that_is_stable_and_no_other(name: str, step: int | None) -> None:
    assert fires(CURVES[name], PlateauConfig()) == step


def test_less_patience_would_take_slow_learning_for_none() -> None:
    # Why the default is 3: over two windows this run falls by the very 2% that are asked for.
    assert fires(CURVES["slow"], PlateauConfig(patience_windows=2)) == 4000


@pytest.mark.parametrize(("name", "ends"), [("noisy", False), ("slow", False), ("stable", True)])
def test_noise_does_not_decide(name: str, ends: bool) -> None:
    """The same run with its noise dealt out anew, twenty times."""
    losses = CURVES[name]
    pieces = losses[: len(losses) // 100 * 100].reshape(-1, 100)
    trend = pieces.mean(axis=1, keepdims=True)
    for seed in range(20):
        noise = np.random.default_rng(seed).permutation((pieces - trend).ravel()).reshape(pieces.shape)
        fired = fires((trend + noise).ravel(), PlateauConfig())
        assert (fired is not None) == ends
        if fired is not None:
            assert 2000 <= fired <= 4000


def test_a_window_as_short_as_its_noise_would_decide_by_chance() -> None:
    # What the page says about the choice of a window: 20 steps of batch 64 are known to some 2% only.
    assert (fires(CURVES["noisy"], PlateauConfig(window_steps=20)) or 0) < 500


def test_the_rule_is_about_steps_so_small_falls_add_up() -> None:
    config = PlateauConfig(window_steps=10, patience_windows=3, min_drop_fraction=0.02)
    each = np.repeat(0.99 ** np.arange(100), 10)  # 1% a window, 3% in the three of its patience
    assert fires(each, config) is None
    slower = np.repeat(0.995 ** np.arange(100), 10)
    assert fires(slower, config) == 40


def test_steps_without_a_finite_loss_do_not_count() -> None:
    losses = CURVES["stable"]
    broken = np.insert(losses, [0, 700, 700, 1900], [np.nan, np.inf, np.nan, np.inf])
    assert fires(broken, PlateauConfig()) == 2504


def test_it_goes_on_where_its_state_was_taken_whatever_the_step() -> None:
    losses = CURVES["stable"][:2500]
    for stop in (1, 499, 500, 501, 2499):
        first = PlateauDetector(PlateauConfig())
        for loss in losses[:stop]:
            first.update(float(loss))
        second = PlateauDetector(PlateauConfig())
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))  # plain values
        for step, loss in enumerate(losses[stop:], start=stop + 1):
            assert not second.reached
            second.update(float(loss))
            assert second.reached == (step == 2500)
