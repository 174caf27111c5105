"""Densities are the paper's, tiers the best division of them, and references find nearly the same ones."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wv_train.annotate.density import densities, optimal_groups, sampled_densities, tiers


def blob(count: int, seed: int = 0, *, far: float = 0.0) -> np.ndarray:
    """(n, 8): a dense half, a wider third, and a rest that lies all over the place."""
    draw = np.random.default_rng(seed)
    scale = np.repeat([0.5, 1.5, 4.0], [count // 2, count // 3, count - count // 2 - count // 3])
    return (draw.standard_normal((count, 8)) * scale[:, None] + far).astype(np.float32)


def test_density_is_the_number_of_images_nearer_than_the_60_percent_quantile_of_the_distances() -> None:
    """By the definition, a pair at a time; far from the origin, where small differences of large numbers are lost."""
    rows = blob(40, far=1000.0)
    wide = rows.astype(np.float64)
    distances = [[float(((a - b) ** 2).sum()) for b in wide] for a in wide]
    limit = sorted(one for row in distances for one in row)[int(0.6 * 40 * 40)]
    expected = [sum(one < limit for j, one in enumerate(row) if j != i) for i, row in enumerate(distances)]
    assert np.abs(densities(rows) - expected).max() <= 1  # the pair at the limit, by rounding
    assert (densities(rows) == expected).mean() > 0.9


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_groups_of_numbers_are_the_best_of_all_divisions(numbers: list[int], groups: int) -> None:
    values, weights = np.unique(np.array(numbers, dtype=np.float64), return_counts=True)
    groups = min(groups, len(values))
    found = optimal_groups(values, weights, groups)

    def cost(labels: np.ndarray) -> float:
        means = [np.average(values[labels == g], weights=weights[labels == g]) for g in range(groups)]
        return float((weights * (values - np.array(means)[labels]) ** 2).sum())

    borders = combinations(range(1, len(values)), groups - 1)
    divisions = [np.searchsorted(border, np.arange(len(values)), side="right") for border in borders]
    assert found.tolist() == sorted(found.tolist())
    assert set(found.tolist()) == set(range(groups))
    assert cost(found) == pytest.approx(min(cost(one) for one in divisions), abs=1e-9)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 50), max_size=40))
def test_the_densest_are_in_tier_1_and_equals_share_a_tier(numbers: list[int]) -> None:
    density = np.array(numbers, dtype=np.float64)
    found = tiers(density)
    assert found.shape == density.shape
    assert set(found.tolist()) == set(range(1, min(3, len(set(numbers))) + 1))
    order = np.argsort(-density, kind="stable")
    assert (np.diff(found[order].astype(int)) >= 0).all()
    for value in set(numbers):
        assert len(set(found[density == value].tolist())) == 1


def test_tiers_find_the_core_of_a_class_and_what_does_not_belong() -> None:
    found = tiers(densities(blob(300)))
    core, middle, rest = found[:150], found[150:250], found[250:]
    assert (core == 1).mean() > 0.9
    assert (rest == 3).mean() > 0.9
    assert core.mean() < middle.mean() < rest.mean()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_smallest_classes_have_tiers_too(count: int) -> None:
    assert tiers(densities(blob(count))).min() == 1
    assert (tiers(densities(np.ones((count, 4), dtype=np.float32))) == 1).all()


def test_copies_of_one_image_are_denser_than_the_images_beside_them() -> None:
    """Where most distances are 0, so is their quantile."""
    rows = np.concatenate([np.ones((18, 8), dtype=np.float32), blob(2, seed=3, far=9.0)])
    assert densities(rows).tolist() == [17.0] * 18 + [0.0, 0.0]
    assert tiers(densities(rows)).tolist() == [1] * 18 + [2, 2]


def test_references_find_nearly_the_tiers_of_all_pairs_and_the_same_ones_again() -> None:
    rows = blob(1500, seed=1)
    exact, estimated = densities(rows), sampled_densities(rows, 500, seed=0)
    assert (tiers(exact) == tiers(estimated)).mean() > 0.97
    assert np.abs(exact - estimated).mean() < 0.03 * len(rows)
    assert np.array_equal(estimated, sampled_densities(rows, 500, seed=0))
    assert not np.array_equal(estimated, sampled_densities(rows, 500, seed=1))
    everyone = sampled_densities(rows[:200], 200, seed=0)
    assert np.isclose(everyone, densities(rows[:200])).mean() > 0.95  # but for pairs at the limit, by rounding
