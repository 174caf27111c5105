"""Keys of samples: the names that they have in the tars.

A key is made from the path in the source alone, so it is the same in every build. It is readable for people and
unique by the hash at its end; the way back to the path is samples.parquet, not the key.
"""

import xxhash

from wv_shards import MAX_KEY_BYTES

_KEPT = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_TABLE = bytes(code if code in _KEPT else ord("_") for code in range(256))
_READABLE_BYTES = MAX_KEY_BYTES - 1 - 16


def key_of(path: bytes) -> str:
    """Key of the sample with this path in the source: 18 to 94 characters of A–Z, a–z, 0–9, `_` and `-`.

    The path's end, with all else replaced by `_` (a dot would end the key for WebDataset), then `-` and xxh3_64 of
    the whole path in hexadecimal. It starts with neither `-` nor `_`, which tools take for options and private names.
    """
    readable = path.translate(_TABLE)[-_READABLE_BYTES:].lstrip(b"-_")
    return f"{readable.decode('ascii') or 'x'}-{xxhash.xxh3_64_hexdigest(path)}"


def text_of(path: bytes) -> str:
    """The path as the tables hold it: UTF-8, bytes that are not UTF-8 as `\\xff`."""
    return path.decode("utf-8", "backslashreplace")
