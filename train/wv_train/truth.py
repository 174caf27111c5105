"""What is known of the labels of a data set: a CSV with the columns path, label, true_label, joined to the samples.

`wv-train --truth` measures the gate against it, `wv-report --truth` the suspects. Nothing is trained on it.
"""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from wv_shards import Dataset
from wv_train.errors import TrainError

NO_CLASS = -1
"""True label of an image that shows none of the classes."""
UNKNOWN = -2
"""True label of a sample that the truth does not name."""

_COLUMNS = {"path": pa.string(), "label": pa.int64(), "true_label": pa.int64()}


class TruthError(TrainError):
    """A truth that cannot be read or is not these samples'; the message is one line."""


def read_truth(path: Path, dataset: Dataset) -> NDArray[np.int8]:
    """(N,) by ordinal: 1 the label is right, 0 it is wrong, −1 the truth does not name the sample.

    Raises TruthError as `read_true_labels` does.
    """
    true_labels = read_true_labels(path, dataset)
    right: NDArray[np.int8] = (true_labels == dataset.index["label"]).astype(np.int8)
    right[true_labels == UNKNOWN] = -1
    return right


def read_true_labels(path: Path, dataset: Dataset, *, samples: int | None = None) -> NDArray[np.int64]:
    """(N,) by ordinal: the class that an image really shows, NO_CLASS or UNKNOWN.

    A sample is found by its path in the source. Rows of the table that name no sample are passed over.

    Args:
        path: the table; other columns are allowed.
        dataset: the samples.
        samples: only the first so many, for a data set that has grown since. None: all.

    Raises:
        TruthError: no such table, other columns, a path named twice, labels that are not these samples'.
        CorruptDataError: the data set's own table cannot be read.
    """
    table = _read_table(path)
    count = len(dataset.index) if samples is None else samples
    labels = dataset.index["label"][:count].astype(np.int64)
    sample_paths = dataset.samples_table(["path"])["path"].slice(0, count)
    row = pc.index_in(sample_paths, value_set=table["path"]).to_numpy(zero_copy_only=False)  # NaN where not named
    named = np.isfinite(row.astype(np.float64))
    if count and not named.any():
        raise TruthError(f"{path}: names none of the {count:,} samples' paths; is it another data set's?")
    rows = row[named].astype(np.int64)
    given = table["label"].to_numpy()[rows]
    if (given != labels[named]).any():
        first = int(np.flatnonzero(given != labels[named])[0])
        ordinal = int(np.flatnonzero(named)[first])
        raise TruthError(
            f"{path}: gives {sample_paths[ordinal].as_py()} the label {given[first]}, the shards {labels[ordinal]}; "
            "is it another data set's?"
        )
    true_labels = np.full(count, UNKNOWN, dtype=np.int64)
    true_labels[named] = table["true_label"].to_numpy()[rows]
    if (lost := true_labels[named] < NO_CLASS).any():
        raise TruthError(
            f"{path}: expected as true_label a class or {NO_CLASS} for none, found {true_labels[named][lost][0]}"
        )
    return true_labels


def _read_table(path: Path) -> pa.Table:
    """The table's three columns. Arrow reads and joins 16M rows where a dictionary of Python would fill the memory."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file), [])
        if missing := [name for name in _COLUMNS if name not in names]:
            raise TruthError(f"{path}: expected the columns {', '.join(_COLUMNS)}, found no {missing[0]}")
        table: pa.Table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=_COLUMNS, include_columns=list(_COLUMNS), null_values=[]
            ),
        )
    except OSError as error:
        raise TruthError(f"{path}: expected a table with the truth: {error.strerror or error}") from error
    except (pa.ArrowException, csv.Error, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TruthError(f"{path}: expected a CSV with whole numbers as label and true_label ({reason})") from error
    counts = pc.value_counts(table["path"])
    if len(counts) < table.num_rows:
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise TruthError(f"{path}: expected every path once, found {twice} more than once")
    return table
