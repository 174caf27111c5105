"""PCA-whitening and k-means by faiss: the only file that imports it. Arrays in, arrays out.

The whitening works on one thread, because its sums would depend on how many there are. k-means uses all that
OMP_NUM_THREADS allows: its centroids are sums that one thread makes each, but distances may differ in their last bits,
so equal bits are promised for equal numbers of threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from wv_train.errors import TrainError

FAISS_VERSION: str = faiss.__version__
MIN_EIGENVALUE = 1e-5
"""Directions whose variance is less than this share of the largest one's hold rounding errors, and are left out."""

F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Whitening:
    """x ↦ A·(x − mean), with uncorrelated components of equal variance."""

    matrix: F32
    """(P, D)."""
    bias: F32
    """(P,) −A·mean."""

    def apply(self, rows: F32) -> F32:
        """(n, D) → (n, P)."""
        transform = faiss.LinearTransform(self.matrix.shape[1], self.matrix.shape[0], True)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.matrix).ravel(), transform.A)
        faiss.copy_array_to_vector(self.bias, transform.b)
        transform.is_trained = True
        with _threads(1):
            return np.asarray(transform.apply(np.ascontiguousarray(rows)))


def train_whitening(sample: F32, components: int) -> Whitening:
    """PCA of (n, D) rows to `components` or as many as these rows have; eigenvalues to the power −0.5.

    Raises TrainError: the rows are all alike.
    """
    width = sample.shape[1]
    wanted = min(components, width, len(sample))
    centre = sample.mean(axis=0, dtype=np.float64).astype(np.float32)  # faiss's own mean is a sum of float32
    with _threads(1):
        pca = faiss.PCAMatrix(width, wanted, -0.5)
        pca.max_points_per_d = len(sample)  # it is a sample already
        pca.train(np.ascontiguousarray(sample - centre))
        eigenvalues = np.asarray(faiss.vector_to_array(pca.eigenvalues))[:wanted]
        kept = int((eigenvalues > MIN_EIGENVALUE * max(float(eigenvalues[0]), 0.0)).sum())
        if kept == 0:
            raise TrainError("the features are the same in all rows: expected some that differ")
        pca.d_out = kept
        pca.prepare_Ab()
    matrix = np.asarray(faiss.vector_to_array(pca.A)).reshape(kept, width)
    bias = faiss.vector_to_array(pca.b) - matrix.astype(np.float64) @ centre
    return Whitening(matrix=matrix, bias=bias.astype(np.float32))


def kmeans_steps(
    sample: F32, clusters: int, *, iterations: int, seed: int, centroids: F32 | None = None
) -> Iterator[F32]:
    """Centroids, (K, P), after each of `iterations` of Lloyd's, beginning with k-means++ or with `centroids`.

    Each step is a function of the centroids before it, so whoever keeps them can go on later. A cluster that gets empty
    takes half of another one.

    Args:
        sample: (n, P), n at least `clusters`; all of it is used.
        clusters: K.
        iterations: steps that are left.
        seed: of the first centroids.
        centroids: those of an earlier step.
    """
    index = faiss.IndexFlatL2(sample.shape[1])
    work = faiss.Clustering(sample.shape[1], clusters)
    work.niter, work.seed = 1, seed
    work.min_points_per_centroid, work.max_points_per_centroid = 1, len(sample)
    work.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    if centroids is not None:
        faiss.copy_array_to_vector(np.ascontiguousarray(centroids).ravel(), work.centroids)
    rows = np.ascontiguousarray(sample)
    for _ in range(iterations):
        work.train(rows, index)
        yield np.array(faiss.vector_to_array(work.centroids)).reshape(clusters, -1)


def nearest(rows: F32, centroids: F32) -> NDArray[np.int32]:
    """(n,) the nearest of (K, P) centroids to each of (n, P) rows."""
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    return np.asarray(index.search(np.ascontiguousarray(rows), 1)[1][:, 0], dtype=np.int32)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
