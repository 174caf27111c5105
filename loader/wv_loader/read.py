"""Second stage: from ordinals to the bytes of images, checked. Knows tars; knows no pixels and no order."""

import os
from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from wv_shards import FLAG_BAD, Dataset, checksum


class Failure(StrEnum):
    """Why a sample is masked."""

    KNOWN_BAD = "known-bad"
    """A full decode failed when the data set was indexed."""
    IO_ERROR = "io-error"
    """The shard can't be opened or read: the disk, not the image."""
    SHORT_READ = "short-read"
    """The shard ends before the sample does."""
    CHECKSUM = "checksum"
    """The bytes are not those that were written."""
    DECODE = "decode"
    """The decoder gave up."""


def read_samples(
    dataset: Dataset, ordinals: NDArray[np.int64], on_io_error: Callable[[int, int], None] | None = None
) -> list[bytes | Failure | None]:
    """Read samples of one or more shards.

    Args:
        dataset: an open data set.
        ordinals: (n,); −1 stands for no sample.
        on_io_error: told the shard's number and the errno of every read that the operating system refused.

    Returns:
        For each ordinal its image file, or why there is none, or None where the ordinal is −1. Never raises for a
        sample's sake.
    """
    results: list[bytes | Failure | None] = [None] * len(ordinals)
    wanted = np.flatnonzero(ordinals >= 0)
    records = dataset.index[ordinals[wanted]]
    shards = dataset.shard_of(ordinals[wanted])
    # In file order, so that a disk's own read-ahead helps.
    order = np.lexsort((records["offset"], shards))
    for i in order.tolist():
        record = records[i]
        results[wanted[i]] = _read(
            dataset,
            int(shards[i]),
            int(record["offset"]),
            int(record["size"]),
            int(record["checksum"]),
            int(record["flags"]),
            on_io_error,
        )
    return results


def _read(
    dataset: Dataset,
    shard: int,
    offset: int,
    size: int,
    expected: int,
    flags: int,
    on_io_error: Callable[[int, int], None] | None,
) -> bytes | Failure:
    if flags & FLAG_BAD:
        return Failure.KNOWN_BAD
    try:
        with dataset.descriptor(shard) as descriptor:
            data = os.pread(descriptor, size, offset)
    except OSError as error:
        if on_io_error is not None:
            on_io_error(shard, error.errno or 0)
        return Failure.IO_ERROR
    if len(data) != size:
        return Failure.SHORT_READ
    return data if checksum(data) == expected else Failure.CHECKSUM
