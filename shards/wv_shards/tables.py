"""The Parquet tables of a data set: what got in, what did not, and which pictures are there more than once.

Same row order as the index for the first, the source's order for the second, ordinals rising in the third.
"""

from pathlib import Path

import pyarrow as pa

from wv_shards.hashing import file_checksum

TABLE_GROUP_ROWS = 1 << 17
"""Rows of a row group, at least: what a reader holds of a table at a time."""
TABLE_COMPRESSION = "zstd"

SAMPLES_FILE = "samples.parquet"
REJECTS_FILE = "rejects.parquet"
DUPLICATES_FILE = "duplicates.parquet"

SAMPLES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # name in the tar
        ("path", pa.string()),  # in the source, relative to its root
        ("source", pa.string()),  # google, flickr; empty where the source has none
        ("query", pa.string()),  # q0001; empty where the source has none
        ("label", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int32()),
        ("content_hash", pa.uint64()),  # xxh3_64 of the source file
        (
            "phash",
            pa.uint64(),
        ),  # of the picture, the coarse half; null: not decoded, or too little structure
        ("phash_fine", pa.uint64()),  # its fine half
    ]
)

METADATA_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "title", "description", "tags", "site", "page_url", "url", "rank")]
)
"""Further columns of samples.parquet where the source has metadata; null where a record lacks the field."""

REJECTS_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),  # a code, never raw error text
    ]
)

DUPLICATES_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),  # the copy
        ("first", pa.int64()),  # what it is a copy of: an earlier one by key, kept unless `conflict` and rule `drop`
        ("kind", pa.string()),  # exact: the same file; near: the same picture
        ("distance", pa.int32()),  # bits in which the perceptual hashes differ; 0 for exact
        ("same_class", pa.bool_()),  # `ordinal` and `first` have one label
        ("excluded", pa.bool_()),  # `ordinal` is in the exclude overlay for this reason
    ]
)
"""A row for every sample that is a copy; a sample that nothing earlier resembles has none."""


def table_checksums(folder: Path) -> dict[str, str]:
    """Of the two tables that every data set has, xxh3_128 by file name, for its manifest."""
    return {name: file_checksum(folder / name) for name in (REJECTS_FILE, SAMPLES_FILE)}


def damaged_tables(directory: Path, checksums: dict[str, str]) -> list[str]:
    """Names of the tables that are there and not as `Manifest.tables` says.

    Raises:
        OSError: one can't be read.
    """
    there = [name for name in sorted(checksums) if (directory / name).exists()]
    return [name for name in there if file_checksum(directory / name) != checksums[name]]
