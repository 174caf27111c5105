"""Hashes that decide an order, and checksums that guard bytes. The same on every machine.

`splitmix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) mixes integers
for the plan; xxh3 (64 and 128 bits) covers keys, images and files.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1
_CHUNK_BYTES = 1 << 22


def splitmix64(value: ArrayLike) -> U64:
    """One step of splitmix64 from state `value`: uint64 in, uint64 out, same shape; arithmetic modulo 2^64."""
    z = np.atleast_1d(np.asarray(value, dtype=np.uint64)) + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return (z ^ (z >> np.uint64(31))).reshape(np.shape(value))


def combine(*parts: ArrayLike) -> U64:
    """Hash of several integers: h = splitmix64(h ^ part), from left to right, broadcast over the shapes of `parts`."""
    if all(type(part) is int for part in parts):
        return np.array(_combine_ints(parts), dtype=np.uint64)  # type: ignore[arg-type]  # they are integers
    mixed: U64 = np.zeros((), dtype=np.uint64)
    for part in parts:
        mixed = splitmix64(mixed ^ np.asarray(part).astype(np.uint64))
    return mixed


def _combine_ints(parts: tuple[int, ...]) -> int:
    """`combine` of plain integers, in a tenth of the time that NumPy takes for numbers alone."""
    mixed = 0
    for part in parts:
        mixed = ((mixed ^ part) + int(_GAMMA)) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * int(_MIX_1)) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * int(_MIX_2)) & _MASK
        mixed ^= mixed >> 31
    return mixed


def key_hash(key: str, seed: int) -> int:
    """Where a sample stands among the samples of its band: xxh3_64 of the key (UTF-8) under `seed`."""
    return xxhash.xxh3_64_intdigest(key.encode(), seed=seed)


def checksum(data: bytes | memoryview) -> int:
    """The index's checksum of one image: xxh3_64 of its bytes."""
    return xxhash.xxh3_64_intdigest(data)


def file_checksum(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """The manifest's checksum of one file: xxh3_128 of its bytes, 32 hexadecimal digits.

    Args:
        path: of the file.
        progress: called with the bytes hashed since the last call.
    """
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()
