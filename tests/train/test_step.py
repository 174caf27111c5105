"""One step: zero steps move nothing, bad slots teach nothing, a broken loss stops before it does harm."""

from collections.abc import Callable

import pytest
import torch

from wv_loader import Batch
from wv_train.distributed import World
from wv_train.gate import GateConfig
from wv_train.guard import ClassGuard
from wv_train.judge import StepSetting
from wv_train.learner import Learner
from wv_train.ledger import Ledger
from wv_train.models import make_model
from wv_train.optim import make_optimizer
from wv_train.recipe import OptimizerConfig
from wv_train.step import Place, TrainStep

TOP1 = GateConfig(start=0.999, kind="top1")
LABEL_AVERAGE = GateConfig(start=0.9, kind="label_average")
WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def _setting(**changes: object) -> StepSetting:
    plain = {
        "class_weights": torch.ones(5),
        "gate": None,
        "threshold": 0.0,
        "label_smoothing": 0.0,
        "denominator": "all",
    }
    return StepSetting(**{**plain, **changes})  # type: ignore[arg-type]


def _step(name: str = "wv_resnet_16_32_64") -> tuple[torch.nn.Module, TrainStep]:
    torch.manual_seed(0)
    model = make_model(name, 5)
    optimizer = make_optimizer(model, OptimizerConfig())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    learner = Learner(model, world=WORLD, amp="auto")
    return model, TrainStep(learner=learner, optimizer=optimizer, ledger=Ledger(64), guard=ClassGuard(5), seed=0)


def _parameters(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_all_gated_is_a_counted_zero_step(denominator: str, draw_batch: Callable[..., Batch]) -> None:
    model, step = _step()
    step(draw_batch(8, seed=1), _setting(), Place())  # the optimiser has momentum now
    before = _parameters(model)
    result = step(
        draw_batch(8),
        _setting(gate=TOP1, threshold=0.999, denominator=denominator),
        Place(step=1),
    )
    assert (result.totals.zero_steps, result.totals.kept, result.totals.samples) == (1, 0, 8)
    assert result.finite
    assert all(torch.equal(a, b) for a, b in zip(before, _parameters(model), strict=True))
    assert step.ledger.rows["gated"].sum() == 8


def test_all_invalid_is_a_zero_step_that_the_ledger_does_not_see(draw_batch: Callable[..., Batch]) -> None:
    model, step = _step()
    before = _parameters(model)
    result = step(draw_batch(4, invalid=(0, 1, 2, 3)), _setting(denominator="kept"), Place())
    assert (result.totals.zero_steps, result.totals.samples, result.totals.mean_loss) == (1, 0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, _parameters(model), strict=True))
    assert step.ledger.rows["seen"].sum() == 0


def test_invalid_slots_change_neither_weights_nor_ledger(draw_batch: Callable[..., Batch]) -> None:
    whole = draw_batch(6, invalid=(1, 4))
    good = [0, 2, 3, 5]
    few = Batch(
        images=whole.images[good],
        labels=whole.labels[good],
        ordinals=whole.ordinals[good],
        valid=whole.valid[good],
        index=0,
    )
    (model_a, step_a), (model_b, step_b) = _step("wv_resnet_16_32_64_gn"), _step("wv_resnet_16_32_64_gn")
    step_a(whole, _setting(), Place())
    step_b(few, _setting(), Place())
    for a, b in zip(_parameters(model_a), _parameters(model_b), strict=True):
        torch.testing.assert_close(a, b)
    assert set(step_a.ledger.rows["seen"].nonzero()[0]) == set(few.ordinals.tolist())
    assert (step_a.ledger.rows["seen"] == step_b.ledger.rows["seen"]).all()


def test_batch_norm_sees_the_valid_pictures_only(draw_batch: Callable[..., Batch]) -> None:
    """An epoch's last batch was two pictures and padding: the gradient exploded, running statistics were of nothing."""
    padded = draw_batch(8, invalid=(1, 2, 3, 5, 6, 7))
    padded.images[~padded.valid] = 0
    twice = [0, 4] * 4
    full = Batch(
        images=padded.images[twice],
        labels=padded.labels[twice],
        ordinals=padded.ordinals[twice],
        valid=padded.valid[twice],
        index=0,
    )
    (model_a, step_a), (model_b, step_b) = _step(), _step()
    step_a(padded, _setting(), Place())
    step_b(full, _setting(), Place())
    for a, b in zip(model_a.state_dict().values(), model_b.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_label_average_gate_uses_the_earlier_visits(draw_batch: Callable[..., Batch]) -> None:
    batch = draw_batch(8)
    _, step = _step()
    believed = batch.ordinals[:3].numpy()
    step.ledger.rows["seen"][believed] = 100
    step.ledger.rows["label_conf_mean"][believed] = 0.99
    result = step(batch, _setting(gate=LABEL_AVERAGE, threshold=0.9), Place())
    assert result.totals.kept == 3
    assert sorted(step.ledger.rows["gated"].nonzero()[0]) == sorted(batch.ordinals[3:].tolist())


def test_a_loss_that_is_not_finite_updates_nothing(draw_batch: Callable[..., Batch]) -> None:
    model, step = _step()
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    before = _parameters(model)
    result = step(draw_batch(8), _setting(), Place())
    assert not result.finite
    assert all(torch.equal(a, b) for a, b in zip(before, _parameters(model), strict=False) if not a.isnan().any())
    assert step.ledger.rows["seen"].sum() == 0


def test_gating_trains_only_on_what_it_keeps(draw_batch: Callable[..., Batch]) -> None:
    batch = draw_batch(8)
    keep = batch.ordinals[::2].numpy()
    (model_a, step_a), (model_b, step_b) = _step("wv_resnet_16_32_64_gn"), _step("wv_resnet_16_32_64_gn")
    step_a.ledger.rows["seen"][keep] = 50
    step_a.ledger.rows["label_conf_mean"][keep] = 0.99
    step_a(batch, _setting(gate=LABEL_AVERAGE, threshold=0.9, denominator="kept"), Place())
    half = Batch(
        images=batch.images[::2],
        labels=batch.labels[::2],
        ordinals=batch.ordinals[::2],
        valid=batch.valid[::2],
        index=0,
    )
    step_b(half, _setting(), Place())
    for a, b in zip(_parameters(model_a), _parameters(model_b), strict=True):
        torch.testing.assert_close(a, b)
