"""The plan at three sizes: exposures over 20 epochs (8 of the largest), lengths of epochs, mixing, memory."""

from pathlib import Path

import numpy as np
import pytest

from wv_bench.plan_measures import mixing, shown_in_chunks
from wv_bench.plan_subjects import synthetic
from wv_loader.plan import Plan, PlanOptions

EPOCHS = 20
LARGE_EPOCHS = 8


def exposures(plan: Plan, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """(E, K) shows of every class in every epoch; (N,) samples that were shown."""
    labels, classes = plan.layout.labels, plan.layout.num_classes
    shows, seen = np.zeros((epochs, classes)), np.zeros(len(labels), dtype=bool)
    for e in range(epochs):
        for ordinals, _ in shown_in_chunks(plan, e, *plan.visits(e)):
            shows[e] += np.bincount(labels[ordinals], minlength=classes)
            seen[ordinals] = True
    return shows, seen


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("samples", "classes", "batch_size", "error", "length_error"),
    [(1_000, 20, 64, 0.015, 0.02), (20_000, 200, 256, 0.015, 0.006)],
)
def test_small_sets_are_rebalanced_and_mixed_under_the_defaults(
    samples: int, classes: int, batch_size: int, error: float, length_error: float, tau: float
) -> None:
    plan = Plan(synthetic(samples, classes).layout, PlanOptions(batch_size=batch_size, balance=(tau,)))
    shows, seen = exposures(plan, EPOCHS)
    assert np.abs(shows.mean(axis=0) / plan.target_exposure(0) - 1).max() < error
    assert np.abs(shows.sum(axis=1) / samples - 1).max() < length_error
    assert seen[plan.class_rates(0)[plan.layout.labels] * EPOCHS >= 2 << 32].all()
    mixed = mixing(plan, EPOCHS)
    assert mixed.distinct_classes > 0.98 * mixed.distinct_classes_ideal
    for batches, dispersion in mixed.dispersion.items():
        assert dispersion < mixed.dispersion_shuffle[batches] + 0.1


@pytest.mark.slow
def test_sixteen_million_samples_are_rebalanced_within_a_hundredth_in_little_memory() -> None:
    subject = synthetic(16_000_000, 5_000)
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    plan = Plan(subject.layout, PlanOptions(batch_size=1024, balance=(0.0,)))
    epoch = plan.epoch(0)
    epoch.batch(epoch.batches // 2, range(64))
    shows, seen = exposures(plan, LARGE_EPOCHS)
    assert memory_mb("VmHWM") - before < 300
    assert shows[0].sum() == epoch.samples
    assert np.abs(shows.mean(axis=0) / plan.target_exposure(0) - 1).max() < 0.01
    assert np.abs(shows.sum(axis=1) / 16_000_000 - 1).max() < 0.001
    assert seen[plan.class_rates(0)[plan.layout.labels] * LARGE_EPOCHS >= 2 << 32].all()


def memory_mb(field: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024
