"""Index and tables of several data sets, one after the other, as those of one. Rows stream through, in row groups.

It changes no row and knows nothing of shards; who may come after whom is decided above.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wv_shards import (
    DUPLICATES_FILE,
    REJECTS_SCHEMA,
    TABLE_COMPRESSION,
    TABLE_GROUP_ROWS,
    CorruptDataError,
    IndexArray,
    Manifest,
    atomic_file,
    damaged_tables,
    open_index,
    write_index,
)

_INDEX_ROWS = 1 << 20


def join_indexes(path: Path, parts: Sequence[tuple[Path, int]]) -> None:
    """Write the records of all parts, (index file, samples) each, into one index.

    Raises:
        CorruptDataError: a part is not an index of so many samples.
    """
    write_index(path, _records(parts), sum(samples for _, samples in parts))


def _records(parts: Sequence[tuple[Path, int]]) -> Iterator[IndexArray]:
    for part, samples in parts:
        index = open_index(part, samples)
        for start in range(0, samples, _INDEX_ROWS):
            yield index[start : start + _INDEX_ROWS]


def join_samples(path: Path, parts: Sequence[Path]) -> int:
    """Write the rows of all tables of samples into one; returns how many. A column that a part lacks is null there.

    Raises:
        CorruptDataError: a part can't be read.
    """
    schema = pa.unify_schemas([_schema(part) for part in parts])
    rows = 0
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, compression=TABLE_COMPRESSION) as writer:
        for table in _grouped(_padded(group, schema) for part in parts for group in row_groups(part)):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def join_rejects(path: Path, parts: Sequence[tuple[Path, NDArray[np.bool_] | None]]) -> dict[str, int]:
    """Write the rows of all tables of rejects, or of each those of a mask, into one; returns the rows by reason.

    Raises:
        CorruptDataError: a part can't be read, or is not as long as its mask.
    """
    reasons: dict[str, int] = {}
    with atomic_file(path) as file, pq.ParquetWriter(file, REJECTS_SCHEMA, compression=TABLE_COMPRESSION) as writer:
        for table in _grouped(_masked(parts)):
            writer.write_table(table)
            for counted in pc.value_counts(table.column("reason")).to_pylist():
                reasons[counted["values"]] = reasons.get(counted["values"], 0) + counted["counts"]
    return dict(sorted(reasons.items()))


def _masked(parts: Sequence[tuple[Path, NDArray[np.bool_] | None]]) -> Iterator[pa.Table]:
    for part, mask in parts:
        start = 0
        for group in row_groups(part):
            rows = group.select(REJECTS_SCHEMA.names).replace_schema_metadata()
            yield rows if mask is None else rows.filter(pa.array(mask[start : start + group.num_rows]))
            start += group.num_rows
        if mask is not None and start != len(mask):
            raise CorruptDataError(f"{part}: {start} rows, expected {len(mask)}")


def refuse_damaged_tables(directory: Path, manifest: Manifest) -> None:
    """What is made of a table gets a checksum of its own, so damage must not get into it.

    Raises:
        CorruptDataError: a table is not what the manifest says.
    """
    for name in damaged_tables(directory, manifest.tables):
        if name != DUPLICATES_FILE:  # that one is made anew
            raise CorruptDataError(
                f"{directory / name}: checksum differs from the manifest's: the file changed after the build; restore "
                "it from a copy, or build anew into a new folder"
            )


def row_groups(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The table, row group by row group.

    Raises:
        CorruptDataError: it can't be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise CorruptDataError(
            f"{path}: not a readable table ({type(error).__name__}); run `wv-ingest verify` on its directory"
        ) from error


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise CorruptDataError(
            f"{path}: not a readable table ({type(error).__name__}); run `wv-ingest verify` on its directory"
        ) from error


def _padded(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _grouped(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of TABLE_GROUP_ROWS or more, but for the last."""
    group: list[pa.Table] = []
    for part in parts:
        if part.num_rows:
            group.append(part)
        if sum(table.num_rows for table in group) >= TABLE_GROUP_ROWS:
            yield pa.concat_tables(group).combine_chunks()
            group = []
    if group:
        yield pa.concat_tables(group).combine_chunks()
