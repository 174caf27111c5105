"""Which row has this path? Millions of paths in sorted arrays of 128-bit hashes, 24 bytes each, and no objects."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from wv_ingest.keys import text_of

_BATCH = 1 << 16


class PathTable:
    """The paths of rows, for looking up paths as the tables of a data set have them (`keys.text_of`).

    Args:
        columns: paths as bytes; rows are numbered through all columns.
    """

    def __init__(self, columns: Sequence[pa.ChunkedArray]) -> None:
        digests = b"".join(
            xxhash.xxh3_128_digest(_text(path)) for column in columns for batch in _batches(column) for path in batch
        )
        low, high = _halves(digests)
        self._order = np.lexsort((high, low))  # stable: of equal paths the first row comes first
        self._low, self._high = low[self._order], high[self._order]

    def find(self, texts: pa.ChunkedArray) -> NDArray[np.int64]:
        """(texts,) int64: the first row that has each path, −1 where none has."""
        digests = b"".join(
            xxhash.xxh3_128_digest(text) for batch in _batches(texts.cast(pa.large_binary())) for text in batch
        )
        low, high = _halves(digests)
        if not len(self._low):
            return np.full(len(low), -1, dtype=np.int64)
        at, last = np.searchsorted(self._low, low), len(self._low) - 1
        while True:
            here = np.minimum(at, last)
            alike = (at <= last) & (self._low[here] == low)
            other = alike & (self._high[here] != high)
            if not other.any():
                return np.where(alike, self._order[here], -1)
            at[other] += 1

    def spread(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(rows,) bool: the rows whose path a marked row has."""
        if not len(self._low):
            return marked
        first = np.ones(len(self._low), dtype=bool)
        first[1:] = (self._low[1:] != self._low[:-1]) | (self._high[1:] != self._high[:-1])
        groups = np.logical_or.reduceat(marked[self._order], np.flatnonzero(first))
        spread = np.empty_like(marked)
        spread[self._order] = groups[np.cumsum(first) - 1]
        return spread


def _text(path: bytes) -> bytes:
    try:
        path.decode()
    except UnicodeDecodeError:
        return text_of(path).encode()
    return path


def _batches(column: pa.ChunkedArray) -> Iterator[list[bytes]]:
    for start in range(0, len(column), _BATCH):
        yield column.slice(start, _BATCH).to_pylist()


def _halves(digests: bytes) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    both = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)  # (paths, 2)
    return both[:, 0], both[:, 1]
