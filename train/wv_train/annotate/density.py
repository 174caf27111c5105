"""Local density of a class's features, and its division into tiers. Arrays in, arrays out.

Guo et al., "CurriculumNet: Weakly Supervised Learning from Large-Scale Web Images", ECCV 2018: of the n² squared
Euclidean distances of a class, d_c is the one at the 60% quantile; the density ρ of an image is the number of images
nearer than d_c. k-means on ρ makes three tiers; so it is here, by the best division there is instead of one that
k-means happens to find.
"""

import numpy as np
from numpy.typing import NDArray

QUANTILE = 0.6
TIERS = 3
_PIECE_ROWS = 1024

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def densities(rows: F32) -> F64:
    """(n, D) → (n,): of each row, how many others are nearer than d_c. n² distances in memory, and once more."""
    count = len(rows)
    distances = _squared_distances(rows, rows)
    np.fill_diagonal(distances, 0.0)
    rank = min(int(QUANTILE * count * count), count * count - 1)
    limit = float(np.partition(distances, rank, axis=None)[rank])
    return np.asarray(_within(distances, limit) - 1, dtype=np.float64)


def sampled_densities(rows: F32, references: int, seed: int) -> F64:
    """The same, estimated from distances to `references` of the rows: n·M distances instead of n².

    d_c is the quantile over the pairs of references; counts are scaled to n.

    Measured on features of a small network (wv_resnet_16_32_64, six epochs on 5,000 images of CIFAR-10N `worse`, 64
    columns) taken for one class of 5,000, three seeds each: with 2,048 references 96 to 98% of the images have the tier
    of the exact method, with 1,024 91 to 98%, with 512 88 to 97%, and none is two tiers away. In the ten classes of
    about 500, 256 references give 95% on average.
    """
    count = len(rows)
    chosen = np.sort(np.random.default_rng(seed).choice(count, references, replace=False))
    sample = rows[chosen]
    between = _squared_distances(sample, sample)
    np.fill_diagonal(between, 0.0)
    # Of all n² distances n are 0, those from an image to itself: of the references' M² that is a larger share.
    share = (QUANTILE * count - 1) / (count - 1)
    rank = min(references + int(share * references * (references - 1)), references * references - 1)
    limit = float(np.partition(between, rank, axis=None)[rank])
    del between
    found = np.empty(count)
    for start in range(0, count, _PIECE_ROWS):
        found[start : start + _PIECE_ROWS] = _within(
            _squared_distances(rows[start : start + _PIECE_ROWS], sample), limit
        )
    others = np.full(count, references)
    found[chosen] -= 1
    others[chosen] -= 1
    return np.asarray(found / others * (count - 1))


def tiers(density: F64) -> NDArray[np.uint8]:
    """(n,) densities → (n,) 1 for the densest group, 2, 3: the division with the least squared deviation in it.

    Equal densities share a tier; where there are fewer than three densities, the last tiers stay empty.
    """
    values, places, weights = np.unique(density, return_inverse=True, return_counts=True)
    groups = optimal_groups(values, weights, min(TIERS, len(values)))
    return np.asarray(1 + groups[-1] - groups[places], dtype=np.uint8) if len(values) else np.zeros(0, np.uint8)


def optimal_groups(values: F64, weights: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """One-dimensional k-means, solved: (u,) the group, 0 for the smallest values, of each of u sorted values.

    By dynamic programming over the borders (Wang and Song, "Ckmeans.1d.dp", R Journal 2011), O(groups · u²); among
    equally good divisions the one with the smallest borders.
    """
    count = len(values)
    centred = values - np.average(values, weights=weights) if count else values
    sums = np.zeros((3, count + 1))  # weights, weighted values, weighted squares of the first i values
    np.cumsum([weights, weights * centred, weights * centred**2], axis=1, out=sums[:, 1:])
    best = _deviation(sums, np.zeros(count + 1, dtype=np.int64), np.arange(count + 1))
    borders = np.zeros((groups, count + 1), dtype=np.int64)
    for group in range(1, groups):
        better = np.full(count + 1, np.inf)
        for stop in range(group + 1, count + 1):
            starts = np.arange(group, stop)
            totals = best[starts] + _deviation(sums, starts, np.full(len(starts), stop))
            at = int(np.argmin(totals))
            better[stop], borders[group, stop] = totals[at], starts[at]
        best = better
    found = np.zeros(count, dtype=np.int64)
    stop = count
    for group in range(groups - 1, 0, -1):
        start = borders[group, stop]
        found[start:stop] = group
        stop = start
    return found


def _deviation(sums: F64, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> F64:
    """Weighted squared deviation from the mean of the values from start to stop."""
    weight, first, second = sums[:, stops] - sums[:, starts]
    return np.asarray(np.maximum(second - first**2 / np.maximum(weight, 1), 0.0))


def _squared_distances(one: F32, other: F32) -> F32:
    """(n, D), (m, D) → (n, m)."""
    centre = other.mean(axis=0)  # smaller numbers, fewer of their digits lost in the difference
    one, other = one - centre, other - centre
    distances = one @ other.T
    distances *= -2
    distances += (one**2).sum(axis=1)[:, None]
    distances += (other**2).sum(axis=1)
    return np.asarray(np.maximum(distances, 0.0, out=distances))


def _within(distances: F32, limit: float) -> NDArray[np.int64]:
    """(n, m) → (n,): how many are below the limit; where most are 0, and so is the limit, how many are 0."""
    near = distances < limit if limit > 0 else distances <= 0
    return np.asarray(np.count_nonzero(near, axis=1))
