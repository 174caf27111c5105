"""`build-shards`: plan the shards, have workers pack them, put the data set together.

    read_source → order_rows → trial → cut_shards → plan.json     (once; kept in OUT/.build)
                                                        │
                       workers: pack each shard into OUT/.build ──► outcomes, a file per shard
                                                        │
                       finalize: index, tables, tars moved to OUT, manifest last, OUT/.build removed

Of a part, only its share of the shards is packed, and the last step waits for `join`. All state is in OUT/.build. A
build that was killed anywhere goes on from there, and the finished bytes do not depend on it, nor on the number of
workers or parts.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from wv_ingest.build_state import (
    LOCK_FILE,
    PLAN_FILE,
    SPOOL_DIR,
    BuildState,
    Identity,
    build_lock,
    difference,
    existing,
    load_state,
    remove_build_dir,
    save_state,
    tars_of,
    unlock_orphans,
)
from wv_ingest.check import CheckOptions, Reason, codecs
from wv_ingest.duplicates import DuplicateOptions
from wv_ingest.errors import BuildError, BuildMismatchError, NothingReadableError, SourceError
from wv_ingest.finalize import finalize
from wv_ingest.lookup import Lookup, look_up
from wv_ingest.outcomes import ShardSummary, read_summary
from wv_ingest.pack import NOISY, Packer, TrialJob, outcomes_path
from wv_ingest.pack_apart import ApartPacker, clear_apart
from wv_ingest.parts import Part, forget_damaged, note_complete
from wv_ingest.plan import PlannedShard, RowOrder, cut_shards, order_rows
from wv_ingest.pool import WorkerLimits, WorkerPool
from wv_ingest.progress import Progress
from wv_ingest.ray_pool import AnyPool, RayOptions, RayPool
from wv_ingest.sources import Source, SourceOptions, read_source
from wv_ingest.webdataset_tars import scanned, streams_of, tars_of_source
from wv_ingest.webdataset_urls import TarUrl, remove_spooled
from wv_shards import BUILD_DIR, MANIFEST_FILE, PART_FILE, Manifest, OutputExistsError, ShardInfo, temporary_files

DEFAULT_REJECT_FRACTION = 0.1
_TRIAL_CHUNK = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """How to build. Check, source, limits, seed and shard size decide bytes and stand in the manifest."""

    check: CheckOptions = field(default_factory=CheckOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    seed: int = 0
    shard_mb: int = 64
    """A shard weighs about so many million bytes at most."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    max_reject_fraction: float = DEFAULT_REJECT_FRACTION
    """The build stops as soon as more of the source's rows than this are rejected; `filtered` ones do not count."""
    spool: Path | None = None
    """Where streams of a WebDataset source are spooled; None: in the unfinished build's folder."""
    unlisted: bool = True
    """Look for files that no list names; it decides that field of the manifest only."""
    duplicates: DuplicateOptions = field(default_factory=DuplicateOptions)
    part: Part | None = None
    """Pack this share of the shards only."""
    ray: RayOptions | None = None
    """Do the jobs on a Ray cluster; `workers` then has no meaning."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be within 0 … 2^63 − 1, got {self.seed}")
        if self.shard_mb < 1:
            raise ValueError(f"shards need 1 MB or more, got {self.shard_mb}")
        if self.workers < 1:
            raise ValueError(f"a build needs 1 worker or more, got {self.workers}")
        if not 0.0 <= self.max_reject_fraction <= 1.0:
            raise ValueError(f"the fraction of rejects must be within 0 … 1, got {self.max_reject_fraction}")

    def deciding(self, source: Source) -> dict[str, Any]:
        """What decides bytes besides seed, split and codecs, as the manifest's `options` has it."""
        return self.deciding_of(source.source_format, source.streams, source.digest())

    def deciding_of(self, source_format: str, streams: str | None, source_rows: str) -> dict[str, Any]:
        """The same of a source that was not read: its format, the fingerprints of its streams and of its rows."""
        return {
            "size": self.check.size_px,
            "quality": self.check.quality,
            "subsampling": self.check.subsampling,
            "keep_metadata": self.check.keep_metadata,
            "check": self.check.decode,
            "shard_mb": self.shard_mb,
            "max_bytes": self.check.max_bytes,
            "max_pixels": self.check.max_pixels,
            "max_side": self.check.max_side_px,
            "min_side": self.check.min_side_px,
            "max_aspect": self.check.max_aspect,
            "max_cpu_s": self.limits.max_cpu_s,
            "max_memory_mb": self.limits.max_memory_mb,
            **self.duplicates.deciding(),
            "source_format": source_format,
            **self.source.deciding(),
            **({} if streams is None else {"source_streams": streams}),
            "source_rows": source_rows,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """A finished data set, and how it came about."""

    manifest: Manifest
    seconds: float
    packed_rows: int
    """Rows that this run packed or rejected; fewer than all after a resume."""
    noisy_rows: int = 0
    """Rows of this run on which a decoder wrote to stderr; what it wrote is thrown away."""
    complete_before: bool = False
    """OUT already held exactly this data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartResult:
    """A complete part, which waits for the others."""

    part: Part
    shards: int
    """Of this part."""
    rows: int
    """Rows in them."""
    rejects: dict[str, int]
    """Of those rows, by reason."""
    seconds: float
    packed_rows: int
    """Rows that this run packed or rejected; fewer than all after a resume."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a build would do."""

    source: Source
    order: RowOrder
    shards: tuple[PlannedShard, ...]
    bytes_per_row: int
    lookup: Lookup


def plan_only(source_path: Path | str, options: BuildOptions, progress: Progress) -> DryRun:
    """Plan as `build` does, a trial on some images included, and write nothing (streams are spooled for the time).

    Raises:
        SourceError, ShardsError: as `read_source`.
        WorkerDiedError: a worker ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="wv-ingest-") as scratch:
        given = tars_of_source(source_path, options.source)
        source = _read(source_path, given, options, progress, options.spool or Path(scratch) / SPOOL_DIR)
        order = order_rows(source, options.seed)
        pool = _pool(source, Path(scratch), replace(options, ray=None))
        with _closing(pool):
            lookup = look_up(source, Path(scratch), pool, progress, unlisted=options.unlisted)
            shards, bytes_per_row = cut(source, order, lookup, options, pool)
    return DryRun(source=source, order=order, shards=tuple(shards), bytes_per_row=bytes_per_row, lookup=lookup)


def build(source_path: Path | str, out: Path, options: BuildOptions, progress: Progress) -> BuildResult:
    """Build the shards of a source into `out`, or finish a build of the same that was stopped.

    Args:
        source_path: file or folder; a text is a list of tars as `webdataset` understands it.

    Raises:
        SourceError: the source is not what it should be.
        OutputExistsError: `out` holds something else, or another build is at work there.
        BuildMismatchError: `out` holds a build, finished or not, of another source, other options or codecs.
        NothingReadableError: no image could be packed; `out` is as it was.
        BuildError: too many rejects, a worker died. The build can be resumed.
        OSError: no space left, no permission. The build can be resumed.
        Stopped: a signal arrived. The build can be resumed.
    """
    assert options.part is None, "build_part builds parts"
    result = _build(source_path, out, options, progress)
    assert isinstance(result, BuildResult)
    return result


def build_part(source_path: Path | str, out: Path, options: BuildOptions, progress: Progress) -> PartResult:
    """Build `options.part` into `out`, or finish it; raises as `build` does."""
    assert options.part is not None
    result = _build(source_path, out, options, progress)
    assert isinstance(result, PartResult)
    return result


def _build(source_path: Path | str, out: Path, options: BuildOptions, progress: Progress) -> BuildResult | PartResult:
    started = time.monotonic()
    existing(out)  # refuse before the long reading of a source
    given = tars_of_source(source_path, options.source)
    spool_dir = options.spool or out / BUILD_DIR / SPOOL_DIR
    if (streams := streams_of(given)) is not None and (out / MANIFEST_FILE).is_file():
        rows = str(Manifest.load(out).options.get("source_rows"))  # not compared: that would mean to fetch all again
        deciding = options.deciding_of("webdataset", streams, rows)
        same = Identity(seed=options.seed, split=options.source.split, options=deciding, codecs=codecs())
        return complete_before(out, same, started)
    try:
        source = _read(source_path, given, options, progress, spool_dir)
    except SourceError:
        for folder in (spool_dir, out / BUILD_DIR, out):
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()
        raise
    if not ((out / MANIFEST_FILE).is_file() or (out / BUILD_DIR / PLAN_FILE).is_file()):
        _refuse_inside(source, out)
    identity = Identity(
        seed=options.seed, split=options.source.split, options=options.deciding(source), codecs=codecs()
    )
    with build_lock(out) as build_dir:
        if build_dir is None:
            if options.part is not None:
                raise OutputExistsError(f"{out}: holds a finished data set; a part needs a folder of its own")
            return complete_before(out, identity, started)
        unlock_orphans(build_dir)
        clear_apart(build_dir)
        state = load_state(build_dir, out, identity, None if options.part is None else str(options.part))
        if state is not None and state.tars != tars_of(source):
            raise BuildMismatchError(
                f"{out}: holds an unfinished build from other tars than {source.root} has now (added, removed or of "
                "another size); put them back, or build into a new folder"
            )
        if options.part is not None and state is not None:
            forget_damaged(build_dir, options.part, state, progress)
        try:
            pool = _pool(source, build_dir, options)
            with _closing(pool):
                if state is None:
                    state = _plan(build_dir, identity, source, options, pool, progress)
                del source  # gigabytes for millions of rows; the workers map theirs from the plan
                quiet = pool.counters()[NOISY]  # the trial's are not counted twice
                packed_rows, rejects = pack_shards(out, build_dir, state, options, pool, progress)
                noisy_rows = pool.counters()[NOISY] - quiet
            clear_apart(build_dir)
        except NothingReadableError:
            remove_build_dir(build_dir)
            if not any(out.iterdir()):
                out.rmdir()
            raise
        except BaseException:
            clear_apart(build_dir)
            for leftover in temporary_files(build_dir):  # of a worker that was ended while it cleared up
                leftover.unlink()
            raise
        if options.part is not None:
            progress.note("noting the checksums of the part's files")
            note_complete(build_dir, options.part, state)
            return PartResult(
                part=options.part,
                shards=len(_own(state, options)),
                rows=sum(shard.stop - shard.start for shard in _own(state, options)),
                rejects=dict(sorted(rejects.items())),
                seconds=time.monotonic() - started,
                packed_rows=packed_rows,
            )
        manifest = finalize(out, build_dir, state, progress)
    remove_spooled(given, spool_dir)
    return BuildResult(
        manifest=manifest, seconds=time.monotonic() - started, packed_rows=packed_rows, noisy_rows=noisy_rows
    )


def _refuse_inside(source: Source, out: Path) -> None:
    """A new OUT may not lie in a folder that is walked for images.

    Raises:
        SourceError: it does.
    """
    above = (out.resolve(), *out.resolve().parents)
    if source.source_format == "folders" and source.root.resolve() in above:
        raise SourceError(f"{out}: lies inside the source, where it would become a class; choose another place")
    for folder in source.folders or ():
        if (source.root / folder).resolve() in above:
            raise SourceError(
                f"{out}: lies inside {source.root / folder}, where its files would count as images that no list names; "
                "choose another place"
            )


def packer(source: Source, build_dir: Path, options: BuildOptions) -> Packer:
    """What the workers do with the source's files."""
    return Packer(source.root.resolve(), build_dir, options.check, tuple(tar.resolve() for tar in source.tars))


def _pool(source: Source, build_dir: Path, options: BuildOptions) -> AnyPool:
    if options.ray is None:
        return WorkerPool(options.workers, packer(source, build_dir, options), options.limits)
    root, build_dir = source.root.resolve(), build_dir.resolve()
    apart = ApartPacker(root, build_dir, options.check, tuple(tar.resolve() for tar in source.tars))
    return RayPool(options.ray, apart, options.limits, partial(_sees, root, build_dir))


def _sees(root: Path, build_dir: Path) -> dict[str, Any]:
    """What must be alike on all nodes: the codecs, and that source and output are there."""
    return {**codecs(), "source": any(os.scandir(root)), "output": (build_dir / LOCK_FILE).is_file()}


def _read(
    path: Path | str, given: Sequence[TarUrl], options: BuildOptions, progress: Progress, spool_dir: Path
) -> Source:
    progress.note(f"reading {path}")
    tars = None
    if given:
        tars = scanned(path, given, options.source, spool_dir=spool_dir, workers=options.workers, progress=progress)
    source = read_source(path, options.source, tars)
    for text in source.warnings:
        progress.warn(text)
    without = [source.class_names[c] for c in (source.class_rows() == 0).nonzero()[0]]
    if without:
        shown = "; ".join(without[:5]) + ("; …" if len(without) > 5 else "")
        progress.warn(f"{len(without)} classes without rows, they get no band: {shown}")
    return source


def _plan(
    build_dir: Path,
    identity: Identity,
    source: Source,
    options: BuildOptions,
    pool: AnyPool,
    progress: Progress,
) -> BuildState:
    progress.note("planning")
    order = order_rows(source, options.seed)
    lookup = look_up(source, build_dir, pool, progress, unlisted=options.unlisted)
    shards, bytes_per_row = cut(source, order, lookup, options, pool)
    part = None if options.part is None else str(options.part)
    return save_state(build_dir, identity, part, source, order, shards, bytes_per_row, lookup)


def cut(
    source: Source,
    order: RowOrder,
    lookup: Lookup,
    options: BuildOptions,
    pool: AnyPool,
    before: Sequence[ShardInfo] = (),
) -> tuple[list[PlannedShard], int]:
    """Shards and the mean bytes of a row, learnt by packing some rows in trial; `before` as in `cut_shards`."""
    paths = source.rows.column("path").take(order.trial).to_pylist()
    found = [(-1, 0, 0)] * len(paths) if lookup.places is None else lookup.places[order.trial].tolist()
    places = [None if place[0] < 0 else place for place in found]
    starts = range(0, len(paths), _TRIAL_CHUNK)
    jobs = [
        TrialJob(paths=tuple(paths[i : i + _TRIAL_CHUNK]), places=tuple(places[i : i + _TRIAL_CHUNK])) for i in starts
    ]
    weights = [weight for weights in pool.run(jobs) for weight in weights]
    bytes_per_row = max(1, sum(weights) // max(1, len(weights)))
    return cut_shards(order.bands, bytes_per_row, options.shard_mb * 1_000_000, before), bytes_per_row


def _own(state: BuildState, options: BuildOptions) -> list[PlannedShard]:
    """The shards to pack here."""
    return state.shards if options.part is None else options.part.share(state.shards)


def pack_shards(
    out: Path,
    build_dir: Path,
    state: BuildState,
    options: BuildOptions,
    pool: AnyPool,
    progress: Progress,
    *,
    before: Counter[str] | None = None,
    rows_before: int = 0,
) -> tuple[int, Counter[str]]:
    """Have all shards packed that are not; returns how many rows that were, and all rejects by reason.

    Args:
        before: rejects that count for the limit too, of `rows_before` rows that are done.
    """
    before = before or Counter()
    whole = options.part is None
    shards = _own(state, options)
    rejects = Counter({Reason.REPEATED_ROW.value: state.repeated, **state.unlabelled} if whole else {})
    wanted = sum(shard.stop - shard.start for shard in shards) + rejects.total()
    todo, done_rows = [], rejects.total()
    for shard in shards:
        summary = finished(out, build_dir, shard)
        if summary is None:
            todo.append(shard)
        else:
            rejects.update(summary.rejects)
            done_rows += summary.rows
    if todo:
        (build_dir / PART_FILE).unlink(missing_ok=True)
    done_rejects = rejects.total()
    check_rejects(rejects + before, wanted + rows_before, options.max_reject_fraction, whole=whole)
    progress.start(total_rows=wanted, done_rows=done_rows, done_rejects=done_rejects, counters=pool.counters)
    # The largest first: the last ones to finish are then small. The order of work decides no byte.
    for summary in pool.run(sorted(todo, key=lambda s: s.start - s.stop), progress.tick):
        rejects.update(summary.rejects)
        check_rejects(rejects + before, wanted + rows_before, options.max_reject_fraction, whole=whole)
    progress.stop()
    if isinstance(pool, RayPool) and pool.lost:
        progress.warn(f"{pool.lost} actors of the Ray cluster died; others did their shards")
    return wanted - done_rows, rejects


def finished(out: Path, build_dir: Path, shard: PlannedShard) -> ShardSummary | None:
    """The shard's summary, if its outcomes are noted and its tar is whole, here or already in its place."""
    try:
        summary = read_summary(outcomes_path(build_dir, shard))
    except (OSError, ValueError):
        return None
    if summary.info is None:
        return summary
    for folder in (build_dir, out):
        tar = folder / f"{shard.name}.tar"
        if tar.is_file() and tar.stat().st_size == summary.info.bytes and tar.with_suffix(".idx").is_file():
            return summary
    return None


def check_rejects(rejects: Counter[str], rows: int, max_reject_fraction: float, *, whole: bool) -> None:
    """Stop a build that rejects too much.

    Raises:
        BuildError: more than the fraction of the rows are rejected.
        NothingReadableError: all are, and they are the `whole` source.
    """
    count = rejects.total()
    counts = ", ".join(f"{reason} {n}" for reason, n in sorted(rejects.items()) if n)
    if count > max_reject_fraction * rows:
        raise BuildError(
            f"{count} of {rows} rows rejected so far, more than --max-reject-fraction {max_reject_fraction:g} "
            f"({counts}); repair the source and build into a new folder, or run again with a higher fraction"
        )
    if whole and count == rows:
        raise NothingReadableError(f"no readable image in {rows} rows ({counts}); is this the right folder?")


def complete_before(out: Path, identity: Identity, started: float) -> BuildResult:
    """OUT holds a finished data set: fine if it is this one.

    Raises:
        BuildMismatchError: it is not.
    """
    manifest = Manifest.load(out)
    found = Identity.of(manifest)
    if other := difference(found, identity):
        rule = DuplicateOptions.of(identity.options).deciding()
        only_rule = not difference(replace(found, options={**found.options, **rule}), identity)
        instead = f"run `wv-ingest duplicates {out}` with the new option, or " if only_rule else ""
        raise BuildMismatchError(f"{out}: holds a finished data set with {other}; {instead}build into a new folder")
    if (out / BUILD_DIR).is_dir():  # killed after the manifest
        remove_build_dir(out / BUILD_DIR)
    return BuildResult(manifest=manifest, seconds=time.monotonic() - started, packed_rows=0, complete_before=True)


@contextmanager
def _closing(pool: AnyPool) -> Iterator[None]:
    try:
        yield
    finally:
        pool.close()
