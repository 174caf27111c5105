"""`index`: foreign WebDataset tars become a data set where they lie, without being rewritten.

    scan headers and labels → plan.json → workers: decode each tar's images → .build/NAME.outcomes, NAME.idx
                                                                  │
                    index, tables, DALI indexes beside the tars, manifest last, .build removed

It goes on after a kill as a build does: all state is in DIR/.build, a tar that is done is not done again.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wv_ingest.build import BuildResult
from wv_ingest.build_state import BuildState, Identity, difference, load_state, read_state, remove_build_dir, save_state
from wv_ingest.check import CheckOptions, codecs
from wv_ingest.errors import BuildMismatchError, NothingReadableError, SourceError
from wv_ingest.finalize import manifest_of, move_into_place, write_tables
from wv_ingest.index_tar import TarIndexer
from wv_ingest.locks import folder_lock, unlock_orphans
from wv_ingest.lookup import Lookup
from wv_ingest.outcomes import ShardSummary, read_summary
from wv_ingest.pack import outcomes_path
from wv_ingest.plan import PlannedShard, RowOrder
from wv_ingest.pool import WorkerLimits, WorkerPool
from wv_ingest.progress import Progress
from wv_ingest.source_webdataset import digest_of
from wv_ingest.sources import Source, SourceOptions, Split, read_source
from wv_ingest.webdataset_tars import scanned
from wv_ingest.webdataset_urls import tar_urls, tars_in
from wv_shards import (
    BUILD_DIR,
    IN_PLACE,
    INDEX_FILE,
    MANIFEST_FILE,
    REJECTS_FILE,
    SAMPLES_FILE,
    Manifest,
    OutputExistsError,
    ShardInfo,
    temporary_files,
)

_COMPRESSED = ("*.tar.gz", "*.tgz", "*.tar.bz2", "*.tar.xz", "*.tar.zst")
_NO_BAND = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexOptions:
    """How to index. All but `workers` decide bytes and stand in the manifest."""

    check: CheckOptions = field(default_factory=lambda: CheckOptions(size_px=0, min_side_px=1, max_aspect=65_500.0))
    """Its limits say what decodes; nothing is stored anew."""
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    split: Split = "train"
    label_key: str | None = None
    class_names: Path | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"indexing needs 1 worker or more, got {self.workers}")


def index_shards(directory: Path, options: IndexOptions, progress: Progress) -> BuildResult:
    """Index the tars in `directory`, or finish indexing them.

    Raises:
        SourceError: no tars, compressed ones, no labels.
        OutputExistsError: the directory holds something that would be overwritten, or another command is at work.
        BuildMismatchError: it holds an index, finished or not, of other tars or with other options.
        NothingReadableError: no sample has a place in the index.
        OSError: no space left, no permission. The same command goes on.
        Stopped: a signal arrived. The same command goes on.
    """
    started = time.monotonic()
    tars = _tars(directory)
    identity = _identity(tars, options)
    build_dir = directory / BUILD_DIR
    if (directory / MANIFEST_FILE).is_file():
        return _complete_before(directory, identity, started)
    if not build_dir.is_dir():
        for name in (INDEX_FILE, SAMPLES_FILE, REJECTS_FILE):
            if (directory / name).exists():
                raise OutputExistsError(
                    f"{directory / name}: is there and no manifest; move it away, it would be replaced"
                )
    try:
        with folder_lock(build_dir):
            packed_rows, manifest = _index(directory, build_dir, identity, options, progress)
    except PermissionError as error:
        raise OutputExistsError(
            f"{directory}: can't be written to ({error.strerror}); manifest and indexes go beside the tars, so make it "
            "writable, or link the tars into a folder that is"
        ) from error
    return BuildResult(manifest=manifest, seconds=time.monotonic() - started, packed_rows=packed_rows)


def _tars(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise SourceError(f"{directory}: no such folder; expected one with WebDataset tars")
    packed = sorted(path.name for pattern in _COMPRESSED for path in directory.glob(pattern))
    if packed:
        raise SourceError(
            f"{directory / packed[0]}: compressed tars can't be read at random; unpack {len(packed)} of them "
            "(`gzip -d`, `zstd -d`, …) or pack them anew with build-shards and pipe:"
        )
    tars = tars_in(directory)
    if not tars:
        raise SourceError(f"{directory}: no *.tar in it; expected WebDataset tars")
    return tars


def _identity(tars: list[Path], options: IndexOptions) -> Identity:
    check = options.check
    names = None if options.class_names is None else options.class_names.read_text(encoding="utf-8", errors="replace")
    deciding: dict[str, Any] = {
        IN_PLACE: True,
        "source_format": "webdataset",
        "check": check.decode,
        "max_bytes": check.max_bytes,
        "max_pixels": check.max_pixels,
        "max_side": check.max_side_px,
        "max_cpu_s": options.limits.max_cpu_s,
        "max_memory_mb": options.limits.max_memory_mb,
        "tars": digest_of([f"{tar.name} {tar.stat().st_size}" for tar in tars]),
    }
    if options.label_key is not None:
        deciding["label_key"] = options.label_key
    if names is not None:
        deciding["class_names"] = digest_of([names])
    return Identity(seed=0, split=options.split, options=deciding, codecs=codecs())


def _complete_before(directory: Path, identity: Identity, started: float) -> BuildResult:
    manifest = Manifest.load(directory)
    if manifest.options.get(IN_PLACE) is not True:
        raise OutputExistsError(f"{directory}: is a data set of wv-toolkit already, there is nothing to index")
    if other := difference(Identity.of(manifest), identity):
        raise BuildMismatchError(
            f"{directory}: holds an index with {other}; remove {MANIFEST_FILE}, {INDEX_FILE}, {SAMPLES_FILE}, "
            f"{REJECTS_FILE} and *.idx to index it anew"
        )
    if (directory / BUILD_DIR).is_dir():  # killed after the manifest
        remove_build_dir(directory / BUILD_DIR)
    return BuildResult(manifest=manifest, seconds=time.monotonic() - started, packed_rows=0, complete_before=True)


def _index(
    directory: Path, build_dir: Path, identity: Identity, options: IndexOptions, progress: Progress
) -> tuple[int, Manifest]:
    unlock_orphans(build_dir)
    began = read_state(build_dir)
    if began is not None and (other := difference(began.identity, identity)):
        raise BuildMismatchError(
            f"{directory}: holds an unfinished index with {other}; finish it as it was begun, or remove {build_dir}"
        )
    state = load_state(build_dir, directory, identity, None)
    try:
        if state is None:
            state = _plan(directory, build_dir, identity, options, progress)
        todo = [shard for shard in state.shards if _finished(directory, build_dir, shard) is None]
        todo_rows = sum(shard.stop - shard.start for shard in todo)
        rows = sum(shard.stop - shard.start for shard in state.shards)
        indexer = TarIndexer(directory=directory.resolve(), build_dir=build_dir.resolve(), options=options.check)
        pool: WorkerPool[Any, Any] = WorkerPool(min(options.workers, max(1, len(todo))), indexer, options.limits)
        try:
            progress.start(
                total_rows=rows, done_rows=rows - todo_rows, done_rejects=0, counters=pool.counters, what="indexing"
            )
            for _ in pool.run(sorted(todo, key=lambda s: s.start - s.stop), progress.tick):
                pass
            progress.stop()
        finally:
            pool.close()
    except SourceError:
        remove_build_dir(build_dir)
        raise
    except BaseException:
        for leftover in temporary_files(build_dir):
            leftover.unlink()
        raise
    return todo_rows, _finalize(directory, build_dir, state, progress)


def _plan(
    directory: Path, build_dir: Path, identity: Identity, options: IndexOptions, progress: Progress
) -> BuildState:
    chosen = SourceOptions(
        split=options.split,
        source_format="webdataset",
        label_key=options.label_key,
        class_names=options.class_names,
    )
    progress.note(f"reading {directory}")
    given = tar_urls(directory)
    found = scanned(directory, given, chosen, spool_dir=build_dir, workers=options.workers, progress=progress)
    source = read_source(directory, chosen, found)
    for text in source.warnings:
        progress.warn(text)
    order = RowOrder(
        order=np.arange(source.rows.num_rows),
        bands=(),
        repeated=np.empty(0, dtype=np.int64),
        trial=np.empty(0, dtype=np.int64),
    )
    lookup = Lookup(places=source.places, unlisted=source.strays)
    shards = _whole_tars(source, [len(tar.samples) for tar in found.scanned])
    return save_state(build_dir, identity, None, source, order, shards, 0, lookup)


def _whole_tars(source: Source, samples: list[int]) -> list[PlannedShard]:
    """A shard for each tar: the rows that its samples have."""
    numbers = np.arange(source.rows.num_rows) if source.numbers is None else source.numbers
    stops = np.searchsorted(numbers, np.cumsum(samples)).tolist()
    starts = [0, *stops[:-1]]
    return [
        PlannedShard(name=tar.name.removesuffix(".tar"), band=_NO_BAND, start=start, stop=stop)
        for tar, start, stop in zip(source.tars, starts, stops, strict=True)
    ]


def _finished(directory: Path, build_dir: Path, shard: PlannedShard) -> ShardSummary | None:
    """The tar's summary, if its outcomes are noted and its DALI index is there."""
    try:
        summary = read_summary(outcomes_path(build_dir, shard))
    except (OSError, ValueError):
        return None
    there = any((folder / f"{shard.name}.idx").is_file() for folder in (build_dir, directory))
    return summary if summary.info is None or there else None


def _finalize(directory: Path, build_dir: Path, state: BuildState, progress: Progress) -> Manifest:
    now = [[tar.name, tar.stat().st_size] for tar in tars_in(directory)]
    if now != state.tars:
        raise BuildMismatchError(
            f"{directory}: its tars changed while they were indexed; remove {build_dir}, run again"
        )
    tables = write_tables(build_dir, state, progress)
    if not tables.samples:
        counts = ", ".join(f"{reason} {n}" for reason, n in tables.rejects.items())
        raise NothingReadableError(f"{directory}: no sample with an image and a label in it ({counts})")
    _refuse_other_indexes(directory, build_dir, tables.shards)
    manifest = manifest_of(build_dir, state, tables, bands=False)
    move_into_place(build_dir, directory, tables.shards)
    manifest.save(directory)
    remove_build_dir(build_dir)
    return manifest


def _refuse_other_indexes(directory: Path, build_dir: Path, shards: tuple[ShardInfo, ...]) -> None:
    """A DALI index that someone made is replaced only by an equal one."""
    for shard in shards:
        own, other = build_dir / f"{shard.name}.idx", directory / f"{shard.name}.idx"
        if own.is_file() and other.is_file() and own.read_bytes() != other.read_bytes():
            raise OutputExistsError(
                f"{other}: is there and lists other members than the samples that were indexed; move it away and run "
                "the same command again, what is done is kept"
            )
