"""Second stage: from ordinals to the bytes of images, checked. Knows tars; knows no pixels and no order.

Samples that are asked for together are read in file order into one piece of memory, of which each sample is a view.
Neighbours in a shard are one extent: one `pread`. What lies between them and is not wanted is read along only where it
is as small as the headers and texts that stand between two images of a tar.
"""

import os
from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from wv_shards import FLAG_BAD, Dataset, checksum

MAX_GAP_BYTES = 8_192
"""Two samples of a shard with more than this between them are read apart."""
MAX_EXTENT_BYTES = 10_000_000
"""No extent is longer, but for its last sample."""


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


Sample = bytes | memoryview | Failure | None
"""An image file, or why there is none; None where none was asked for."""

OnIoError = Callable[[int, int], None]
"""Told the shard's number and the errno of a read that the operating system refused, once per sample."""


def read_samples(dataset: Dataset, ordinals: NDArray[np.int64]) -> list[Sample]:
    """Read samples of one or more shards.

    Args:
        dataset: an open data set.
        ordinals: (n,); −1 stands for no sample.

    Returns:
        For each ordinal its image file, or why there is none, or None where the ordinal is −1. Never raises for a
        sample's sake.
    """
    extents = Extents(dataset, ordinals)
    samples: list[Sample] = [None] * len(ordinals)
    extents.read(0, len(extents), samples)
    return samples


def _fresh(size: int) -> NDArray[np.uint8]:
    return np.empty(size, dtype=np.uint8)


class Extents:
    """Where some samples stand, in file order, neighbours joined. Safe to read from several threads."""

    def __init__(
        self,
        dataset: Dataset,
        ordinals: NDArray[np.int64],
        *,
        memory: Callable[[int], NDArray[np.uint8]] = _fresh,
        on_io_error: OnIoError | None = None,
    ) -> None:
        """Look samples up, and get memory for them.

        Args:
            dataset: an open data set.
            ordinals: (n,); −1 stands for no sample. One may be asked for several times.
            memory: gives an array of so many bytes or more. The samples will be views of it.
            on_io_error: see there.
        """
        self._on_io_error = on_io_error
        self._dataset = dataset
        wanted = np.flatnonzero(ordinals >= 0)
        records = dataset.index[ordinals[wanted]]
        bad = (records["flags"] & FLAG_BAD) != 0
        self._known_bad: list[int] = wanted[bad].tolist()
        wanted, records = wanted[~bad], records[~bad]
        shards = dataset.shard_of(ordinals[wanted])
        order = np.lexsort((records["offset"], shards))
        wanted, records, shards = wanted[order], records[order], shards[order]
        starts = records["offset"].astype(np.int64)
        sizes = records["size"].astype(np.int64)
        first = _cut(shards, starts, starts + sizes)
        self._shards: list[int] = shards[first].tolist()
        offsets = starts[first]
        extent = np.repeat(np.arange(len(first)), np.diff(first, append=len(starts)))  # (n,) that each sample is in
        lengths = np.maximum.reduceat(starts + sizes, first) - offsets if len(first) else offsets
        self.sizes: NDArray[np.int64] = lengths
        """(m,) bytes of each extent."""
        self._first: list[int] = [*first.tolist(), len(starts)]
        self._offsets: list[int] = offsets.tolist()
        self._borders: list[int] = [0, *np.cumsum(lengths).tolist()]  # of extents, in memory
        self._memory = memory(self._borders[-1]).data
        # Of each sample, in file order: its place among those asked for, where it is in its extent, what it must be.
        self._places: list[int] = wanted.tolist()
        self._starts: list[int] = (starts - offsets[extent]).tolist()
        self._sizes: list[int] = sizes.tolist()
        self._checksums: list[int] = records["checksum"].tolist()

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, first: int, last: int, samples: list[Sample]) -> int:
        """Read a range of extents.

        Args:
            first, last: the extents first … last − 1. Samples that are known to be bad come with extent 0.
            samples: (n,) gets image files, or why there is none, at the places of the ordinals.

        Returns:
            Bytes of the image files.
        """
        if first == 0:
            for place in self._known_bad:
                samples[place] = Failure.KNOWN_BAD
        size = 0
        while first < last:
            shard, stop = self._shards[first], first + 1
            while stop < last and self._shards[stop] == shard:
                stop += 1
            try:
                with self._dataset.descriptor(shard) as descriptor:
                    while first < stop:
                        size += self._read_one(shard, descriptor, first, samples)
                        first += 1
            except OSError as error:  # of opening it
                for sample in range(self._first[first], self._first[stop]):
                    samples[self._places[sample]] = self._refused(shard, error)
            first = stop
        return size

    def _read_one(self, shard: int, descriptor: int, extent: int, samples: list[Sample]) -> int:
        first, last = self._first[extent], self._first[extent + 1]
        offset = self._offsets[extent]
        memory = self._memory[self._borders[extent] : self._borders[extent + 1]]
        try:
            read = _pread(descriptor, memory, offset)
        except OSError:
            # Somewhere in it the disk is broken: only the samples that lie there are lost.
            return sum(self._read_alone(shard, descriptor, memory, offset, i, samples) for i in range(first, last))
        for i in range(first, last):
            samples[self._places[i]] = self._checked(memory[:read], i)
        return sum(self._sizes[first:last])

    def _read_alone(
        self, shard: int, descriptor: int, memory: memoryview, offset: int, sample: int, samples: list[Sample]
    ) -> int:
        start, size = self._starts[sample], self._sizes[sample]
        try:
            read = _pread(descriptor, memory[start : start + size], offset + start)
        except OSError as error:
            samples[self._places[sample]] = self._refused(shard, error)
            return 0
        samples[self._places[sample]] = self._checked(memory[: start + read], sample)
        return size

    def _checked(self, read: memoryview, sample: int) -> Sample:
        """A sample of an extent, of which so much was read."""
        start, size = self._starts[sample], self._sizes[sample]
        data = read[start : start + size]
        if len(data) != size:
            return Failure.SHORT_READ
        return data if checksum(data) == self._checksums[sample] else Failure.CHECKSUM

    def _refused(self, shard: int, error: OSError) -> Failure:
        if self._on_io_error is not None:
            self._on_io_error(shard, error.errno or 0)
        return Failure.IO_ERROR


def _cut(shards: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """First sample of each extent, of samples in file order."""
    begins = np.ones(len(starts), dtype=np.bool_)
    begins[1:] = (shards[1:] != shards[:-1]) | (starts[1:] - ends[:-1] > MAX_GAP_BYTES)
    joined = np.flatnonzero(begins)
    offset = np.repeat(starts[joined], np.diff(joined, append=len(starts)))  # (n,) where the joined ones begin
    part = (starts - offset) // MAX_EXTENT_BYTES
    begins[1:] |= part[1:] != part[:-1]
    return np.flatnonzero(begins)


def _pread(descriptor: int, memory: memoryview, offset: int) -> int:
    """Bytes read, all there are; a read may give fewer than asked for before the end of the file."""
    done = os.preadv(descriptor, [memory], offset)
    while done < len(memory) and (more := os.preadv(descriptor, [memory[done:]], offset + done)):
        done += more
    return done
