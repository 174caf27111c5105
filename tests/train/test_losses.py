"""Class weights, priors, and the weighted loss of a global batch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_train.losses import class_weights, gated_loss, logit_prior

KINDS = ("none", "inverse", "sqrt", "effective")


@given(
    st.lists(st.floats(0.0, 1e5).map(lambda x: 0.0 if x < 0.01 else x), min_size=1, max_size=30), st.sampled_from(KINDS)
)
def test_class_weights_have_mean_one_over_what_is_shown(exposure: list[float], kind: Any) -> None:
    shows = np.array(exposure)
    weights = class_weights(kind, shows).astype(np.float64)
    assert np.isfinite(weights).all()
    assert (weights[shows == 0] == 0).all()
    if shows.any():
        assert (shows * weights).sum() / shows.sum() == pytest.approx(1.0, rel=1e-4)


def test_class_weights_favour_the_rare_as_their_name_says() -> None:
    shows = np.array([100.0, 400.0])
    ratio = {kind: (weights := class_weights(kind, shows))[0] / weights[1] for kind in KINDS}  # type: ignore[arg-type]
    assert ratio["none"] == pytest.approx(1)
    assert ratio["inverse"] == pytest.approx(4)
    assert ratio["sqrt"] == pytest.approx(2)
    assert ratio["effective"] == pytest.approx((1 - 0.999**400) / (1 - 0.999**100), rel=1e-5)


def test_a_prior_is_the_logarithm_of_the_share_shown_and_finite_where_nothing_is() -> None:
    shows = np.array([300.0, 100.0, 0.0])
    balanced = logit_prior("balanced_softmax", shows, strength=7.0)
    adjusted = logit_prior("adjusted", shows, strength=0.5)
    assert balanced is not None
    assert adjusted is not None
    np.testing.assert_allclose(balanced[0] - balanced[1], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(adjusted, 0.5 * balanced, rtol=1e-6)
    assert np.isfinite(balanced).all()
    assert balanced[2] < balanced[1] - 4
    assert logit_prior("none", shows, strength=1.0) is None


def test_loss_is_the_weighted_sum_over_the_denominator_times_the_ranks() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weights = torch.tensor([1.0, 0.0, 2.0])
    assert gated_loss(losses, weights, denominator=torch.tensor(4.0), world_size=1).item() == pytest.approx(7 / 4)
    assert gated_loss(losses, weights, denominator=torch.tensor(3.0), world_size=2).item() == pytest.approx(2 * 7 / 3)


def test_nothing_kept_gives_a_zero_that_has_a_gradient_of_zeros() -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = gated_loss(losses, torch.zeros(2), denominator=torch.tensor(0.0), world_size=4)
    loss.backward()
    assert loss.item() == 0
    assert losses.grad is not None
    assert losses.grad.tolist() == [0, 0]
