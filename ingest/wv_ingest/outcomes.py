"""What became of each row of a shard: one Arrow file per shard in the unfinished build's folder.

A row has exactly one outcome: a record of the index if it was packed, a reason if not. The file is written last,
so a shard that has one is done, and a resumed build takes it as it is.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from wv_shards import INDEX_DTYPE, METADATA_SCHEMA, FinishedShard, IndexArray, ShardInfo, atomic_file

OUTCOMES_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # number in the source's order
        ("path", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),  # null: packed, and all that follows but `detail` is set
        ("detail", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("query", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int32()),
        ("content_hash", pa.uint64()),
        ("phash", pa.uint64()),  # null too where nothing was decoded, or the picture has too little structure
        ("phash_fine", pa.uint64()),
        ("record", pa.binary(INDEX_DTYPE.itemsize)),
    ]
)
_SUMMARY = b"summary"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSummary:
    """A finished shard in short: what resume and progress need of it."""

    rows: int
    info: ShardInfo | None
    """None: all of its rows were rejected, there is no tar."""
    rejects: dict[str, int]
    """By reason."""
    metadata_gaps: dict[str, int]
    """Packed rows without a record of metadata, by reason; empty where the source has no metadata."""


class OutcomeRows:
    """Collects outcomes, in the shard's order."""

    def __init__(self, *, with_metadata: bool = False) -> None:
        self._schema = pa.schema([*OUTCOMES_SCHEMA, *METADATA_SCHEMA]) if with_metadata else OUTCOMES_SCHEMA
        self._columns: dict[str, list[object]] = {name: [] for name in self._schema.names}
        self.metadata_gaps: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()

    def reject(self, *, row: int, path: str, label: int, reason: str, detail: str) -> None:
        """The row is not packed."""
        self._add(row=row, path=path, label=label, reason=reason, detail=detail)
        self.rejects[reason] += 1

    def pack(self, *, row: int, path: str, label: int, **facts: object) -> None:
        """The row is packed; `facts` are the columns from `key` to `phash_fine`."""
        self._add(row=row, path=path, label=label, **facts)

    def _add(self, **values: object) -> None:
        for name, column in self._columns.items():
            column.append(values.get(name))

    def write(self, path: Path, finished: FinishedShard | None) -> ShardSummary:
        """Write all rows, whole or not at all; `finished` brings the packed rows' index records."""
        reasons = self._columns["reason"]
        if finished is not None:
            records = iter(finished.records)
            self._columns["record"] = [next(records).tobytes() if reason is None else None for reason in reasons]
        summary = ShardSummary(
            rows=len(reasons),
            info=finished.info if finished else None,
            rejects=dict(sorted(self.rejects.items())),
            metadata_gaps=dict(sorted(self.metadata_gaps.items())),
        )
        schema = self._schema.with_metadata({_SUMMARY: json.dumps(asdict(summary)).encode()})
        table = pa.table([pa.array(self._columns[f.name], f.type) for f in schema], schema=schema)
        with atomic_file(path) as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_table(table)
        return summary


def read_summary(path: Path) -> ShardSummary:
    """The summary alone; the rows are not read.

    Raises:
        OSError, ValueError: the file is missing or no such file.
    """
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        document = json.loads(reader.schema.metadata[_SUMMARY])
    info = document.pop("info")
    return ShardSummary(info=ShardInfo(**info) if info else None, **document)


def read_outcomes(path: Path) -> pa.Table:
    """All rows of one shard, of OUTCOMES_SCHEMA."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def packed(outcomes: pa.Table) -> pa.Table:
    """The rows that were packed, in the order of the tar."""
    return outcomes.filter(pc.is_null(outcomes.column("reason")))


def rejected(outcomes: pa.Table) -> pa.Table:
    """The rows that were not."""
    return outcomes.filter(pc.is_valid(outcomes.column("reason")))


def records_of(packed_rows: pa.Table) -> IndexArray:
    """(samples,) of INDEX_DTYPE."""
    return np.frombuffer(b"".join(packed_rows.column("record").to_pylist()), dtype=INDEX_DTYPE)
