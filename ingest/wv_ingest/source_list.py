"""A list of paths and labels: CSV, TSV, JSON lines or Parquet. Other columns are ignored.

Labels that are all integers are class ids as given; otherwise they are names, and ids follow the names' bytes.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

from wv_ingest.errors import SourceError
from wv_ingest.keys import text_of
from wv_ingest.sources import LIST_SUFFIXES, MAX_CLASSES, Classes, Source, constant, rows_table

_DIGITS = r"^-?[0-9]{1,18}$"


def read(path: Path, path_column: str, label_column: str, classes: Classes | None) -> Source:
    """Rows of the list; see `sources.read_source`. Paths are relative to the list's folder."""
    first_row, table = _read_table(path, path_column, label_column)
    for name in (path_column, label_column):
        if (times := table.column_names.count(name)) > 1:
            raise SourceError(f"{path}: column '{name}' stands {times} times; expected it once")
        if name not in table.column_names:
            option = "--path-column" if name == path_column else "--label-column"
            listed = ", ".join(table.column_names)
            raise SourceError(f"{path}: no column '{name}' (columns: {listed}); name it with {option}")
        absent = table.column(name).is_null()
        if pc.any(absent).as_py():
            row = first_row + pc.index(absent, True).as_py()
            raise SourceError(f"{path} row {row}: no value in column '{name}'")
    paths = table.column(path_column)
    if pa.types.is_dictionary(paths.type):
        paths = paths.cast(paths.type.value_type)
    if not (_is_text(paths.type) or pa.types.is_binary(paths.type) or pa.types.is_large_binary(paths.type)):
        raise SourceError(f"{path}: column '{path_column}' holds {paths.type}, expected text")
    labels, names = _labels(path, first_row, label_column, table.column(label_column), classes)
    count = table.num_rows
    return Source(
        source_format="list",
        root=path.parent,
        rows=rows_table(paths.cast(pa.large_binary()).chunks, [labels], [constant("", count)], [constant("", count)]),
        class_names=names,
        warnings=_mixed_labels(first_row, table.column(label_column)),
    )


def _mixed_labels(first_row: int, values: pa.ChunkedArray) -> tuple[str, ...]:
    """A warning where one odd row has turned a column of class ids into names."""
    if not _is_text(values.type) or not len(values):
        return ()
    numbers = pc.match_substring_regex(values, _DIGITS)
    count = pc.sum(numbers).as_py()
    if not len(values) / 2 < count < len(values):
        return ()
    row = first_row + pc.index(numbers, False).as_py()
    others = len(values) - count
    return (f"labels are taken as names: {others} of {len(values)} are not whole numbers, the first in row {row}",)


def _read_table(path: Path, path_column: str, label_column: str) -> tuple[int, pa.Table]:
    """The list as a table, and the number that its first row has for a person."""
    wanted = {path_column: pa.large_binary(), label_column: pa.string()}
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            if not path.stat().st_size:
                raise SourceError(f"{path}: the list is empty; expected a header with column names, then rows")
            table = pa.csv.read_csv(
                path,
                parse_options=pa.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ","),
                convert_options=pa.csv.ConvertOptions(column_types=wanted, strings_can_be_null=True, null_values=[""]),
            )
            return 2, table  # row 1 is the header
        if suffix in (".jsonl", ".ndjson"):
            return 1, pa.json.read_json(path)
        if suffix == ".parquet":
            known = pa.parquet.read_schema(path).names
            return 1, pa.parquet.read_table(path, columns=[name for name in wanted if name in known] or None)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"{path}: can't be read as {suffix[1:]}: {_first_line(error)}; "
            "expected UTF-8 and as many values in each row as in the header"
        ) from None
    raise SourceError(f"{path}: not a list; expected a file that ends in {', '.join(LIST_SUFFIXES)}")


def _labels(
    path: Path, first_row: int, column: str, values: pa.ChunkedArray, classes: Classes | None
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if _is_text(values.type) and len(values) and pc.all(pc.match_substring_regex(values, _DIGITS)).as_py():
        values = values.cast(pa.int64())
    if pa.types.is_integer(values.type):
        return _class_ids(path, first_row, values.to_numpy(), classes)
    if not _is_text(values.type):
        raise SourceError(f"{path}: column '{column}' holds {values.type}, expected whole numbers or text")
    encoded = values.combine_chunks().dictionary_encode()
    found = encoded.dictionary.to_pylist()
    if classes is None:
        names = tuple(sorted(found, key=lambda name: name.encode()))
        ids = {name: class_id for class_id, name in enumerate(names)}
    else:
        names, ids = classes.names, classes.id_of()
        for code, name in enumerate(found):
            if name not in ids:
                row = first_row + pc.index(encoded.indices, pa.scalar(code, encoded.indices.type)).as_py()
                raise SourceError(f"{path} row {row}: label '{name}' is not a class of {classes.directory}")
    lookup = np.array([ids[name] for name in found], dtype=np.int32)
    return lookup[encoded.indices.to_numpy()], names


def _class_ids(
    path: Path, first_row: int, values: NDArray[np.int64], classes: Classes | None
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    limit = MAX_CLASSES if classes is None else len(classes.names)
    outside = np.flatnonzero((values < 0) | (values >= limit))
    if len(outside):
        known = f"0 … {limit - 1}" if classes is None else f"the {limit} classes in {classes.directory}"
        raise SourceError(
            f"{path} row {first_row + outside[0]}: label {values[outside[0]]} is outside {known}; "
            "correct the row or take it out of the list"
        )
    names = tuple(str(i) for i in range(int(values.max(initial=-1)) + 1)) if classes is None else classes.names
    return values.astype(np.int32), names


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _first_line(error: Exception) -> str:
    return text_of(str(error).encode("utf-8", "replace")).splitlines()[0]
