"""The zoo: every network in the table is what the table says, learns under a gate, and comes back from a checkpoint."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from wv_loader import Batch
from wv_train.checkpoint import Checkpoint
from wv_train.distributed import World
from wv_train.gate import GateConfig
from wv_train.guard import ClassGuard
from wv_train.judge import StepSetting
from wv_train.learner import Learner
from wv_train.ledger import Ledger
from wv_train.models import SMALL_MODELS, features, head_names, make_model, normalization, own_size_px
from wv_train.optim import make_optimizer
from wv_train.recipe import OptimizerConfig
from wv_train.step import Place, StepResult, TrainStep
from wv_train.zoo import ZOO, ZooModel, as_markdown, as_text

CLASSES = 5
SMALLEST_PX = {"Inception": 75}
"""What a family's layers still take; the others' take 32."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def test_names_are_timms_and_none_comes_twice() -> None:
    assert all(timm.is_model(model.name) for model in ZOO)
    assert len({model.name for model in ZOO}) == len(ZOO)


def test_the_page_and_the_command_show_this_table() -> None:
    assert as_markdown() in PAGE.read_text(encoding="utf-8"), f"docs/models.md should hold:\n{as_markdown()}"
    text = as_text(list(SMALL_MODELS))
    assert all(f"{model.parameters:,}" in text for model in ZOO)
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.slow
@pytest.mark.parametrize("row", ZOO, ids=lambda row: row.name)
def test_each_network_is_as_listed_takes_a_gated_step_and_comes_back_from_a_checkpoint(
    row: ZooModel, draw_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make_model(row.name, CLASSES).to(memory_format=torch.channels_last)
    assert (own_size_px(row.name), normalization(model)) == (row.size_px, row.normalization)
    (head,) = (model.get_submodule(name) for name in head_names(model))
    assert isinstance(head, nn.Linear)
    assert _parameters(model) + (1000 - CLASSES) * (head.in_features + 1) == row.parameters

    batch = draw_batch(4, classes=CLASSES, size_px=SMALLEST_PX.get(row.family, 32))
    first = next(model.parameters())
    before = first.detach().clone(), head.weight.detach().clone()
    result = _gated_step(model, batch)
    assert (result.totals.kept, result.totals.samples, result.totals.zero_steps) == (2, 4, 0)
    assert result.finite
    assert not torch.equal(before[0], first)
    assert not torch.equal(before[1], head.weight)

    model.eval()
    with torch.no_grad():
        images = batch.normalized(*normalization(model))[:2]
        logits, pooled = model(images), features(model, images)
        assert pooled.shape == (2, head.in_features)
        torch.testing.assert_close(head(pooled), logits)
        assert logits.isfinite().all()
        assert logits.any()
        _save(model, tmp_path / "last.pt")
        for tensor in model.state_dict().values():
            tensor.zero_()
        model.load_state_dict(Checkpoint.load(tmp_path / "last.pt").model)
        assert torch.equal(model(images), logits)
    (tmp_path / "last.pt").unlink()
    del model, head, first
    gc.collect()


def _gated_step(model: nn.Module, batch: Batch) -> StepResult:
    """One step that learns from the more confident half of a batch."""
    optimizer = make_optimizer(model, OptimizerConfig())
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    gate = GateConfig(start=0.5, unit="share")
    world = World(rank=0, size=1, device=torch.device("cpu"))
    learner = Learner(model, world=world, amp="auto")
    step = TrainStep(learner=learner, optimizer=optimizer, ledger=Ledger(64), guard=ClassGuard(CLASSES), seed=0)
    setting = StepSetting(
        class_weights=torch.ones(CLASSES), gate=gate, threshold=0.5, label_smoothing=0.0, denominator="all"
    )
    return step(batch, setting, Place())


def _save(model: nn.Module, path: Path) -> None:
    """As a run does, without an optimiser's state, which is no part of the model."""
    Checkpoint(
        manifest_digest="a" * 32,
        classes=[str(class_id) for class_id in range(CLASSES)],
        recipe={},
        position={},
        model=model.state_dict(),
        optimizer={},
        scaler={},
        loader=None,
        ledger=torch.zeros(1, dtype=torch.uint8),
        totals={},
        plateau={},
        metrics_bytes=0,
        best_top1=None,
        torch_threads=1,
        world_size=1,
    ).save(path)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
