"""How often a class should be shown: repeats from τ, in 64-bit fixed point with 32 fractional bits.

Every number here is a Python integer or a correctly rounded decimal, so that all machines agree to the last bit.
"""

from collections import Counter
from collections.abc import Sequence
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ONE = 1 << 32
"""The number one in fixed point."""

# exp and ln of `decimal` are correctly rounded, unlike a platform's pow.
_CONTEXT = Context(prec=40)


def class_rates(counts: Sequence[int], balance: float, max_repeat: float) -> NDArray[np.int64]:
    """Wanted repeats r_c of each class per epoch.

    The wanted shows are t_c = min(max_repeat · n_c, λ · n_c^τ) with λ such that Σ t_c = Σ n_c, and r_c = t_c / n_c.

    Args:
        counts: n_c, samples of each class that are not excluded.
        balance: τ in [0, 1]; 1 shows classes as they were collected, 0 shows every class alike.
        max_repeat: no sample is shown more often than this in an epoch, on average; at least 1.

    Returns:
        (K,) int64, fixed point with 32 fractional bits; 0 for a class without samples.
    """
    if balance == 1.0:
        return np.array([ONE if n else 0 for n in counts], dtype=np.int64)
    classes_of = Counter(n for n in counts if n)
    weight = {n: _power(n, balance) for n in classes_of}
    cap = int(max_repeat * ONE)  # exact: a float times a power of two
    shows_left = sum(counts) * ONE
    weight_left = sum(weight[n] * classes for n, classes in classes_of.items())
    rate = {0: 0}
    # For τ < 1 the repeats λ·n^(τ−1) fall with n, so small classes reach the cap first.
    for n in sorted(classes_of):
        if shows_left * weight[n] > cap * n * weight_left:
            rate[n] = cap
            shows_left -= classes_of[n] * cap * n
            weight_left -= classes_of[n] * weight[n]
        else:
            rate[n] = shows_left * weight[n] // (weight_left * n)
    return np.array([rate[n] for n in counts], dtype=np.int64)


def _power(base: int, exponent: float) -> int:
    """base^exponent for base ≥ 1, in fixed point, rounded down from 40 correctly rounded digits."""
    power = _CONTEXT.exp(_CONTEXT.multiply(_log(base), Decimal(exponent)))
    return int(_CONTEXT.multiply(power, Decimal(ONE)))


@lru_cache(maxsize=1 << 16)
def _log(base: int) -> Decimal:
    return _CONTEXT.ln(Decimal(base))


def divide(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.int64]:
    """⌊numerator · 2^32 / denominator⌋ elementwise by long division; numerators under 2^47, denominators up to it."""
    high, remainder = np.divmod(numerator << 16, denominator)
    return np.asarray((high << 16) + (remainder << 16) // denominator)
