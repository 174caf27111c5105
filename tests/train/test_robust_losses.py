"""Losses for wrong labels: the formulas of their papers, stable in float32, and elr's memory of every sample."""

import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wv_train.distributed import World
from wv_train.errors import CheckpointError, RecipeError
from wv_train.judge import Slots, StepSetting, sample_losses
from wv_train.learner import Learner
from wv_train.lesson import Lesson
from wv_train.mixup import Mix
from wv_train.models import make_model
from wv_train.plateau import PlateauDetector
from wv_train.recipe import PlateauConfig, recipe_from_table
from wv_train.robust_losses import LossConfig, renewed_targets, robust_losses
from wv_train.table import to_table, to_toml
from wv_train.target_memory import TargetMemory

CLASSES = 6
CONFIGS = (
    LossConfig(kind="gce"),
    LossConfig(kind="gce", q=1.0),
    LossConfig(kind="sce"),
    LossConfig(kind="sce", alpha=6.0, beta=0.1, log_zero=-6.0),
    LossConfig(kind="elr"),
    LossConfig(kind="elr", elr_lambda=7.0, elr_beta=0.9),
)
NAMES = [str(config) for config in CONFIGS]


def draw(scale: float, samples: int = 24, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, K), labels (n,), and targets (n, 2K) of elr after an earlier visit."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, CLASSES, generator=generator)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    memory = TargetMemory(samples, classes=CLASSES, top_k=CLASSES)
    everyone = np.arange(samples)
    earlier = torch.randn(samples, CLASSES, generator=generator)
    memory.update(everyone, renewed_targets(earlier, memory.recall(everyone), 0.5).double().numpy())
    return logits, labels, memory.recall(everyone)


def whole(targets: Tensor) -> Tensor:
    """t of every class, (n, K) float64."""
    class_ids, values = targets.double().chunk(2, dim=1)
    return torch.zeros(len(targets), CLASSES, dtype=torch.float64).scatter_add_(1, class_ids.long(), values)


def textbook(logits: Tensor, labels: Tensor, targets: Tensor, config: LossConfig) -> Tensor:
    """The formulas as the papers print them."""
    p = logits.softmax(dim=1)
    truth = F.one_hot(labels, CLASSES).to(p.dtype)
    p_label = (p * truth).sum(dim=1)
    if config.kind == "gce":
        return (1 - p_label**config.q) / config.q
    plain = -(truth * logits.log_softmax(dim=1)).sum(dim=1)
    if config.kind == "sce":
        log_truth = torch.where(truth > 0, 0.0, config.log_zero)
        return config.alpha * plain + config.beta * -(p * log_truth).sum(dim=1)
    p = p.clamp(1e-4, 1 - 1e-4)
    present = (p / p.sum(dim=1, keepdim=True)).detach()
    t = config.elr_beta * whole(targets) + (1 - config.elr_beta) * present
    return plain + config.elr_lambda * (1 - (p * t).sum(dim=1)).log()


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_losses_and_their_gradients_are_the_textbooks(config: LossConfig, scale: float) -> None:
    logits, labels, targets = draw(scale)
    single, double = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = robust_losses(single, labels, targets, config)
    expected = textbook(double, labels, targets, config)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), single)
    (wanted,) = torch.autograd.grad(expected.sum(), double)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-3, atol=1e-5)
    assert wanted.abs().max() > 1e-2


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_confident_and_hopeless_samples_have_finite_losses_and_gradients(config: LossConfig) -> None:
    logits = torch.full((4, CLASSES), -80.0)
    logits[:2, 0], logits[2:] = 80.0, 80.0
    logits[3, 1] = -80.0
    logits.requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])  # sure and right, sure and wrong, sure of nothing, all but the label
    sure = torch.zeros(4, 2 * CLASSES)
    sure[:, CLASSES:] = torch.tensor([1.0, *[1e-3] * (CLASSES - 1)])  # of class 0, and too much in all: rounded up
    losses = robust_losses(logits, labels, sure, config)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_phases_prior_comes_before_the_loss() -> None:
    logits, labels, targets = draw(1.0)
    prior = torch.linspace(-3, 0, CLASSES)
    none = torch.zeros(len(labels))
    slots = Slots(labels=labels, ordinals=labels, weights=none, label_sum=none, seen=none, targets=targets)
    for config in CONFIGS:
        setting = _setting(loss=config, prior=prior)
        expected = robust_losses(logits + prior, labels, targets, config)
        assert torch.equal(sample_losses(logits, slots, setting), expected)


def test_blended_pictures_learn_both_labels_by_the_phases_loss() -> None:
    _, labels, _ = draw(1.0, samples=8)
    images = torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
    model = make_model("wv_resnet_16_32_64", CLASSES)
    learner = Learner(model, world=World(rank=0, size=1, device=torch.device("cpu")), amp="off", micro_batch=3)
    none = torch.zeros(8)
    slots = Slots(labels=labels, ordinals=labels, weights=none, label_sum=none, seen=none)
    config = LossConfig(kind="gce")
    partners = torch.arange(8).roll(1)
    lesson = Lesson(
        images=images, slots=slots, setting=_setting(loss=config), mix=Mix(share=0.3, distance=1), partners=partners
    )
    for piece, logits, losses in lesson.forward(learner):
        torch.testing.assert_close(losses[0], robust_losses(logits, labels[piece], None, config))
        torch.testing.assert_close(losses[1], robust_losses(logits, labels[partners][piece], None, config))


@pytest.mark.parametrize("beta", [0.0, 0.7, 0.9])
def test_elrs_memory_is_the_papers_running_mean_to_float16(beta: float) -> None:
    memory = TargetMemory(3, classes=CLASSES, top_k=10)
    ordinals = np.array([2, 0])
    expected = torch.zeros(2, CLASSES, dtype=torch.float64)
    for visit in range(6):
        logits = draw(2.0, samples=2, seed=visit)[0]
        memory.update(ordinals, renewed_targets(logits, memory.recall(ordinals), beta).double().numpy())
        p = logits.double().softmax(dim=1).clamp(1e-4, 1 - 1e-4)
        expected = beta * expected + (1 - beta) * p / p.sum(dim=1, keepdim=True)
        torch.testing.assert_close(whole(memory.recall(ordinals)), expected, rtol=2e-3, atol=1e-6)
    assert not memory.rows[1]["value"].any()  # was never seen


def test_elrs_memory_keeps_the_largest_values_with_their_classes() -> None:
    logits, _, _ = draw(2.0, samples=5)
    everyone = np.arange(5)
    few, all_of_them = (TargetMemory(5, classes=CLASSES, top_k=top_k) for top_k in (2, 10))
    for memory in (few, all_of_them):
        memory.update(everyone, renewed_targets(logits, memory.recall(everyone), 0.7).double().numpy())
    assert few.rows["class_id"].shape == (5, 2)
    for name in ("class_id", "value"):
        assert (few.rows[name] == all_of_them.rows[name][:, :2]).all()
    best = torch.from_numpy(few.rows["class_id"][:, 0].astype(np.int64))
    assert torch.equal(best, logits.argmax(dim=1))


def test_of_a_sample_twice_in_a_batch_the_last_counts_and_empty_slots_none() -> None:
    memory = TargetMemory(4, classes=CLASSES, top_k=1)
    rows = np.array([[1, 0.1], [2, 0.2], [3, 0.3], [4, 0.4]])
    memory.update(np.array([2, -1, 2, 0]), rows)
    assert memory.rows["class_id"].ravel().tolist() == [4, 0, 3, 0]
    assert memory.rows["value"].ravel().tolist() == pytest.approx([0.4, 0, 0.3, 0], rel=1e-3)


def test_elrs_memory_goes_on_where_it_was_saved_and_refuses_other_data() -> None:
    memory = TargetMemory(7, classes=70_000, top_k=3)
    rows = np.random.default_rng(0).integers(0, 70_000, (7, 6)).astype(np.float64) / [1, 1, 1, 1e5, 1e5, 1e5]
    memory.update(np.arange(7), rows)
    other = TargetMemory(7, classes=70_000, top_k=3)
    other.load_state(memory.state())
    assert (other.rows == memory.rows).all()
    assert (memory.rows["class_id"] == rows[:, :3]).all()  # more than 16 bits hold
    other.rows["value"] = 0
    assert memory.rows["value"].any()  # a copy
    for found in (TargetMemory(8, classes=70_000, top_k=3), TargetMemory(7, classes=70_001, top_k=3)):
        with pytest.raises(CheckpointError, match="the checkpoint's memory of elr: expected 18 bytes for each of"):
            found.load_state(memory.state())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.kind=gse", "loss.kind: expected one of"),
        ("loss.q=0", "loss.q: expected 0 < q <= 1, found 0"),
        ("loss.q=1.1", "loss.q: expected 0 < q <= 1, found 1.1"),
        ("loss.alpha=-1", "loss.alpha: expected 0 or more"),
        ("loss={alpha = 0, beta = 0}", "loss.beta: expected more than 0 where alpha is 0"),
        ("loss.log_zero=0", "loss.log_zero: expected less than 0"),
        ("loss.elr_lambda=-3", "loss.elr_lambda: expected 0 or more"),
        ("loss.elr_beta=1", "loss.elr_beta: expected 0 <= elr_beta < 1"),
        ("loss.elr_top_k=0", "loss.elr_top_k: expected 1 or more"),
        ('loss={kind = "elr"}\nmixup_alpha=0.2', "mixup_alpha: expected 0 beside the loss elr"),
        ('loss={kind = "gce"}\nlabel_smoothing=0.1', "label_smoothing: expected 0 beside the loss gce, found 0.1"),
    ],
)
def test_what_a_loss_cannot_be_is_refused_by_its_key(
    override: str, message: str, tiny_table: Callable[..., dict[str, Any]]
) -> None:
    table = tiny_table(*(f"phases.base.{line}" for line in override.splitlines()))
    with pytest.raises(RecipeError) as caught:
        recipe_from_table(table)
    assert str(caught.value).startswith(f"phases.base.{message}")


def test_phases_with_elr_share_a_memory_of_one_size(tiny_table: Callable[..., dict[str, Any]]) -> None:
    table = tiny_table("phases.base.loss.kind=elr", "phases.gated.loss={kind = 'elr', elr_top_k = 5}")
    with pytest.raises(RecipeError, match=r"phases: expected one loss.elr_top_k in all phases .*, found \[5, 10\]"):
        recipe_from_table(table)


def test_a_loss_survives_being_printed(tiny_table: Callable[..., dict[str, Any]]) -> None:
    recipe = recipe_from_table(tiny_table("phases.base.loss={kind = 'sce', alpha = 6}", "phases.gated.loss.kind=elr"))
    assert recipe.phases[0].loss == LossConfig(kind="sce", alpha=6.0)
    assert recipe_from_table(tomllib.loads(to_toml(to_table(recipe)))) == recipe


def test_a_loss_below_zero_can_be_stable() -> None:
    """elr's: a fraction of a negative best would make progress of standing still."""
    detector = PlateauDetector(PlateauConfig(window_steps=2, patience_windows=2, min_drop_fraction=0.02))
    for loss in (-1.0, -2.0, -2.01):
        detector.update(loss)
        detector.update(loss)
    assert (detector.best, detector.windows_without_drop) == (-2.0, 1)
    detector.update(-2.0)
    detector.update(-2.0)
    assert detector.reached


def _setting(**changes: Any) -> StepSetting:
    plain = {"gate": None, "threshold": 0.0, "label_smoothing": 0.0, "denominator": "all"}
    return StepSetting(class_weights=torch.ones(CLASSES), **{**plain, **changes})
