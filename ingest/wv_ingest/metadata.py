"""What the source says of an image besides its label: records of per-query JSON lists, found by number.

A list is read once in a build, to note where each record begins (in .build); a row then costs one `pread`. Nothing
here fails: what can't be read is an empty record, with the reason to be counted.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from wv_shards import METADATA_SCHEMA, atomic_file

NO_LIST, BAD_LIST, NO_RECORD = "no-list", "bad-list", "no-record"
"""The row names no list, or one that is not there; the list is no JSON array; it has no such record or a broken one."""
_BLANK = re.compile(r"[\s,]*")
_KEPT_ARRAYS = 4096
_MOST_BYTES = 1 << 29
"""Of a longer list only the records within so many bytes are found; real ones have about a million."""

Fetch = Callable[[bytes, int, int], bytes | None]
"""(path, offset, size) → bytes, fewer at the list's end; None if there is no such list."""


class Metadata:
    """Records of a source.

    Args:
        cache_dir: where the places of records are noted.
        fetch: reads a list or a part of it.
    """

    def __init__(self, cache_dir: Path, fetch: Fetch) -> None:
        self._cache_dir = cache_dir
        self._fetch = fetch
        self._spans: dict[bytes, NDArray[np.int64] | str] = {}

    def record(self, path: bytes, number: int) -> tuple[dict[str, str | None], str]:
        """The fields of record `number` (from 1) of a list, and why there are none, or an empty text."""
        spans = self._spans_of(path)
        if isinstance(spans, str):
            return {}, spans
        if not 1 <= number <= len(spans):
            return {}, NO_RECORD
        offset, size = spans[number - 1].tolist()
        data = self._fetch(path, offset, size)
        try:
            found = json.loads((data or b"").decode("utf-8", "replace"), strict=False)
        except (ValueError, RecursionError):
            return {}, NO_RECORD
        if not isinstance(found, dict):
            return {}, NO_RECORD
        return {name: _text(found.get(name)) for name in METADATA_SCHEMA.names}, ""

    def _spans_of(self, path: bytes) -> NDArray[np.int64] | str:
        """(records, 2) int64: offset and size of each record; or why there are none."""
        if path not in self._spans:
            if len(self._spans) >= _KEPT_ARRAYS:
                self._spans.clear()
            self._spans[path] = self._noted(path)
        return self._spans[path]

    def _noted(self, path: bytes) -> NDArray[np.int64] | str:
        note = self._cache_dir / f"metadata-{xxhash.xxh3_128_hexdigest(path)}.npy"
        try:
            spans: NDArray[np.int64] = np.load(note)
        except OSError:
            data = self._fetch(path, 0, _MOST_BYTES)
            if data is None:
                return NO_LIST
            found = record_spans(data)
            spans = np.full((1, 2), -1, dtype=np.int64) if found is None else found
            with atomic_file(note.with_name(f"{note.stem}-{os.getpid()}.npy")) as file:
                np.save(file, spans)
            os.replace(note.with_name(f"{note.stem}-{os.getpid()}.npy"), note)  # two workers may note the same
        return BAD_LIST if len(spans) and spans[0, 0] < 0 else spans


def record_spans(data: bytes) -> NDArray[np.int64] | None:
    """(records, 2) int64: offset and size in bytes of each element of a JSON array.

    Of an array that breaks off or is broken, the elements before that; None if it is no array.
    """
    text = data.decode("latin-1")  # a character a byte; all that JSON is made of is ASCII
    start = _BLANK.match(text, 3 if data.startswith(b"\xef\xbb\xbf") else 0).end()  # type: ignore[union-attr] # always
    if text[start : start + 1] != "[":
        return None
    decode = json.JSONDecoder(strict=False).raw_decode
    spans = []
    at = start + 1
    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr] # matches nothing at least
        if text[at : at + 1] in ("]", ""):
            break
        try:
            _, end = decode(text, at)
        except (ValueError, RecursionError):
            break
        spans.append((at, end - at))
        at = end
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def _text(value: object) -> str | None:
    """Texts and numbers as they are; anything else as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair is no text
