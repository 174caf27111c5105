"""A finished data set, opened: its manifest, its mapped index, and the bytes of any sample.

Reads are `pread` by (offset, size), so a file that shrinks is an error of one read and not a killed process.
"""

import errno
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from wv_shards.errors import CorruptDataError, OpenFilesError
from wv_shards.hashing import checksum
from wv_shards.index import INDEX_FILE, IndexArray, open_index
from wv_shards.manifest import Manifest
from wv_shards.tables import SAMPLES_FILE

MAX_OPEN_SHARDS = 256
"""Shards that a data set keeps open, at most, and at most a quarter of what the process may open: often 1,024."""

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""A pipe in a shard's place opens at once, and then can't be read; for files the last flag means nothing."""


class Dataset:
    """A directory of shards. Safe to read from several threads."""

    def __init__(self, directory: Path, manifest: Manifest, index: IndexArray) -> None:
        self.directory = directory
        self.manifest = manifest
        self.index = index
        """(N,) of INDEX_DTYPE, read-only."""
        self.shard_starts: NDArray[np.int64] = np.zeros(len(manifest.shards) + 1, dtype=np.int64)
        """(S + 1,): shard s holds the ordinals shard_starts[s] … shard_starts[s + 1] − 1."""
        np.cumsum([shard.samples for shard in manifest.shards], out=self.shard_starts[1:])
        self._most_open = max(1, min(MAX_OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, int] = OrderedDict()  # shard → descriptor, least recently used first
        self._busy: dict[int, list[int]] = {}  # shard → [descriptor, readers]; a reader refers to this object
        weakref.finalize(self, _close_all, self._idle).atexit = False

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """Open a finished data set.

        Raises:
            ShardsError: no data set, unfinished, of a newer format, or an index that disagrees.
        """
        directory = Path(directory)
        manifest = Manifest.load(directory)
        return cls(directory, manifest, open_index(directory / INDEX_FILE, manifest.samples))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards' files. The data set can be read from again; it then opens them anew."""
        with self._lock:
            _close_all(self._idle)

    def shard_of(self, ordinals: ArrayLike) -> NDArray[np.int64]:
        """Shard number of each ordinal, same shape."""
        return np.asarray(np.searchsorted(self.shard_starts, ordinals, side="right") - 1, dtype=np.int64)

    def shard_path(self, shard: int) -> Path:
        """Path of a shard's tar."""
        return self.directory / f"{self.manifest.shards[shard].name}.tar"

    def read(self, ordinal: int) -> bytes:
        """The image file of one sample.

        Raises:
            IndexError: no such ordinal.
            CorruptDataError: the bytes are not those that were written.
            OSError: the shard can't be opened or read.
            OpenFilesError: too many files are open.
        """
        if not 0 <= ordinal < self.manifest.samples:
            raise IndexError(f"ordinal {ordinal}: the data set has {self.manifest.samples} samples")
        record = self.index[ordinal]
        shard = int(self.shard_of(ordinal))
        size = int(record["size"])
        with self.descriptor(shard) as descriptor:
            data = os.pread(descriptor, size, int(record["offset"]))
        if len(data) != size or checksum(data) != int(record["checksum"]):
            raise CorruptDataError(
                f"{self.shard_path(shard).name}: sample {ordinal} is not what was written "
                f"({len(data)} of {size} bytes read); run `wv-ingest verify {self.directory}`"
            )
        return data

    def samples_table(self, columns: list[str] | None = None) -> pa.Table:
        """`samples.parquet`, row i speaking of ordinal i; all columns, or those named.

        Raises:
            CorruptDataError: the table is missing, unreadable, or has another number of rows.
        """
        path = self.directory / SAMPLES_FILE
        try:
            table = pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise CorruptDataError(f"{path}: not a readable table ({type(error).__name__})") from error
        if table.num_rows != self.manifest.samples:
            raise CorruptDataError(f"{path}: {table.num_rows} rows, the manifest says {self.manifest.samples}")
        return table

    def keys(self, ordinals: Sequence[int]) -> list[str]:
        """Keys of some samples, in the order asked for; reads only the parts of `samples.parquet` that hold them.

        Raises:
            CorruptDataError: the table is missing, unreadable, or too short.
        """
        path = self.directory / SAMPLES_FILE
        found: dict[int, str] = {}
        wanted = np.unique(np.asarray(ordinals, dtype=np.int64))
        try:
            with pq.ParquetFile(path) as file:
                start = 0
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    here = wanted[(wanted >= start) & (wanted < stop)]
                    if len(here):
                        keys = file.read_row_group(group, columns=["key"]).column("key").take(here - start)
                        found.update(zip(here.tolist(), keys.to_pylist(), strict=True))
                    start = stop
            return [found[ordinal] for ordinal in ordinals]
        except (OSError, pa.ArrowException, KeyError) as error:
            raise CorruptDataError(f"{path}: not a readable table of keys ({type(error).__name__})") from error

    @contextmanager
    def descriptor(self, shard: int) -> Iterator[int]:
        """File descriptor of a shard's tar, for `pread`, valid within the context; opened when first needed.

        Raises:
            OSError: the shard can't be opened.
            OpenFilesError: nor could any other file: too many are open.
        """
        with self._lock:
            entry = self._busy.get(shard)
            if entry is None:
                idle = self._idle.pop(shard, None)
                if idle is None:
                    idle = self._open(self.shard_path(shard))
                entry = self._busy[shard] = [idle, 0]
            entry[1] += 1
        try:
            yield entry[0]
        finally:
            with self._lock:
                entry[1] -= 1
                if not entry[1]:
                    self._idle[shard] = self._busy.pop(shard)[0]
                    if len(self._idle) + len(self._busy) > self._most_open:
                        os.close(self._idle.popitem(last=False)[1])

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, _FLAGS)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        _close_all(self._idle)
        try:
            return os.open(path, _FLAGS)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            raise OpenFilesError(
                f"{path}: can't be opened, as too many files are open ({os.strerror(error.errno)}; this process may "
                f"open {limit}); raise the limit (ulimit -n 4096)"
            ) from error


def _close_all(idle: OrderedDict[int, int]) -> None:
    while idle:
        os.close(idle.popitem()[1])
