"""Learning rates and the plateau rule."""

import pytest
import torch

from wv_train.models import make_model
from wv_train.optim import learning_rate, make_optimizer, set_learning_rate
from wv_train.plateau import PlateauDetector
from wv_train.recipe import OptimizerConfig, Phase, PlateauConfig


def test_step_schedule_multiplies_by_gamma_at_its_milestones() -> None:
    phase = Phase(name="a", steps=100, lr=1.0, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert [learning_rate(phase, step, 100) for step in (0, 49, 50, 74, 75)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_cosine_falls_from_the_peak_to_zero() -> None:
    phase = Phase(name="a", steps=100, lr=2.0, schedule="cosine")
    assert learning_rate(phase, 0, 100) == 2.0
    assert learning_rate(phase, 50, 100) == pytest.approx(1.0)
    assert learning_rate(phase, 99, 100) < 0.001


def test_warm_up_rises_linearly_to_the_peak() -> None:
    phase = Phase(name="a", steps=100, lr=1.0, warmup_steps=4)
    assert [learning_rate(phase, step, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_backbone_and_head_have_rates_of_their_own() -> None:
    model = make_model("wv_resnet_16_32_64", 3)
    optimizer = make_optimizer(model, OptimizerConfig())
    phase = Phase(name="a", steps=1, lr=0.1, backbone_factor=0.0, head_factor=2.0)
    assert set_learning_rate(optimizer, phase, 0.1) == (0.0, 0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("losses", "reached_after"),
    [
        ([3.0, 2.0, 1.0, 0.5, 0.4], None),  # falling: never
        ([3.0, 2.0, 2.0, 1.99, 1.0], 4),  # two windows without 2% of progress
        ([3.0, 2.0, 2.5, 1.0, 1.2, 1.1], 6),  # a better window starts the patience anew
    ],
)
def test_plateau_is_a_row_of_windows_without_progress(losses: list[float], reached_after: int | None) -> None:
    config = PlateauConfig(window_steps=10, patience_windows=2, min_drop_fraction=0.02)
    detector = PlateauDetector(config)
    reached = None
    for window, mean in enumerate(losses, start=1):
        for step in range(10):
            detector.update(mean + (0.5 if step % 2 else -0.5))  # noise within a window evens out
            copy = PlateauDetector(config)
            copy.load_state_dict(detector.state_dict())
            assert copy == detector
        if detector.reached and reached is None:
            reached = window
    assert reached == reached_after
