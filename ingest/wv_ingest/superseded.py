"""Rows that one data set left out (`filtered`) and another has: once the two are merged, they are not left out.

`--only google` and `--only flickr` of one source, merged, have every row once. Nothing else of the rejects changes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wv_ingest.check import Reason
from wv_ingest.concatenate import row_groups
from wv_ingest.paths import PathTable
from wv_shards import REJECTS_FILE, SAMPLES_FILE, Manifest

_FILTERED = Reason.FILTERED.value


def rejects_that_stay(sets: Sequence[tuple[Path, Manifest]]) -> list[NDArray[np.bool_] | None]:
    """Of each set (rejects,) bool: False for filtered rows whose path another set has, or an earlier one filtered too.

    None: all stay. Each set with filtered rows is compared with each other one, paths by 128-bit hashes.

    Raises:
        CorruptDataError: a table can't be read.
    """
    return [_stay(number, sets) if one.rejects.get(_FILTERED) else None for number, (_, one) in enumerate(sets)]


def _stay(number: int, sets: Sequence[tuple[Path, Manifest]]) -> NDArray[np.bool_]:
    rejects = list(row_groups(sets[number][0] / REJECTS_FILE, ["path", "reason"]))
    table = pa.concat_tables(rejects)
    filtered = pc.equal(table.column("reason"), _FILTERED).to_numpy()
    paths = table.column("path").filter(pa.array(filtered)).cast(pa.large_binary())
    known = PathTable([paths])
    marked = np.zeros(len(paths), dtype=bool)
    for other, (folder, _) in enumerate(sets):
        if other == number:
            continue
        for group in row_groups(folder / SAMPLES_FILE, ["path"]):
            _mark(marked, known, group.column("path"))
        for group in row_groups(folder / REJECTS_FILE, ["path", "reason"]):
            if other > number:
                group = group.filter(pc.not_equal(group.column("reason"), _FILTERED))
            _mark(marked, known, group.column("path"))
    stay = np.ones(table.num_rows, dtype=bool)
    stay[filtered] = ~known.spread(marked)
    return stay


def _mark(marked: NDArray[np.bool_], known: PathTable, paths: pa.ChunkedArray) -> None:
    found = known.find(paths)
    marked[found[found >= 0]] = True
