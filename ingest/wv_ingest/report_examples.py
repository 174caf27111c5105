"""Which of the rows that were not packed a report shows: some of each reason, drawn by lot, the same every time."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wv_ingest.check import Reason
from wv_ingest.counts import table_batches
from wv_shards import REJECTS_FILE, Dataset, splitmix64

EXAMPLES = 5
"""Paths that are shown of a reason."""
_DETAILS = 32
"""Details of a reason that are sure to have an example while the table is read."""


class Example(NamedTuple):
    """A row that was not packed."""

    row: int
    """Of the table of rejects."""
    path: str
    label: int
    detail: str


@dataclass(kw_only=True, slots=True)
class RejectExamples:
    """What is known of one reason."""

    details: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    """Drawn by lot, of as many details as there is room for, in the table's order."""


def reject_examples(dataset: Dataset) -> dict[str, RejectExamples]:
    """Of each reason some rows drawn by lot, and some of every detail; `filtered` rows have no examples."""
    found: dict[str, RejectExamples] = {}
    if not dataset.manifest.rejects:
        return found
    start = 0
    for batch in table_batches(dataset.directory / REJECTS_FILE, ["reason", "detail", "path", "label"]):
        reasons, details = (pc.fill_null(batch.column(name), "") for name in ("reason", "detail"))
        pairs = pa.table({"reason": reasons, "detail": details}).group_by(["reason", "detail"])
        new: set[tuple[str, str]] = set()
        for row in pairs.aggregate([([], "count_all")]).to_pylist():
            known = found.setdefault(row["reason"], RejectExamples())
            if row["detail"] not in known.details and len(known.details) < _DETAILS:
                new.add((row["reason"], row["detail"]))
            known.details[row["detail"]] += row["count_all"]
        lots = _lots(start + np.arange(batch.num_rows))
        for reason in set(reasons.unique().to_pylist()) - {Reason.FILTERED.value}:
            own = np.flatnonzero(pc.equal(reasons, reason).to_numpy(zero_copy_only=False))
            own = own[np.argsort(lots[own], kind="stable")]
            firsts = {details[int(place)].as_py(): int(place) for place in own[::-1]} if new else {}
            wanted = {int(place) for place in own[:EXAMPLES]}
            wanted |= {place for detail, place in firsts.items() if (reason, detail) in new}
            rows = batch.take(pa.array(sorted(wanted))).to_pylist()
            found[reason].examples += [
                Example(start + place, row["path"], row["label"], row["detail"] or "")
                for place, row in zip(sorted(wanted), rows, strict=True)
            ]
            found[reason].examples = _kept(found[reason].examples)
        start += batch.num_rows
    for known in found.values():
        known.examples = _spread(known.examples)
    return found


def _lots(rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes that say which rows are drawn: the same every time."""
    return splitmix64(rows)


def _kept(examples: list[Example]) -> list[Example]:
    """By lot: EXAMPLES of all, and one of each detail."""
    lots = _lots(np.array([example.row for example in examples], dtype=np.int64))
    order = [examples[place] for place in np.argsort(lots, kind="stable")]
    firsts = {example.detail: example for example in reversed(order)}
    return [example for place, example in enumerate(order) if place < EXAMPLES or firsts[example.detail] is example]


def _spread(examples: list[Example]) -> list[Example]:
    """EXAMPLES of them, which are in the order of their lots: of every detail one before any has a second."""
    turns = Counter[str]()
    ranked = []
    for place, example in enumerate(examples):
        ranked.append((turns[example.detail], place))
        turns[example.detail] += 1
    return sorted(examples[place] for _, place in sorted(ranked)[:EXAMPLES])
