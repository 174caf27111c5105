"""One shard's job, done in a worker process: read its rows' files, check them, pack them, note every outcome."""

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from wv_ingest.check import Accepted, CheckOptions, Reason, Rejected, check_header, decode_image
from wv_ingest.keys import key_of, text_of
from wv_ingest.metadata import Metadata
from wv_ingest.outcomes import OutcomeRows, ShardSummary
from wv_ingest.phash import halves
from wv_ingest.plan import PlannedShard
from wv_ingest.pool import Desk, Verdict
from wv_ingest.source_files import SourceFiles
from wv_ingest.tars import NO_IMAGE, IndexedTar, IndexJob, index_tar, indexed
from wv_shards import ShardWriter, checksum

PLAN_ROWS_FILE = "plan.arrow"
"""Rows in the plan's order: path, label, source, query and the row's number in the source."""
WORKERS_LOCK_FILE = "workers.lock"
"""Workers that write hold a shared lock on it."""

ROWS, REJECTS, BYTES_READ, BYTES_PACKED, NOISY = range(5)
"""Counters of `pool.WorkerPool`."""

_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Failures to open a file that say nothing about the file."""


_CONDEMNED = {
    Verdict.CRASHED: Reason.DECODER_CRASHED,
    Verdict.CPU_LIMIT: Reason.DECODER_CPU_LIMIT,
    Verdict.MEMORY_LIMIT: Reason.DECODER_MEMORY_LIMIT,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJob:
    """Files to check and weigh, without packing them."""

    paths: tuple[bytes, ...]
    places: tuple["Place | None", ...]
    """Where a path lies in a tar, if it does; as long as `paths`."""


Place = tuple[int, int, int]
"""Number of the tar, offset, size."""


class Packer:
    """Does `IndexJob`s, `TrialJob`s and `PlannedShard`s; picklable, each worker has one.

    Args:
        root: what paths are relative to.
        build_dir: folder of the unfinished build, which holds the plan and gets tars and outcomes.
        options: checks and sizes.
        tars: archives that hold what is not there as a file.
    """

    def __init__(self, root: Path, build_dir: Path, options: CheckOptions, tars: tuple[Path, ...] = ()) -> None:
        self._root = os.fsencode(root)
        self._build_dir = build_dir
        self._options = options
        self._rows: pa.Table | None = None
        self._files = SourceFiles(root, build_dir, tars)

    def __call__(
        self, job: PlannedShard | TrialJob | IndexJob, desk: Desk
    ) -> ShardSummary | list[int] | IndexedTar | None:
        """A shard's summary; or, for a trial, the bytes that each file takes in a tar, 0 for a reject.

        Rows are the desk's items. A probe only looks at its row, and has no result.
        """
        if isinstance(job, IndexJob):
            before = 0
            for members in index_tar(job):
                desk.count_up(ROWS, members - before)
                before = members
            return indexed(job)
        if desk.probe is not None:
            if isinstance(job, TrialJob):
                path, place = job.paths[desk.probe], job.places[desk.probe]
            else:
                (row,) = self._rows_of(job).slice(desk.probe, 1).to_pylist()
                path, place = row["path"], place_of(row)
            self._examine(path, place, desk.probe, desk)
            return None
        if isinstance(job, TrialJob):
            places = zip(job.paths, job.places, strict=True)
            return [self._weigh(path, place, item, desk) for item, (path, place) in enumerate(places)]
        return self._pack(job, desk)

    def _rows_of(self, shard: PlannedShard) -> pa.Table:
        return self._plan_rows().slice(shard.start, shard.stop - shard.start)

    def _pack(self, shard: PlannedShard, desk: Desk) -> ShardSummary:
        rows, count_up = self._rows_of(shard), desk.count_up
        with_metadata = "meta" in rows.schema.names
        metadata = Metadata(self._build_dir, self._files.metadata)
        outcomes = OutcomeRows(with_metadata=with_metadata)
        with ShardWriter(self._build_dir, shard.name) as writer:
            for item, row in enumerate(rows.to_pylist()):
                path, number, label = row["path"], row["row"], row["label"]
                text = text_of(path)
                image, data = self._examine(path, place_of(row), item, desk)
                count_up(BYTES_READ, len(data))
                if desk.complained():
                    count_up(NOISY, 1)
                if isinstance(image, Rejected):
                    reason = image.reason.value
                    outcomes.reject(row=number, path=text, label=label, reason=reason, detail=image.detail)
                    count_up(REJECTS, 1)
                else:
                    key, origin = key_of(path), {"source": row["source"], "query": row["query"]}
                    sides = {"width": image.width, "height": image.height}
                    writer.add(key, image.data, label, {"path": text, **origin}, **sides)
                    coarse, fine = halves(image.phash)
                    facts: dict[str, object] = {
                        "bytes": len(image.data),
                        "content_hash": checksum(data),
                        "phash": coarse,
                        "phash_fine": fine,
                    }
                    if with_metadata:
                        record, gap = metadata.record(row["meta"].encode(), row["meta_row"])
                        facts |= record
                        outcomes.metadata_gaps.update([gap] if gap else [])
                    outcomes.pack(row=number, path=text, label=label, key=key, **origin, **sides, **facts)
                    count_up(BYTES_PACKED, len(image.data))
                count_up(ROWS, 1)
            some = sum(outcomes.rejects.values()) < rows.num_rows
            finished = writer.finish(shard.band) if some else None
        return outcomes.write(outcomes_path(self._build_dir, shard), finished)

    def _weigh(self, path: bytes, place: Place | None, item: int, desk: Desk) -> int:
        image, _ = self._examine(path, place, item, desk)
        if isinstance(image, Rejected):
            return 0
        facts_bytes = 64 + len(path)
        return 3 * 512 + sum(-(-size // 512) * 512 for size in (len(image.data), 1, facts_bytes))

    def _plan_rows(self) -> pa.Table:
        """The plan's rows, mapped: the pages of one shard are in memory, not the table."""
        if self._rows is None:
            # Held until this process ends, so that a resumed build can wait for the last orphan of a killed one.
            self._lock = os.open(self._build_dir / WORKERS_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            self._rows = pa.ipc.open_file(pa.memory_map(str(self._build_dir / PLAN_ROWS_FILE))).read_all()
        return self._rows

    def _examine(self, path: bytes, place: Place | None, item: int, desk: Desk) -> tuple[Accepted | Rejected, bytes]:
        """What becomes of a file, and its bytes; no bytes where it was not read."""
        if item in desk.verdicts:
            return Rejected(reason=_CONDEMNED[desk.verdicts[item]], detail=""), b""
        data = self._read(path, place)
        if isinstance(data, Rejected):
            return data, b""
        if known := check_header(data, self._options):
            return known, data
        with desk.at(item):
            return decode_image(data, self._options), data

    def _read(self, path: bytes, place: Place | None) -> bytes | Rejected:
        """The file's bytes; nothing that a source can hold makes this hang or fill the memory."""
        try:
            descriptor = os.open(os.path.join(self._root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            if place is not None:
                return self._read_member(place)
            return Rejected(reason=Reason.MISSING, detail="")
        except ValueError:  # a zero byte in the path
            return Rejected(reason=Reason.MISSING, detail="bad-name")
        except OSError as error:
            return _unreadable(error)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return Rejected(reason=Reason.UNREADABLE, detail="not-a-file")
            if status.st_size > self._options.max_bytes:
                return Rejected(reason=Reason.TOO_MANY_BYTES, detail=str(status.st_size))
            data = os.read(descriptor, status.st_size + 1)
            while len(data) > status.st_size and (more := os.read(descriptor, self._options.max_bytes)):
                data += more  # it has grown since, to a size that is refused below if need be
                if len(data) > self._options.max_bytes:
                    break
            return data
        except OSError as error:
            return _unreadable(error)
        finally:
            os.close(descriptor)

    def _read_member(self, place: Place) -> bytes | Rejected:
        if place[0] == NO_IMAGE:
            return Rejected(reason=Reason.NO_IMAGE, detail="")
        if place[2] > self._options.max_bytes:
            return Rejected(reason=Reason.TOO_MANY_BYTES, detail=str(place[2]))
        try:
            data = self._files.member(place)
        except OSError as error:
            return _unreadable(error)
        return data if len(data) == place[2] else Rejected(reason=Reason.UNREADABLE, detail="tar-changed")


def place_of(row: dict[str, Any]) -> Place | None:
    """Where a row of the plan lies in a tar, if it does."""
    return None if row.get("tar", -1) == -1 else (row["tar"], row["offset"], row["size"])


def outcomes_path(build_dir: Path, shard: PlannedShard) -> Path:
    """Where the outcomes of a shard's rows are noted."""
    return build_dir / f"{shard.name}.outcomes"


def _unreadable(error: OSError) -> Rejected:
    if error.errno in _FULL:
        raise error
    return Rejected(reason=Reason.UNREADABLE, detail=errno.errorcode.get(error.errno or 0, "EIO"))
