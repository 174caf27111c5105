"""Whitened components are uncorrelated and alike in variance; k-means is a function of its centroids before a step."""

import faiss
import numpy as np
import pytest

from wv_train.annotate.kmeans import kmeans_steps, nearest, train_whitening
from wv_train.errors import TrainError


def correlated(rows: int, width: int, rank: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((rows, rank)) @ draw.standard_normal((rank, width))
    return (mixed + 5.0).astype(np.float32)


@pytest.mark.parametrize(("components", "kept"), [(6, 6), (64, 10)])
def test_whitened_rows_are_uncorrelated_with_equal_variance_in_the_directions_that_vary(
    components: int, kept: int
) -> None:
    """Ten of forty columns' directions vary: the others, as of units that are never active, are no noise blown up."""
    rows = correlated(400, 40, 10)
    white = train_whitening(rows, components).apply(rows)
    assert white.shape == (400, kept)
    covariance = np.cov(white.T)
    assert np.allclose(covariance / covariance[0, 0], np.eye(kept), atol=0.02)
    assert np.abs(white.mean(axis=0)).max() < 0.01 * white.std()


def test_rows_that_are_all_alike_are_refused() -> None:
    with pytest.raises(TrainError, match="the same in all rows"):
        train_whitening(np.ones((50, 8), dtype=np.float32), 4)


def test_fewer_rows_than_columns_are_whitened_to_what_they_span() -> None:
    rows = correlated(5, 40, 40)
    white = train_whitening(rows, 64).apply(rows)
    assert np.isfinite(white).all()
    assert white.shape[1] <= 4


def test_the_whitening_does_not_depend_on_the_number_of_threads() -> None:
    rows = correlated(3000, 200, 200)
    before = faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            whitening = train_whitening(rows, 60)
            found.append((whitening.matrix, whitening.apply(rows)))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_interrupted_after_any_step_k_means_goes_on_as_if_it_had_not_been() -> None:
    rows = correlated(300, 6, 6)
    whole = list(kmeans_steps(rows, 7, iterations=4, seed=3))
    for done in range(1, 4):
        rest = list(kmeans_steps(rows, 7, iterations=4 - done, seed=3, centroids=whole[done - 1]))
        assert np.array_equal(rest[-1], whole[-1])
    assert not np.array_equal(list(kmeans_steps(rows, 7, iterations=4, seed=4))[-1], whole[-1])


def test_the_nearest_centroid_is_found() -> None:
    rows, centroids = correlated(50, 4, 4), correlated(6, 4, 4, seed=1)
    distances = ((rows[:, None] - centroids) ** 2).sum(axis=2)
    assert nearest(rows, centroids).tolist() == distances.argmin(axis=1).tolist()
