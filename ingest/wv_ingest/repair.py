"""`verify --repair`: what is damaged is made again from what is sound, and takes its place only if it is the same.

    tar       its samples are packed again from the source, as a build does; the manifest's checksum must come out
    .idx      from its tar
    index     from all tars and samples.parquet; the manifest's checksum must come out
    _info     from the manifest

The tables can't be made again; for copies and exclusions the command that does it is named. Everything is prepared in
SHARDS/.repair and renamed when it is whole, so a kill loses nothing; what can't be made again stays as it is.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from wv_ingest.build_state import remove_build_dir
from wv_ingest.concatenate import row_groups
from wv_ingest.locks import folder_lock, unlock_orphans
from wv_ingest.lookup import look_up
from wv_ingest.mark_duplicates import MARK_FILES
from wv_ingest.outcomes import read_outcomes
from wv_ingest.pack import PLAN_ROWS_FILE, outcomes_path
from wv_ingest.paths import PathTable
from wv_ingest.plan import PlannedShard
from wv_ingest.pool import WorkerPool
from wv_ingest.progress import Progress
from wv_ingest.reuse import options_of, read_again
from wv_ingest.shard_jobs import packer
from wv_ingest.sources import METADATA_COLUMNS, Source
from wv_ingest.tars import PLACE_DTYPE
from wv_shards import (
    INDEX_DTYPE,
    INDEX_FILE,
    REJECTS_FILE,
    SAMPLES_FILE,
    TIMM_INFO_FILE,
    IndexArray,
    Manifest,
    Problem,
    ProblemKind,
    ShardInfo,
    ShardsError,
    atomic_file,
    checksum,
    dali_index,
    file_checksum,
    fsync_directory,
    member_lines,
    write_atomic,
    write_index,
    write_timm_info,
)

REPAIR_DIR = ".repair"
"""Folder of a repair inside the data set. It may be removed when none is at work."""
_TAR_DAMAGE = {ProblemKind.MISSING, ProblemKind.SIZE, ProblemKind.CHECKSUM, ProblemKind.UNREADABLE}


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairOptions:
    """What the data set's own options do not say."""

    path_column: str = "path"
    label_column: str = "label"
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What was done, for a person to read."""

    mended: tuple[str, ...]
    left: tuple[str, ...]
    """What could not be mended, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Damaged:
    """A shard to pack again."""

    info: ShardInfo
    start: int
    """Its first ordinal."""

    @property
    def stop(self) -> int:
        return self.start + self.info.samples


def repair(
    directory: Path,
    problems: Sequence[Problem],
    source_path: Path | None,
    options: RepairOptions,
    progress: Progress,
) -> Repair:
    """Mend what `verify` has found in the data set.

    Args:
        problems: as `verify` returned them.
        source_path: what the shards were built from; None: only what needs no source is mended.

    Raises:
        SourceError, BuildMismatchError: the source can't be read as the shards were built.
        OutputExistsError: another repair is at work.
        ShardsError: no finished data set.
        OSError, Stopped: the same command goes on.
    """
    manifest = Manifest.load(directory)
    tables = [name for name in (SAMPLES_FILE, REJECTS_FILE) if any(p.path.name == name for p in problems)]
    index_is_sound = _index_is_sound(directory, manifest)
    differ = {problem.path.name for problem in problems if problem.kind == ProblemKind.CHECKSUM}
    if SAMPLES_FILE in tables and not index_is_sound and SAMPLES_FILE not in differ:
        tables.remove(SAMPLES_FILE)  # it was compared with the index
    left = [f"{name}: can't be made again; restore it from a copy, or build anew into a new folder" for name in tables]
    left += [str(problem) for problem in problems if problem.path.name in MARK_FILES]
    mended: list[str] = []
    with folder_lock(directory / REPAIR_DIR) as repair_dir:
        unlock_orphans(repair_dir)
        damaged = list(_damaged(manifest, problems))
        if SAMPLES_FILE in tables:
            left += [f"{one.info.name}.tar: needs a sound {SAMPLES_FILE} to be packed again" for one in damaged]
        elif source_path is None:
            left += [f"{one.info.name}.tar: needs the source; give it with --repair SOURCE" for one in damaged]
        elif damaged:
            for text, done in _pack_again(directory, repair_dir, manifest, damaged, source_path, options, progress):
                (mended if done else left).append(text)
        suspects = {problem.path.stem for problem in problems if problem.path.suffix == ".idx"}
        if not index_is_sound:  # then `verify` has looked at none
            suspects = {info.name for info in manifest.shards}
        mended += _mend_idx(directory, suspects - {text.partition(".")[0] for text in left})
        if not index_is_sound:
            text, done = _mend_index(directory, repair_dir, manifest, progress)
            (mended if done else left).append(text)
        if any(problem.path.name == TIMM_INFO_FILE for problem in problems):
            write_timm_info(directory, manifest)
            mended.append(f"{TIMM_INFO_FILE}: written anew")
        remove_build_dir(repair_dir)
    return Repair(mended=tuple(mended), left=tuple(left))


def _index_is_sound(directory: Path, manifest: Manifest) -> bool:
    try:
        return file_checksum(directory / INDEX_FILE) == manifest.index_checksum
    except OSError:
        return False


def _damaged(manifest: Manifest, problems: Sequence[Problem]) -> Iterator[_Damaged]:
    bad = {problem.path.name for problem in problems if problem.kind in _TAR_DAMAGE}
    start = 0
    for info in manifest.shards:
        if f"{info.name}.tar" in bad:
            yield _Damaged(info=info, start=start)
        start += info.samples


def _pack_again(
    directory: Path,
    repair_dir: Path,
    manifest: Manifest,
    damaged: Sequence[_Damaged],
    source_path: Path,
    options: RepairOptions,
    progress: Progress,
) -> Iterator[tuple[str, bool]]:
    """Of each shard what was done, and whether it is mended."""
    build_options = options_of(
        directory,
        manifest,
        path_column=options.path_column,
        label_column=options.label_column,
        workers=options.workers,
    )
    source = read_again(directory, manifest, source_path, build_options, progress)
    samples = _samples(directory, damaged)
    pool: WorkerPool[Any, Any] = WorkerPool(
        build_options.workers, packer(source, repair_dir, build_options), build_options.limits
    )
    try:
        shards, refused = _plan(repair_dir, source, damaged, samples, pool, progress)
        yield from ((text, False) for text in refused)
        del source
        total = sum(shard.stop - shard.start for shard in shards.values())
        progress.start(total_rows=total, done_rows=0, done_rejects=0, counters=pool.counters)
        wanted = {one.info.name: one.info for one in damaged}
        for summary in pool.run(list(shards.values()), progress.tick):
            if summary.info is not None and summary.info.checksum == wanted[summary.info.name].checksum:
                name = summary.info.name
                for suffix in (".idx", ".tar"):
                    os.replace(repair_dir / f"{name}{suffix}", directory / f"{name}{suffix}")
                fsync_directory(directory)
                del shards[name]
                yield f"{name}.tar: packed again from {source_path}", True
        progress.stop()
    finally:
        pool.close()
    for shard in shards.values():
        path, why = _first_difference(repair_dir, shard, samples[shard.name])
        yield f"{shard.name}.tar: the source has changed since the build: {path} {why}; left as it is", False


def _samples(directory: Path, damaged: Sequence[_Damaged]) -> dict[str, pa.Table]:
    """Path, label and content_hash of each damaged shard's samples, in the order of its tar."""
    found: dict[str, list[pa.Table]] = {one.info.name: [] for one in damaged}
    start = 0
    for group in row_groups(directory / SAMPLES_FILE, ["path", "label", "content_hash"]):
        for one in damaged:
            first, last = max(one.start, start), min(one.stop, start + group.num_rows)
            if first < last:
                found[one.info.name].append(group.slice(first - start, last - first))
        start += group.num_rows
    return {name: pa.concat_tables(parts) for name, parts in found.items()}


def _plan(
    repair_dir: Path,
    source: Source,
    damaged: Sequence[_Damaged],
    samples: dict[str, pa.Table],
    pool: "WorkerPool[Any, Any]",
    progress: Progress,
) -> tuple[dict[str, PlannedShard], list[str]]:
    """Write the rows of the shards for the workers; also of shards whose paths the source does not name, why not."""
    progress.note(f"packing {len(damaged):,} shards again")
    table = PathTable([source.rows.column("path")])
    rows_of: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int32]] = []
    shards: dict[str, PlannedShard] = {}
    refused = []
    start = 0
    for one in damaged:
        of_shard = samples[one.info.name]
        rows = table.find(of_shard.column("path"))
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            path = of_shard.column("path")[int(absent[0])].as_py()
            refused.append(f"{one.info.name}.tar: {path} is not in {source.root}; left as it is")
            continue
        rows_of.append(rows)
        labels.append(of_shard.column("label").to_numpy())
        stop = start + len(rows)
        shards[one.info.name] = PlannedShard(name=one.info.name, band=one.info.band, start=start, stop=stop)
        start = stop
    chosen = np.concatenate([np.empty(0, dtype=np.int64), *rows_of])
    places = look_up(source, repair_dir, pool, progress, unlisted=False).places
    names = [name for name in source.rows.column_names if name not in {field.name for field in METADATA_COLUMNS}]
    plan = source.rows.select(names).take(pa.array(chosen))
    label = pa.array(np.concatenate([np.empty(0, dtype=np.int32), *labels]), pa.int32())
    plan = plan.set_column(plan.schema.get_field_index("label"), "label", label)
    if places is not None:
        for name in PLACE_DTYPE.names or ():
            plan = plan.append_column(name, pa.array(np.ascontiguousarray(places[name][chosen])))
    plan = plan.append_column("row", pa.array(np.arange(len(chosen)))).combine_chunks()
    with atomic_file(repair_dir / PLAN_ROWS_FILE) as file, pa.ipc.new_file(file, plan.schema) as writer:
        writer.write_table(plan)
    return shards, refused


def _first_difference(repair_dir: Path, shard: PlannedShard, samples: pa.Table) -> tuple[str, str]:
    """The first sample that is not what it was, and in what."""
    outcomes = read_outcomes(outcomes_path(repair_dir, shard))
    rows = zip(outcomes.to_pylist(), samples.column("content_hash").to_pylist(), strict=True)
    for row, content_hash in rows:
        if row["reason"] is not None:
            return row["path"], f"is now {row['reason']}"
        if row["content_hash"] != content_hash:
            return row["path"], "is another file now"
    return samples.column("path")[0].as_py(), "or another has another query or name in the lists now"


def _mend_idx(directory: Path, names: set[str]) -> Iterator[str]:
    """DALI indexes, from their tars, where they are not as they should be."""
    for name in sorted(names):
        path = directory / f"{name}.idx"
        wanted = dali_index(member_lines(directory / f"{name}.tar")).encode()
        if not path.is_file() or path.read_bytes() != wanted:
            write_atomic(path, wanted)
            yield f"{name}.idx: made from its tar"


def _mend_index(directory: Path, repair_dir: Path, manifest: Manifest, progress: Progress) -> tuple[str, bool]:
    """index.npy, from all tars and the table of samples."""
    progress.note(f"reading all tars for {INDEX_FILE}")
    try:
        write_index(repair_dir / INDEX_FILE, _records(directory, manifest), manifest.samples)
    except (OSError, ValueError, KeyError, tarfile.TarError, ShardsError) as error:
        return f"{INDEX_FILE}: can't be made from tars and {SAMPLES_FILE} while they are damaged ({error})", False
    if file_checksum(repair_dir / INDEX_FILE) != manifest.index_checksum:
        return f"{INDEX_FILE}: tars and {SAMPLES_FILE} give another one than the build had; left as it is", False
    os.replace(repair_dir / INDEX_FILE, directory / INDEX_FILE)
    fsync_directory(directory)
    return f"{INDEX_FILE}: made from tars and {SAMPLES_FILE}", True


def _records(directory: Path, manifest: Manifest) -> Iterator[IndexArray]:
    sides = (row for group in row_groups(directory / SAMPLES_FILE, ["width", "height"]) for row in group.to_pylist())
    for info in manifest.shards:
        tar = directory / f"{info.name}.tar"
        records = np.zeros(info.samples, dtype=INDEX_DTYPE)
        with open(tar, "rb") as file:
            for record, lines in zip(records, member_lines(tar), strict=True):
                members = {words[0]: (int(words[1]), int(words[2])) for words in (line.split(" ", 3) for line in lines)}
                offset, size = next(iter(members.values()))
                file.seek(offset)
                image = file.read(size)
                file.seek(members["cls"][0])
                label, side = int(file.read(members["cls"][1])), next(sides)
                values = (offset, checksum(image), size, label, side["width"], side["height"], 0)
                for name, value in zip(INDEX_DTYPE.names or (), values, strict=True):
                    record[name] = value
        yield records
