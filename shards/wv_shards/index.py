"""`index.npy`: one fixed-width record per sample, in the order of ordinals, memory-mapped by readers.

It holds what a loader needs to read, check and place a sample. Names and other cold facts are in `samples.parquet`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wv_shards.atomic import atomic_file
from wv_shards.errors import CorruptDataError
from wv_shards.hashing import file_checksum

INDEX_FILE = "index.npy"

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the image's first byte, within its shard
        ("checksum", "<u8"),  # xxh3_64 of the image's bytes
        ("size", "<u4"),  # of the image, in bytes
        ("label", "<i4"),  # class id
        ("width", "<u2"),  # of the stored image, in pixels
        ("height", "<u2"),
        ("flags", "<u4"),
    ]
)
"""32 bytes a sample."""

FLAG_BAD = 1
"""Bit 0 of `flags`: a full decode at index time failed, so the sample is bad for every engine and every crop."""

IndexArray = NDArray[np.void]


def write_index(path: Path, parts: Iterable[IndexArray], samples: int) -> None:
    """Write `samples` records, given in parts, as one NumPy array file (format 1.0), whole or not at all.

    Raises:
        ValueError: the parts do not add up to `samples`; nothing is written.
    """
    written = 0
    with atomic_file(path) as file:
        _write_header(file, samples)
        for part in parts:
            if part.dtype != INDEX_DTYPE:
                raise ValueError(f"index part has dtype {part.dtype}, expected {INDEX_DTYPE}")
            file.write(part.tobytes())
            written += len(part)
        if written != samples:
            raise ValueError(f"index parts hold {written} records, expected {samples}")


def open_index(path: Path, samples: int) -> IndexArray:
    """Map the index: (N,) of INDEX_DTYPE, read-only.

    Raises:
        CorruptDataError: the file is missing, of another dtype, or has not `samples` records.
    """
    try:
        # NumPy can't map an empty array.
        index: IndexArray = np.load(path, mmap_mode="r" if samples else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise CorruptDataError(
            f"{path}: the index is missing; run `wv-ingest verify --repair` on its directory"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise CorruptDataError(
            f"{path}: not a readable index ({type(error).__name__}); run `wv-ingest verify` on its directory"
        ) from error
    if index.dtype != INDEX_DTYPE or index.shape != (samples,):
        raise CorruptDataError(
            f"{path}: holds {index.shape} records of {index.dtype.itemsize} bytes, "
            f"the manifest says ({samples},) of {INDEX_DTYPE.itemsize}; run `wv-ingest verify` on its directory"
        )
    return index


def check_index(path: Path, checksum: str) -> None:
    """Read the index once and compare it with its checksum in the manifest: 0.1 s for some million samples.

    Raises:
        CorruptDataError: it is not what was written.
    """
    try:
        found = file_checksum(path)
    except OSError as error:
        raise CorruptDataError(f"{path}: can't be read: {error.strerror}") from error
    if found != checksum:
        raise CorruptDataError(
            f"{path}: is damaged: checksum {found}, the manifest says {checksum}; labels may be wrong; "
            "run `wv-ingest verify --repair` on its directory"
        )


def _write_header(file: BinaryIO, samples: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (samples,)}
    np.lib.format.write_array_header_1_0(file, header)
