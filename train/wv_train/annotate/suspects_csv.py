"""Suspects as a CSV, the most suspicious first: for a person, a spreadsheet, or a team that labels anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from wv_shards import Dataset, atomic_file


def write_csv(
    file: Path,
    ordinals: NDArray[np.int64],
    dataset: Dataset,
    ledger: NDArray[Any],
    *,
    wrong: NDArray[np.float64],
    believed: NDArray[np.int64],
    names: Sequence[str],
) -> None:
    """Write a row for each of `ordinals` (n,), in their order. Arrays are (N,), `ledger` of LEDGER_DTYPE.

    Classes stand there by id and by name; −1 and an empty name: the model believes in none that is known.

    Raises:
        ShardsError: the table of samples is damaged.
        OSError: the file can't be written.
    """
    facts = dataset.samples_table(["key", "path"]).take(ordinals)
    rows = ledger[ordinals]
    labels = dataset.index["label"][ordinals].astype(np.int64)
    table = pa.table(
        {
            "ordinal": ordinals,
            "key": facts["key"],
            "path": facts["path"],
            "label": labels,
            "label_name": _named(names, labels),
            "believed": believed[ordinals],
            "believed_name": _named(names, believed[ordinals]),
            "probability_wrong": np.round(wrong[ordinals], 4),
            "mean_confidence": np.round(rows["label_conf_mean"].astype(np.float64), 4),
            "last_confidence": np.round(rows["label_conf"].astype(np.float64), 4),
            "visits": rows["seen"],
            "gated": rows["gated"],
        }
    )
    with atomic_file(file) as out:
        pyarrow.csv.write_csv(table, out, pyarrow.csv.WriteOptions(quoting_style="needed"))


def _named(names: Sequence[str], class_ids: NDArray[np.int64]) -> pa.Array:
    return pa.array([*names, ""]).take(pa.array(np.where(class_ids < 0, len(names), class_ids)))
