"""What an append has to do: which rows of a source a data set does not have yet, and which of its rejects they replace.

A path has one outcome. A row whose path is packed is left alone. Every other row of the source is tried, also one that
was rejected before, and its new outcome takes the place of the old one.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wv_ingest.check import Reason
from wv_ingest.concatenate import row_groups
from wv_ingest.paths import PathTable
from wv_ingest.sources import Source
from wv_shards import REJECTS_FILE, SAMPLES_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """What is known already, and what becomes of earlier rejects."""

    packed: int
    """Rows of the source whose path is packed."""
    relabelled: int
    """Packed samples that the source has under another class."""
    stays: NDArray[np.bool_]
    """(earlier rejects,) whether an earlier reject stays: the source has no row to replace it."""
    gone_reasons: Counter[str]
    """Of the earlier rejects that are replaced."""
    gone_classes: NDArray[np.int64]
    """(classes,) replaced rejects that count as rows of their class."""
    gone_origins: Counter[str]
    """The same by origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRows:
    """Rows to try. As large as a source: not to be held while shards are packed."""

    source: Source
    """Only these rows, numbered anew in their order."""
    chosen: NDArray[np.int64]
    """(rows,) their places in the table of the whole source."""


def growth_of(directory: Path, source: Source) -> tuple[Growth, NewRows]:
    """Compare a source with the data set in `directory`.

    Raises:
        CorruptDataError: a table of the data set can't be read.
    """
    rows, out = source.rows, source.left_out
    table = PathTable([rows.column("path"), *([] if out is None else [out.column("path")])])
    labels = np.concatenate([source.labels, *([] if out is None else [out.column("label").to_numpy()])])
    marked, relabelled = np.zeros(len(labels), dtype=bool), 0
    for group in row_groups(directory / SAMPLES_FILE, ["path", "label"]):
        found = table.find(group.column("path"))
        hit = found >= 0
        marked[found[hit]] = True
        relabelled += int(np.count_nonzero(labels[found[hit]] != group.column("label").to_numpy()[hit]))
    known = table.spread(marked)
    chosen = np.flatnonzero(~known[: rows.num_rows])
    origins = [rows.column("source"), *([] if out is None else [out.column("source")])]
    origin_of = pa.chunked_array([part.cast(pa.string()) for column in origins for part in column.chunks], pa.string())
    stays: list[NDArray[np.bool_]] = []
    gone_reasons, gone_origins = Counter[str](), Counter[str]()
    gone_classes = np.zeros(len(source.class_names), dtype=np.int64)
    for group in row_groups(directory / REJECTS_FILE):
        found = table.find(group.column("path"))
        gone = (found >= 0) & ~known[np.maximum(found, 0)] if len(known) else np.zeros(len(found), dtype=bool)
        stays.append(~gone)
        lost = group.filter(pa.array(gone))
        gone_reasons.update(lost.column("reason").to_pylist())
        counted = pc.and_(
            pc.not_equal(lost.column("reason"), Reason.FILTERED.value), pc.greater_equal(lost.column("label"), 0)
        )
        gone_classes += np.bincount(lost.filter(counted).column("label").to_numpy(), minlength=len(gone_classes))
        numbers = pa.array(found[gone]).filter(counted.combine_chunks())
        gone_origins.update(name for name in origin_of.take(numbers).to_pylist() if name)
    growth = Growth(
        packed=int(np.count_nonzero(known)),
        relabelled=relabelled,
        stays=np.concatenate([np.empty(0, dtype=bool), *stays]),
        gone_reasons=gone_reasons,
        gone_classes=gone_classes,
        gone_origins=gone_origins,
    )
    return growth, NewRows(source=_to_try(source, chosen, known), chosen=chosen)


def _to_try(source: Source, chosen: NDArray[np.int64], known: NDArray[np.bool_]) -> Source:
    """The rows that are not known, of those left out too; numbers from 0 without gaps, in the source's order."""
    own = np.arange(source.rows.num_rows) if source.numbers is None else source.numbers
    own = own[chosen]
    out, out_numbers = source.left_out, np.empty(0, dtype=np.int64)
    if out is not None:
        out = out.filter(pa.array(~known[source.rows.num_rows :]))
        out_numbers = out.column("row").to_numpy()
    numbers = np.sort(np.concatenate([own, out_numbers]))
    if out is not None:
        column = out.schema.get_field_index("row")
        out = out.set_column(column, "row", pa.array(np.searchsorted(numbers, out_numbers)))
    return replace(
        source,
        rows=source.rows.take(pa.array(chosen)).combine_chunks(),
        numbers=np.searchsorted(numbers, own).astype(np.int64),
        left_out=out if out is not None and out.num_rows else None,
    )
