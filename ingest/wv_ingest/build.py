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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from wv_ingest.build_options import BuildOptions
from wv_ingest.build_state import (
    PLAN_FILE,
    SPOOL_DIR,
    BuildState,
    Identity,
    difference,
    load_state,
    remove_build_dir,
    save_state,
    tars_of,
)
from wv_ingest.check import codecs
from wv_ingest.duplicates import DuplicateOptions
from wv_ingest.errors import BuildMismatchError, NothingReadableError, SourceError
from wv_ingest.finalize import finalize
from wv_ingest.locks import LOCK_FILE, build_lock, existing, unlock_orphans
from wv_ingest.lookup import Lookup, look_up
from wv_ingest.pack import NOISY
from wv_ingest.pack_apart import ApartPacker, clear_apart
from wv_ingest.parts import Part, forget_damaged, note_complete
from wv_ingest.plan import PlannedShard, RowOrder, order_rows
from wv_ingest.pool import WorkerPool
from wv_ingest.progress import Progress
from wv_ingest.ray_pool import AnyPool, RayPool
from wv_ingest.shard_jobs import cut, own_shards, pack_shards, packer
from wv_ingest.sources import Source, read_source
from wv_ingest.webdataset_tars import scanned, streams_of, tars_of_source
from wv_ingest.webdataset_urls import TarUrl, remove_spooled
from wv_shards import BUILD_DIR, MANIFEST_FILE, Manifest, OutputExistsError, temporary_files


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
                shards=len(own_shards(state, options)),
                rows=sum(shard.stop - shard.start for shard in own_shards(state, options)),
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
