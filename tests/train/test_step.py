"""One step: zero steps move nothing, bad slots teach nothing, a broken loss stops before it does harm."""

from collections.abc import Callable

import pytest
import torch

from wv_loader import Batch
from wv_train.distributed import World
from wv_train.errors import TrainError
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


def _step(
    name: str = "wv_resnet_16_32_64", *, amp: str = "auto", clip_norm: float = 0.0
) -> tuple[torch.nn.Module, TrainStep]:
    torch.manual_seed(0)
    model = make_model(name, 5)
    optimizer = make_optimizer(model, OptimizerConfig())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    learner = Learner(model, world=WORLD, amp=amp)
    return model, TrainStep(
        learner=learner, optimizer=optimizer, ledger=Ledger(64), guard=ClassGuard(5), seed=0, clip_norm=clip_norm
    )


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


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_teaches_what_full_precision_does_within_its_own(
    amp: str, draw_batch: Callable[..., Batch]
) -> None:
    """On a CPU too, where a recipe asks for it by name; fp16 with a scaler, whose state grows."""
    (model_a, step_a), (model_b, step_b) = _step(), _step(amp=amp)
    batch = draw_batch(16)
    for number in range(3):
        step_a(batch, _setting(), Place(step=number))
        step_b(batch, _setting(), Place(step=number))
    assert step_b.learner.scaler.is_enabled() == (amp == "fp16")
    assert step_a.learner.scaler.state_dict() == {}
    moved = [(b - a).norm() / a.norm() for a, b in zip(_parameters(model_a), _parameters(model_b), strict=True)]
    assert 0 < max(moved) < 0.3
    assert all(parameter.dtype == torch.float32 for parameter in model_b.parameters())


def test_clipping_scales_the_whole_gradient_down_to_its_norm(draw_batch: Callable[..., Batch]) -> None:
    batch = draw_batch(8)
    (_, free), (model, clipped) = _step(), _step(clip_norm=0.01)
    free(batch, _setting(), Place())
    clipped(batch, _setting(), Place())
    found = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert found == pytest.approx(0.01, rel=1e-3)
    before = torch.stack([p.grad.norm() for p in free.learner.model.parameters() if p.grad is not None]).norm()
    assert float(clipped.grad_norm_sum) == pytest.approx(before.item(), rel=1e-4)
    assert before > 0.1


@pytest.mark.parametrize("name", ["wv_resnet_16_32_64", "wv_resnet_16_32_64_gn"])
def test_a_frozen_backbone_neither_moves_nor_notes_statistics(name: str, draw_batch: Callable[..., Batch]) -> None:
    model, step = _step(name)
    head = {id(parameter) for parameter in model.fc.parameters()}
    step.learner.begin_phase(frozen=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step(draw_batch(8), _setting(gate=TOP1, threshold=0.0, two_passes=True), Place())
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if not key.startswith("fc."))
    assert not torch.equal(before["fc.weight"], after["fc.weight"])
    step.learner.begin_phase(frozen=False)
    step(draw_batch(8), _setting(), Place(step=1))
    assert not torch.equal(before["stem.0.weight"], model.state_dict()["stem.0.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters() if id(parameter) not in head)


def test_ranks_at_different_places_are_refused(
    draw_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, step = _step()

    def other_phase(_self: World, rows: torch.Tensor) -> torch.Tensor:
        theirs = rows.clone()
        theirs[0, 1] += 1  # the header: signal, phase, step
        return torch.stack([rows, theirs])

    step.learner.world = step._world = World(rank=0, size=2, device=torch.device("cpu"))
    monkeypatch.setattr(World, "all_gather", other_phase)
    before = _parameters(model)
    with pytest.raises(TrainError, match="ranks are at different places: phase 1 step 9, phase 2 step 9"):
        step(draw_batch(8), _setting(), Place(phase=1, step=9))
    assert all(torch.equal(a, b) for a, b in zip(before, _parameters(model), strict=True))
