"""Hashes of plain integers are those of arrays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wv_shards import combine
from wv_shards.hashing import splitmix64


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4))
def test_integers_hash_alike_one_by_one_and_in_arrays(parts: list[int]) -> None:
    mixed = np.zeros((), dtype=np.uint64)
    for part in parts:
        mixed = splitmix64(mixed ^ np.asarray(part).astype(np.uint64))
    found = combine(*parts)
    assert (found, found.dtype, found.shape) == (mixed, mixed.dtype, ())
