"""Class weights, and law 8: the gated, weighted gradient of a global batch does not depend on the number of ranks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_loader import Batch
from wv_train.gate import GateConfig
from wv_train.losses import class_weights, gated_loss
from wv_train.models import make_model, normalization
from wv_train.step import StepSetting, decide, judge

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


def _gradients(batch: Batch, ranks: int, setting: StepSetting, seen: torch.Tensor) -> list[torch.Tensor]:
    """What DDP would hand to the optimiser: the mean over ranks of each rank's gradient."""
    torch.manual_seed(0)
    model = make_model("wv_resnet_16_32_64_gn", 5)
    mean, std = normalization(model)
    judged = []
    for part in torch.arange(len(batch.labels)).chunk(ranks):
        share = Batch(
            images=batch.images[part],
            labels=batch.labels[part],
            ordinals=batch.ordinals[part],
            valid=batch.valid[part],
            index=0,
        )
        judged.append(judge(model(share.normalized(mean, std)), share, setting, 0.4 * seen[part], seen[part]))
    decision = decide(torch.cat([rows for _, rows in judged]).numpy(), setting)
    assert 0 < decision.keep.sum() < batch.valid.sum() or setting.gate is None
    for (losses, _), weights in zip(judged, decision.weights.reshape(ranks, -1), strict=True):
        mine = torch.from_numpy(weights).float()
        loss = gated_loss(losses, mine, denominator=decision.denominator, world_size=ranks)
        (loss / ranks).backward()  # gradients of the ranks add up in the same parameters
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("denominator", ["all", "kept"])
@pytest.mark.parametrize(
    ("gate", "threshold"),
    [
        (None, 0.0),
        (GateConfig(start=0.5, kind="top1"), 0.25),
        (GateConfig(start=0.5, kind="label"), 0.2),
        (GateConfig(start=0.5, kind="label_average"), 0.25),
        (GateConfig(start=0.5, kind="label_average", unit="share"), 0.4),
    ],
)
def test_gradient_of_a_global_batch_does_not_depend_on_the_ranks(
    gate: GateConfig | None, threshold: float, denominator: str, draw_batch: Callable[..., Batch]
) -> None:
    batch = draw_batch(16, invalid=(2, 12, 13, 14, 15))  # with 4 ranks the last has nothing valid
    seen = torch.arange(16) % 3 * 1.0
    setting = StepSetting(
        class_weights=torch.tensor([0.5, 2.0, 1.0, 0.0, 1.5]),
        gate=gate,
        threshold=threshold,
        label_smoothing=0.1,
        denominator=denominator,
    )
    one, two, four = (_gradients(batch, ranks, setting, seen) for ranks in (1, 2, 4))
    assert any(gradient.abs().max() > 1e-3 for gradient in one)
    for a, b, c in zip(one, two, four, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(c, a, rtol=1e-4, atol=1e-6)


def test_loss_is_the_weighted_sum_over_the_denominator_times_the_ranks() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weights = torch.tensor([1.0, 0.0, 2.0])
    assert gated_loss(losses, weights, denominator=4.0, world_size=1).item() == pytest.approx(7 / 4)
    assert gated_loss(losses, weights, denominator=3.0, world_size=2).item() == pytest.approx(2 * 7 / 3)


def test_nothing_kept_gives_a_zero_that_has_a_gradient_of_zeros() -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = gated_loss(losses, torch.zeros(2), denominator=0.0, world_size=4)
    loss.backward()
    assert loss.item() == 0
    assert losses.grad is not None
    assert losses.grad.tolist() == [0, 0]
