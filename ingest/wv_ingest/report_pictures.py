"""Small pictures for a report, as JPEG files: of samples, and of files that were not packed but show something.

What can't be read or shown has no picture, and nothing stops. Files that were not packed are hostile until proven
otherwise: they are decoded in a worker with limits.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageFile

from wv_ingest.pool import Desk, WorkerLimits, WorkerPool
from wv_shards import FLAG_BAD, CorruptDataError, Dataset

THUMBNAIL_PX = 144
_MOST_PIXELS = 100_000_000
_MOST_BYTES = 50_000_000
_LIMITS = WorkerLimits(max_cpu_s=5, max_memory_mb=1024)
_UNSHOWN = (CorruptDataError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def thumbnails(dataset: Dataset, ordinals: Iterable[int]) -> dict[int, bytes]:
    """A JPEG of THUMBNAIL_PX at most for every sample that can be shown, by ordinal."""
    made = {}
    for ordinal in sorted(ordinals):
        record = dataset.index[ordinal]
        if int(record["flags"]) & FLAG_BAD or int(record["width"]) * int(record["height"]) > _MOST_PIXELS:
            continue
        try:
            made[ordinal] = _thumbnail(dataset.read(ordinal))
        except _UNSHOWN:
            continue
    return made


def rejected_thumbnails(source: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """A JPEG of every file below `source` (or beside it, if it is a list) of which something can be shown, by path.

    Members of tars are not looked for, and paths that lead out of the source's folder are not opened.
    """
    root = source if source.is_dir() else source.parent
    # Escapes of names that are not UTF-8 can't be told from names that hold a backslash.
    job = tuple(path for path in paths if "\\" not in path and not path.startswith("/") and ".." not in path.split("/"))
    pool: WorkerPool[tuple[str, ...], list[bytes]] = WorkerPool(1, _Shower(root.resolve()), _LIMITS)
    try:
        (made,) = pool.run([job])
    finally:
        pool.close()
    return {path: picture for path, picture in zip(job, made, strict=True) if picture}


class _Shower:
    """The worker's part: pictures of files, b"" for what has none. The desk's items are the paths."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, job: tuple[str, ...], desk: Desk) -> list[bytes]:
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # in this process alone: half a picture tells more than none
        if desk.probe is not None:
            return [self._show(job, desk.probe, desk)]
        return [b"" if item in desk.verdicts else self._show(job, item, desk) for item in range(len(job))]

    def _show(self, job: tuple[str, ...], item: int, desk: Desk) -> bytes:
        path = self._root / job[item]
        try:
            if not path.is_file() or os.path.getsize(path) > _MOST_BYTES:
                return b""
            data = path.read_bytes()
            with desk.at(item):
                return _thumbnail(data)
        except _UNSHOWN:
            return b""


def _thumbnail(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as opened:
        if opened.width * opened.height > _MOST_PIXELS:
            raise ValueError("too many pixels")
        opened.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
        small = opened.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
