"""Law 8, every way of a step: what a global batch teaches does not depend on ranks, micro-batches or passes.

Ranks are threads with a model each; only their gather is another than in a process group.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wv_loader import Batch
from wv_train.curriculum import CurriculumConfig
from wv_train.distributed import World
from wv_train.gate import GateConfig
from wv_train.guard import ClassGuard
from wv_train.judge import StepSetting
from wv_train.learner import Learner
from wv_train.ledger import Ledger
from wv_train.models import make_model
from wv_train.optim import make_optimizer
from wv_train.phase_overlays import PhaseOverlays
from wv_train.recipe import OptimizerConfig
from wv_train.robust_losses import LossConfig
from wv_train.step import Place, StepResult, TrainStep
from wv_train.target_memory import TargetMemory
from wv_train.teacher import TeacherConfig

SLOTS, CLASSES, STREAMS = 32, 5, 4
CPU = torch.device("cpu")


@dataclass
class Meeting:
    """Where threads hand over their rows."""

    ranks: int
    rows: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [None] * self.ranks
        self.barrier = threading.Barrier(self.ranks, timeout=60)


@dataclass(frozen=True, kw_only=True)
class ThreadWorld(World):
    meeting: Meeting

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        self.meeting.rows[self.rank] = rows
        self.meeting.barrier.wait()
        joined = torch.stack(list(self.meeting.rows))
        self.meeting.barrier.wait()
        return joined


@dataclass(frozen=True, kw_only=True)
class Outcome:
    gradients: list[torch.Tensor]
    results: list[StepResult]
    ledger: NDArray[Any]
    guard: dict[str, Any]
    targets: NDArray[Any]


def run(
    batch: Batch,
    setting: StepSetting,
    *,
    ranks: int = 1,
    micro_batch: int | None = None,
    model_name: str = "wv_resnet_16_32_64_gn",
    starved: bool = False,
) -> Outcome:
    """One step; the gradients as DDP would hand them to the optimiser, the mean over ranks."""
    meeting = Meeting(ranks)
    torch.manual_seed(0)
    models = [make_model(model_name, CLASSES) for _ in range(ranks)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    steps = []
    for rank, model in enumerate(models):
        world = ThreadWorld(rank=rank, size=ranks, device=CPU, meeting=meeting)
        learner = Learner(model, world=World(rank=0, size=1, device=CPU), amp="off", micro_batch=micro_batch)
        learner.world = world
        step = TrainStep(
            learner=learner,
            optimizer=make_optimizer(model, OptimizerConfig()),  # its rate is 0
            ledger=Ledger(2 * SLOTS),
            guard=ClassGuard(CLASSES),
            seed=4,
            targets=TargetMemory(2 * SLOTS, classes=CLASSES, top_k=3),
        )
        assert step.targets is not None
        step.targets.rows["class_id"], step.targets.rows["value"] = [4, 2, 0], [0.4, 0.2, 0.1]
        visits = np.arange(2 * SLOTS) % 3
        step.ledger.rows["seen"], step.ledger.rows["label_conf_mean"] = visits, (visits > 0) * 0.1 * (visits + 1)
        if starved:
            state = step.guard.state()
            state["kept_share"][2] = 0.0
            step.guard.load_state(state)
        steps.append(step)
    here = replace(setting, streams=STREAMS // ranks)

    def one(rank: int) -> StepResult:
        part = slice(rank * SLOTS // ranks, (rank + 1) * SLOTS // ranks)
        columns = {name: getattr(batch, name)[part] for name in ("images", "labels", "ordinals", "valid")}
        return steps[rank](Batch(**columns, index=0), here, Place(phase=1, step=7), stop_signal=rank)

    with ThreadPoolExecutor(ranks) as pool:
        results = list(pool.map(one, range(ranks)))
    gradients = [
        torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in of_ranks]).mean(0)
        for of_ranks in zip(*(model.parameters() for model in models), strict=True)
    ]
    memories = [step.targets.rows for step in steps if step.targets is not None]
    for step, targets in zip(steps[1:], memories[1:], strict=True):
        assert (step.ledger.rows == steps[0].ledger.rows).all()
        assert (targets == memories[0]).all()
        assert all(torch.equal(value, steps[0].guard.state()[name]) for name, value in step.guard.state().items())
    return Outcome(
        gradients=gradients,
        results=results,
        ledger=steps[0].ledger.rows,
        guard=steps[0].guard.state(),
        targets=memories[0],
    )


def assert_same(one: Outcome, other: Outcome, *, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    for a, b in zip(one.gradients, other.gradients, strict=True):
        torch.testing.assert_close(b, a, rtol=rtol, atol=atol)


def setting_of(**changes: Any) -> StepSetting:
    plain: dict[str, Any] = {
        "class_weights": torch.tensor([0.5, 2.0, 1.0, 0.0, 1.5]),
        "gate": None,
        "threshold": 0.0,
        "label_smoothing": 0.1,
        "denominator": "all",
    }
    return StepSetting(**{**plain, **changes})


def gate_of(**values: Any) -> GateConfig:
    return GateConfig(**{"start": 0.5, "min_kept_fraction": 0.1, **values})


GATES = {
    "none": (None, 0.0),
    "top1": (gate_of(kind="top1"), 0.25),
    "label": (gate_of(kind="label"), 0.2),
    "label_average": (gate_of(kind="label_average"), 0.2),
    "label_average share": (gate_of(kind="label_average", unit="share"), 0.4),
    "agreement": (gate_of(kind="agreement"), 0.9),
    "label_past": (gate_of(kind="label_past", revisit_fraction=0.3), 0.25),
    "label_past share": (gate_of(kind="label_past", unit="share", revisit_fraction=0.3), 0.4),
}
WAYS = [(name, two) for name in GATES for two in (False, True) if not (two and name in ("none", "label_past"))]


@pytest.fixture(scope="module")
def batch(draw_batch: Callable[..., Batch]) -> Batch:
    """With 4 ranks the last has nothing valid; on none the classes are alike."""
    return draw_batch(SLOTS, classes=CLASSES, invalid=(2, 11, *range(24, 32)))


@pytest.mark.parametrize("denominator", ["all", "kept"])
@pytest.mark.parametrize("way", WAYS, ids=[f"{name}, {1 + two}" for name, two in WAYS])
def test_a_batch_teaches_the_same_on_any_number_of_ranks_and_in_pieces(
    way: tuple[str, bool], denominator: str, batch: Batch
) -> None:
    name, two = way
    gate, threshold = GATES[name]
    setting = setting_of(gate=gate, threshold=threshold, two_passes=two, denominator=denominator)
    one = run(batch, setting)
    kept, shown = one.results[0].totals.kept, one.results[0].totals.samples
    assert (0 < kept < shown) == (gate is not None)
    assert max(float(gradient.abs().max()) for gradient in one.gradients) > 1e-3
    for ranks, micro_batch in ((2, None), (4, None), (1, 5), (2, 3)):
        other = run(batch, setting, ranks=ranks, micro_batch=micro_batch)
        assert_same(one, other)
        assert {result.stop_signal for result in other.results} == {ranks - 1}
        for column in ("seen", "gated"):
            assert (other.ledger[column] == one.ledger[column]).all()
        np.testing.assert_allclose(other.ledger["label_conf_mean"], one.ledger["label_conf_mean"], atol=1e-6)


@pytest.mark.parametrize(
    "way", [("none", False), ("label_average", False), ("label_average", True), ("label_past", False)]
)
def test_elr_teaches_and_remembers_the_same_on_any_number_of_ranks_and_in_pieces(
    way: tuple[str, bool], batch: Batch
) -> None:
    name, two = way
    gate, threshold = GATES[name]
    setting = setting_of(gate=gate, threshold=threshold, two_passes=two, loss=LossConfig(kind="elr"))
    one = run(batch, setting)
    plain = run(batch, replace(setting, loss=LossConfig(), label_smoothing=0.0))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(one.gradients, plain.gradients, strict=True))
    looked_at = one.ledger["seen"] > np.arange(2 * SLOTS) % 3
    assert (one.targets["class_id"] == [4, 2, 0])[~looked_at].all()
    assert (one.targets["value"] != plain.targets["value"]).any(axis=1)[looked_at].all()
    assert (name == "label_past") == bool(looked_at.sum() < one.results[0].totals.samples)
    for ranks, micro_batch in ((4, None), (2, 3)):
        other = run(batch, setting, ranks=ranks, micro_batch=micro_batch)
        assert_same(one, other)
        assert (other.targets["class_id"] == one.targets["class_id"]).all()
        np.testing.assert_allclose(other.targets["value"], one.targets["value"], rtol=2e-3)


@pytest.mark.parametrize("name", ["top1", "label_average", "label_average share", "agreement"])
def test_two_passes_teach_what_one_does(name: str, batch: Batch) -> None:
    gate, threshold = GATES[name]
    one = run(batch, setting_of(gate=gate, threshold=threshold))
    two = run(batch, setting_of(gate=gate, threshold=threshold, two_passes=True))
    assert_same(one, two)
    assert (one.ledger == two.ledger).all()
    assert (one.results[0].totals.two_pass_steps, two.results[0].totals.two_pass_steps) == (0, 1)


def test_a_rank_with_nothing_kept_takes_part(batch: Batch) -> None:
    """Two ranks, all that is kept is on the first; in two passes and by the past."""
    for kind in ("label_average", "label_past"):
        gate = gate_of(kind=kind, revisit_fraction=0.0)
        believed = batch.ordinals[: SLOTS // 2].numpy()
        setting = setting_of(gate=gate, threshold=0.5, two_passes=kind != "label_past", denominator="kept")

        def outcome(ranks: int, setting: StepSetting = setting, believed: NDArray[np.int64] = believed) -> Outcome:
            with pytest.MonkeyPatch.context() as patch:
                past = np.full(2 * SLOTS, 0.01)
                past[believed] = 0.99
                patch.setattr(
                    Ledger,
                    "history",
                    lambda _, ordinals: (
                        torch.from_numpy(past[ordinals.numpy()] * 50).float(),
                        torch.full((len(ordinals),), 50.0),
                    ),
                )
                return run(batch, setting, ranks=ranks)

        one, two = outcome(1), outcome(2)
        assert 0 < one.results[0].totals.kept <= SLOTS // 2
        assert_same(one, two)


@pytest.mark.parametrize("gated", [False, True])
def test_mixup_blends_within_streams_so_ranks_make_no_difference(gated: bool, batch: Batch) -> None:
    gate, threshold = GATES["label_average"] if gated else GATES["none"]
    setting = setting_of(gate=gate, threshold=threshold, mixup_alpha=0.8)
    one = run(batch, setting)
    assert_same(one, run(batch, setting, ranks=2))
    assert_same(one, run(batch, setting, ranks=4, micro_batch=3))
    plain = run(batch, setting_of(gate=gate, threshold=threshold))
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(one.gradients, plain.gradients, strict=True))


def test_the_guard_lets_the_confident_half_of_a_starved_class_through(batch: Batch) -> None:
    gate, threshold = gate_of(kind="top1", start=0.99), 0.99
    shut = run(batch, setting_of(gate=gate, threshold=threshold))
    assert shut.results[0].totals.kept == 0
    for ranks in (1, 4):
        kept = run(batch, setting_of(gate=gate, threshold=threshold), ranks=ranks, starved=True)
        shown = batch.labels[batch.valid]
        assert kept.results[0].totals.kept == int((shown == 2).sum())  # its mean is still 0
        assert kept.results[0].totals.guarded_steps == 1
    off = replace(gate, min_kept_fraction=0.0)
    assert run(batch, setting_of(gate=off, threshold=threshold), starved=True).results[0].totals.kept == 0


def test_batch_norm_notes_the_kept_alone_where_two_passes_are_made(batch: Batch) -> None:
    """Stated in `GateConfig.passes`: the second pass normalises by what it learns from, the first notes nothing."""
    gate, threshold = GATES["top1"]
    outcomes = [
        run(batch, setting_of(gate=gate, threshold=threshold, two_passes=two), model_name="wv_resnet_16_32_64")
        for two in (False, True)
    ]
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(*(o.gradients for o in outcomes), strict=True))


@pytest.fixture(scope="module")
def overlays() -> PhaseOverlays:
    """Tiers and soft labels of the samples that batches are of; the teacher is silent on a third."""
    generator = np.random.default_rng(0)
    beliefs = np.dtype([("class_id", "<i4", (2,)), ("probability", "<f2", (2,))])
    rows = np.zeros(2 * SLOTS, dtype=beliefs)
    rows["class_id"] = generator.permuted(np.tile(np.arange(CLASSES), (2 * SLOTS, 1)), axis=1)[:, :2]
    rows["probability"] = [0.625, 0.25]
    rows["class_id"][::3] = -1
    return PhaseOverlays(
        outputs=CLASSES,
        curriculum=CurriculumConfig(weights=(1.0, 0.5, 0.25)),
        tiers=generator.integers(0, 4, 2 * SLOTS).astype(np.uint8),
        teacher=TeacherConfig(label_share=0.3),
        beliefs=rows,
    )


GATED = {"gate": gate_of(kind="label_average"), "threshold": 0.2, "denominator": "kept"}


@pytest.mark.parametrize("changes", [{}, {"mixup_alpha": 0.8}, GATED, {**GATED, "mixup_alpha": 0.8}], ids=str)
def test_soft_labels_and_tier_weights_teach_the_same_on_any_number_of_ranks(
    changes: dict[str, Any], batch: Batch, overlays: PhaseOverlays
) -> None:
    one = run(batch, setting_of(overlays=overlays, **changes))
    assert_same(one, run(batch, setting_of(overlays=overlays, **changes), ranks=2, micro_batch=3))
    assert_same(one, run(batch, setting_of(overlays=overlays, **changes), ranks=4))
    for other in (None, replace(overlays, teacher=None), replace(overlays, curriculum=None)):
        plain = run(batch, setting_of(overlays=other, **changes))
        assert any((a - b).abs().max() > 1e-4 for a, b in zip(one.gradients, plain.gradients, strict=True))
        assert (one.ledger["label_conf"] == plain.ledger["label_conf"]).all()  # of the label as it is given
        assert one.results[0].totals.kept == plain.results[0].totals.kept


def test_a_tiers_weight_is_a_samples_in_the_sum_and_in_the_denominator(batch: Batch, overlays: PhaseOverlays) -> None:
    """All in one tier: the same lesson whatever it weighs. Tier 3 at weight 0: as if its samples were not valid."""
    tiers = replace(overlays, teacher=None, tiers=np.full(2 * SLOTS, 3, dtype=np.uint8))
    assert_same(run(batch, setting_of(overlays=None)), run(batch, setting_of(overlays=tiers)))
    assert overlays.tiers is not None
    hard = torch.from_numpy(np.isin(overlays.tiers, (0, 3)))[batch.ordinals]
    curriculum = CurriculumConfig(weights=(1.0, 1.0, 0.0))
    without = run(replace(batch, valid=batch.valid & ~hard), setting_of(overlays=None))
    silenced = run(batch, setting_of(overlays=replace(overlays, teacher=None, curriculum=curriculum)))
    assert float(silenced.results[0].totals.weight) == pytest.approx(float(without.results[0].totals.weight))
    assert_same(without, silenced)


def test_clusters_are_the_labels_that_a_step_learns_and_enters(batch: Batch) -> None:
    labels = (np.arange(2 * SLOTS) % CLASSES).astype(np.int32)
    clusters = PhaseOverlays(outputs=CLASSES, labels=labels)
    given = replace(batch, labels=torch.from_numpy(labels.astype(np.int64))[batch.ordinals])
    one, other = run(batch, setting_of(overlays=clusters)), run(given, setting_of(overlays=None))
    assert_same(one, other)
    assert (one.ledger == other.ledger).all()
