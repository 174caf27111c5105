"""What an unfinished build remembers in OUT/.build. `locks` says who may work on it.

`plan.json` is written last: it says what is being built (the identity), the shards, and the counts. It is the
only thing that a resumed build believes; without it the build starts anew.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import xxhash

from wv_ingest.check import Reason
from wv_ingest.errors import BuildMismatchError
from wv_ingest.keys import text_of
from wv_ingest.locks import LOCK_FILE
from wv_ingest.lookup import Lookup
from wv_ingest.outcomes import OutcomeRows
from wv_ingest.pack import PLAN_ROWS_FILE, WORKERS_LOCK_FILE
from wv_ingest.plan import PlannedShard, RowOrder
from wv_ingest.sources import Source
from wv_ingest.tars import PLACE_DTYPE
from wv_shards import (
    REJECTS_SCHEMA,
    Manifest,
    atomic_file,
    fsync_directory,
    write_atomic,
)

PLAN_FILE = "plan.json"
FILTERED_FILE = "filtered.arrow"
REPEATED_FILE = "repeated.outcomes"
SPOOL_DIR = "spool"
"""Where streams of a WebDataset source are spooled; an unfinished build keeps it, whatever its plan."""
APPENDED = "appended"
"""Key of the manifest's options: digests of the sources that were appended, in their order."""
MERGED = "merged"
"""Key of the manifest's options: of each data set that was merged the digest, and the options in which they differ."""
_CHUNK_ROWS = 1 << 16

_NOT_OF_THE_PLAN = ("part", "tars")
"""Fields of BuildState that may differ between machines which build parts of one data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """All that decides a byte of a data set, but the bytes of the images. Equal ones are the same build."""

    seed: int
    split: str
    options: dict[str, Any]
    """As the manifest has them."""
    codecs: dict[str, str]
    """Decoder and encoder, with versions."""

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """That of a finished data set."""
        return cls(seed=manifest.seed, split=manifest.split, options=manifest.options, codecs=manifest.codecs)

    def by_name(self) -> dict[str, Any]:
        """Everything on one level, for comparing."""
        return {"seed": self.seed, "split": self.split, **self.options, **self.codecs}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildState:
    """A build's plan, as plan.json has it."""

    identity: Identity
    part: str | None
    """`3/16`: only that share of the shards is packed here. None: all."""
    class_names: list[str]
    """By class id."""
    order: str
    """xxh3_128 of the row numbers in their order: two plans with the same one pack the same rows the same way."""
    rows: int
    """Rows of the source."""
    repeated: int
    """Rows whose path an earlier row has; they are in no shard."""
    filtered: int
    """Rows that were not asked for; they are in no shard."""
    unlabelled: dict[str, int]
    """Rows without a class, by reason; they are in no shard."""
    origin_rows: dict[str, int]
    """By `google` and `flickr`, filtered rows left out; empty where the source has no origins."""
    original_ids: list[int] | None
    """By class id, the id in the source; None: the same."""
    metadata: bool
    """Whether samples.parquet has the columns of METADATA_SCHEMA."""
    tars: list[list[Any]]
    """Names and bytes of the source's tars, by the number that the plan's rows name."""
    unlisted: list[Any] | None
    """How many files no list names, and the first names; None: not looked for."""
    class_rows: list[int]
    """By class id."""
    bytes_per_row: int
    shards: list[PlannedShard]
    """In the order of ordinals."""

    def plan(self) -> dict[str, Any]:
        """What all parts of one data set have in common, JSON-able."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_OF_THE_PLAN}

    def plan_digest(self) -> str:
        """xxh3_128 of `plan`."""
        return xxhash.xxh3_128_hexdigest(json.dumps(self.plan(), sort_keys=True).encode())


def differing(found: Identity, wanted: Identity) -> str | None:
    """Name of a quantity in which two identities differ; None: the same.

    `source_rows` only if all others are alike, `appended` only if all but that are.
    """
    ours, theirs = found.by_name(), wanted.by_name()
    names = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
    return min(names, key=lambda name: (name == "source_rows", name == APPENDED), default=None)


def difference(found: Identity, wanted: Identity) -> str | None:
    """What two identities differ in, in words for a person; None if in nothing."""
    name = differing(found, wanted)
    if name is None:
        return None
    if name == "source_rows":
        return "other rows or classes than the source has now"
    if name == APPENDED:
        return "images that were appended since (`wv-ingest append`)"
    return f"{name} {found.by_name().get(name)}, now it is {wanted.by_name().get(name)}"


def read_state(build_dir: Path) -> BuildState | None:
    """The plan in `build_dir`; None if there is none.

    Raises:
        BuildMismatchError: it is there, but damaged, or not as this version of wv-toolkit writes it.
    """
    try:
        document = json.loads((build_dir / PLAN_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BuildMismatchError(
            f"{build_dir / PLAN_FILE}: is damaged ({error}); remove {build_dir} and start again"
        ) from error
    try:
        document["identity"] = Identity(**document["identity"])
        document["shards"] = [PlannedShard(**shard) for shard in document["shards"]]
        return BuildState(**document)
    except (TypeError, KeyError) as error:
        raise BuildMismatchError(
            f"{build_dir.parent}: holds an unfinished build of another version of wv-toolkit; finish it with that "
            "one, remove it, or build into a new folder"
        ) from error


def load_state(build_dir: Path, out: Path, identity: Identity, part: str | None = None) -> BuildState | None:
    """The plan of the unfinished build; None if there is none yet, or of something else with no shard packed.

    What was begun is then cleared away.

    Raises:
        BuildMismatchError: it is the build of something else; the message says what differs.
    """
    state = read_state(build_dir)
    if state is None:
        _clear(build_dir)
        return None
    other = difference(state.identity, identity)
    if other is None and state.part != part:
        other = f"part {state.part or 'none'}, now it is {part or 'none'}"
    if other is None:
        return state
    if any(out.glob("*.tar")) or any(build_dir.glob("*.tar")):
        raise BuildMismatchError(
            f"{out}: holds an unfinished build with {other}; "
            "finish it as it was begun, remove it, or build into a new folder"
        )
    _clear(build_dir)
    return None


def save_state(
    build_dir: Path,
    identity: Identity,
    part: str | None,
    source: Source,
    order: RowOrder,
    shards: list[PlannedShard],
    bytes_per_row: int,
    lookup: Lookup,
) -> BuildState:
    """Write the plan: rows in its order, repeated and filtered rows as outcomes, and last plan.json."""
    rows = source.rows
    if lookup.places is not None:
        for name in PLACE_DTYPE.names or ():
            rows = rows.append_column(name, pa.array(np.ascontiguousarray(lookup.places[name])))
    numbers_of = np.arange(rows.num_rows) if source.numbers is None else source.numbers
    schema = rows.schema.append(pa.field("row", pa.int64()))
    with atomic_file(build_dir / PLAN_ROWS_FILE) as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(order.order), _CHUNK_ROWS):
            numbers = pa.array(order.order[start : start + _CHUNK_ROWS])
            own = pa.array(numbers_of[order.order[start : start + _CHUNK_ROWS]])
            writer.write_table(rows.take(numbers).append_column("row", own).combine_chunks())
    repeated = OutcomeRows()
    first_labels = _first_labels(rows, order)
    for number, row in zip(order.repeated.tolist(), rows.take(pa.array(order.repeated)).to_pylist(), strict=True):
        path, label = row["path"], row["label"]
        detail = "same-label" if first_labels[path] == label else "other-label"
        repeated.reject(
            row=int(numbers_of[number]),
            path=text_of(path),
            label=label,
            reason=Reason.REPEATED_ROW.value,
            detail=detail,
        )
    repeated.write(build_dir / REPEATED_FILE, None)
    if source.left_out is not None:
        _write_filtered(build_dir / FILTERED_FILE, source.left_out)
    origins = Counter(dict(zip(*_value_counts(rows.column("source")), strict=True)))
    origins.pop("", None)
    unlabelled = (
        {} if source.left_out is None else dict(zip(*_value_counts(source.left_out.column("reason")), strict=True))
    )
    filtered = unlabelled.pop(Reason.FILTERED.value, 0)
    state = BuildState(
        identity=identity,
        part=part,
        class_names=list(source.class_names),
        order=xxhash.xxh3_128_hexdigest(order.order.astype("<i8").tobytes()),
        rows=source.rows_in_all,
        filtered=filtered,
        unlabelled=dict(sorted(unlabelled.items())),
        origin_rows=dict(sorted(origins.items())),
        original_ids=None if source.original_ids is None else list(source.original_ids),
        metadata=source.has_metadata,
        tars=tars_of(source),
        unlisted=None if lookup.unlisted is None else [lookup.unlisted.files, list(lookup.unlisted.first)],
        repeated=len(order.repeated),
        class_rows=source.class_rows().tolist(),
        bytes_per_row=bytes_per_row,
        shards=shards,
    )
    write_state(build_dir, state)
    return state


def write_state(build_dir: Path, state: BuildState) -> None:
    """Write plan.json: from now on the build is what it says."""
    write_atomic(build_dir / PLAN_FILE, json.dumps(asdict(state), indent=1).encode())


def tars_of(source: Source) -> list[list[Any]]:
    """Names and bytes of its tars."""
    return [[tar.name, tar.stat().st_size] for tar in source.tars]


def _write_filtered(path: Path, left_out: pa.Table) -> None:
    """Rows that get into no shard by what the source says of them, in its order: `finalize` streams them into the
    table of rejects."""
    schema = pa.schema([("row", pa.int64()), *REJECTS_SCHEMA])
    with atomic_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, left_out.num_rows, _CHUNK_ROWS):
            part = left_out.slice(start, _CHUNK_ROWS)
            columns = {
                "row": part.column("row"),
                "path": pa.array([text_of(text) for text in part.column("path").to_pylist()], pa.string()),
                "label": part.column("label"),
                "reason": part.column("reason"),
                "detail": part.column("detail").cast(pa.string()),
            }
            writer.write_table(pa.table(columns).cast(schema).combine_chunks())


def filtered_rows(build_dir: Path) -> Iterator[pa.Table]:
    """The rows that `_write_filtered` noted, some ten thousand at a time; none if there is no such file."""
    if not (build_dir / FILTERED_FILE).is_file():
        return
    with pa.memory_map(str(build_dir / FILTERED_FILE)) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(number)])


def _value_counts(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    counts = pc.value_counts(column.cast(pa.string()))
    return counts.field("values").to_pylist(), counts.field("counts").to_pylist()


def remove_build_dir(build_dir: Path) -> None:
    """The build is finished; nothing in its folder is needed any more."""
    shutil.rmtree(build_dir)
    fsync_directory(build_dir.parent)


def _clear(build_dir: Path) -> None:
    (build_dir / PLAN_FILE).unlink(missing_ok=True)  # first: without it nothing else counts
    for leftover in build_dir.iterdir():
        if leftover.is_dir() and leftover.name != SPOOL_DIR:
            shutil.rmtree(leftover)
        elif leftover.name not in (LOCK_FILE, WORKERS_LOCK_FILE, SPOOL_DIR):
            leftover.unlink()


def _first_labels(rows: pa.Table, order: RowOrder) -> dict[bytes, int]:
    """Label of the first row of each path that is repeated."""
    if not len(order.repeated):
        return {}
    paths = rows.column("path")
    wanted = paths.take(pa.array(order.repeated)).unique()
    found = rows.select(["path", "label"]).filter(pc.is_in(paths, wanted))
    labels: dict[bytes, int] = {}
    for path, label in zip(*(column.to_pylist() for column in found.columns), strict=True):
        labels.setdefault(path, label)
    return labels
