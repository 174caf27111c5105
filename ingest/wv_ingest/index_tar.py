"""One tar of `wv-ingest index`, done in a worker process: decode its images, note its records, write its DALI index.

The tar is only read. A sample that has no place in the index (no image, no label, an image that can't be read) is a
reject; one that does not decode stays in it and is flagged, so that what the index counts is what the tar holds.
"""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from wv_ingest.check import Accepted, CheckOptions, Reason, check_image, header_size
from wv_ingest.errors import BuildError
from wv_ingest.keys import text_of
from wv_ingest.outcomes import OutcomeRows, ShardSummary
from wv_ingest.pack import BYTES_READ, PLAN_ROWS_FILE, REJECTS, ROWS, WORKERS_LOCK_FILE, outcomes_path, place_of
from wv_ingest.phash import halves
from wv_ingest.plan import PlannedShard
from wv_ingest.pool import Desk
from wv_ingest.tar_walk import TarWalk
from wv_ingest.tars import NO_IMAGE
from wv_ingest.wds_samples import Samples, TarSample, split_name
from wv_shards import FLAG_BAD, INDEX_DTYPE, FinishedShard, ShardInfo, checksum, file_checksum, write_atomic
from wv_shards.writer import IDX_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class TarIndexer:
    """Indexes tars; picklable.

    Its shards are whole tars, their rows the tar's samples with a label, in the tar's order.
    """

    directory: Path
    """Of the tars."""
    build_dir: Path
    """Of the unfinished index, which holds the plan and gets outcomes and DALI indexes."""
    options: CheckOptions

    def __call__(self, shard: PlannedShard, desk: Desk) -> ShardSummary | None:
        """Index one tar; a probe only looks at its image."""
        # Shared until this job ends, so that a resumed run can wait for the last orphan of a killed one.
        with open(self.build_dir / WORKERS_LOCK_FILE, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return self._do(shard, desk)

    def _do(self, shard: PlannedShard, desk: Desk) -> ShardSummary | None:
        with pa.memory_map(str(self.build_dir / PLAN_ROWS_FILE)) as file, pa.ipc.open_file(file) as reader:
            rows = reader.read_all().slice(shard.start, shard.stop - shard.start).to_pylist()
        path = self.directory / f"{shard.name}.tar"
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if desk.probe is not None:
                place = place_of(rows[desk.probe])
                assert place is not None
                self._look(os.pread(descriptor, place[2], place[1]), desk.probe, desk)
                return None
            return self._index(shard, rows, path, descriptor, desk)
        finally:
            os.close(descriptor)

    def _index(
        self, shard: PlannedShard, rows: list[dict[str, object]], path: Path, descriptor: int, desk: Desk
    ) -> ShardSummary:
        outcomes = OutcomeRows()
        records: list[tuple[int, int, int, int, int, int, int]] = []
        lines: list[str] = []
        size = os.fstat(descriptor).st_size
        samples = iter(Samples(TarWalk(descriptor, size)))
        for item, row in enumerate(rows):
            name, number, label = row["path"], row["row"], row["label"]
            assert isinstance(name, bytes)
            assert isinstance(number, int)
            assert isinstance(label, int)
            member = name[len(os.fsencode(path.name)) + 1 :]
            place = place_of(row)
            assert place is not None
            desk.count_up(ROWS, 1)
            reason, data = _bytes_of(descriptor, place, self.options.max_bytes)
            if reason is not None:
                outcomes.reject(row=number, path=text_of(name), label=label, reason=reason.value, detail="")
                desk.count_up(REJECTS, 1)
                continue
            sample = _sample_at(samples, place[1])
            if sample is None:
                raise BuildError(f"{path}: changed while it was indexed; remove {self.build_dir} and run again")
            desk.count_up(BYTES_READ, len(data))
            found = self._look(data, item, desk)
            width, height, phash, fine = (0, 0, None, None) if found is None else found
            record = (place[1], checksum(data), len(data), label, width, height, FLAG_BAD if found is None else 0)
            records.append(record)
            lines.append(_idx_line(sample))
            split = split_name(member)
            assert split is not None
            outcomes.pack(
                row=number,
                path=text_of(name),
                label=label,
                key=text_of(split[0]),
                source=row["source"],
                query=row["query"],
                width=width,
                height=height,
                bytes=len(data),
                content_hash=record[1],
                phash=phash,
                phash_fine=fine,
            )
        if not records:
            return outcomes.write(outcomes_path(self.build_dir, shard), None)
        text = "\n".join([f"{IDX_VERSION} {len(lines)}", *lines, ""])
        write_atomic(self.build_dir / f"{shard.name}.idx", text.encode("utf-8", "surrogateescape"))
        info = ShardInfo(name=shard.name, samples=len(records), bytes=size, checksum=file_checksum(path), band=None)
        finished = FinishedShard(info, np.array(records, dtype=INDEX_DTYPE))
        return outcomes.write(outcomes_path(self.build_dir, shard), finished)

    def _look(self, data: bytes, item: int, desk: Desk) -> tuple[int, int, int | None, int | None] | None:
        """Width, height and perceptual hashes of an image; None if it does not decode."""
        if item in desk.verdicts:
            return None
        with desk.at(item):
            if self.options.decode == "header":
                size = header_size(data, self.options)
                return None if size is None else (*size, None, None)
            found = check_image(data, self.options)
            if isinstance(found, Accepted):
                return (found.width, found.height, *halves(found.phash))
            return None


def _bytes_of(descriptor: int, place: tuple[int, int, int], max_bytes: int) -> tuple[Reason | None, bytes]:
    if place[0] == NO_IMAGE:
        return Reason.NO_IMAGE, b""
    if place[2] > max_bytes:
        return Reason.TOO_MANY_BYTES, b""
    try:
        data = os.pread(descriptor, place[2], place[1])
    except OSError:
        return Reason.UNREADABLE, b""
    return (None, data) if len(data) == place[2] else (Reason.UNREADABLE, b"")


def _sample_at(samples: Iterator[TarSample], offset: int) -> TarSample | None:
    """The next sample whose image lies there."""
    return next((s for s in samples if s.image is not None and s.image.offset == offset), None)


def _idx_line(sample: TarSample) -> str:
    """All members of a sample, as DALI's index has them: words between blanks, so there is none within a word."""
    words = []
    for extension, member in sample.members:
        words += [_word(extension), str(member.offset), str(member.size), _word(member.name)]
    return " ".join(words)


def _word(text: bytes) -> str:
    return "".join("_" if c.isspace() else c for c in os.fsdecode(text)) or "_"
