"""`append`: images that a source has and a data set has not become new shards of it. Old tars are never touched.

    read_again → growth_of → order_rows → cut → plan.json      in SHARDS/.append, while SHARDS can be read as before
                                                    │
                workers: pack each new shard ──► outcomes ──► tables of the new rows
                                                    │
                SHARDS/.append/joined: index, tables, _info.json of old and new; its manifest.json last
                                                    │
    finish_swap: new tars to SHARDS, manifest.json away, files exchanged, the new manifest last

Ordinals only append, and the new manifest names the old digest, so that overlays hold. Killed anywhere it goes on; once
`joined/manifest.json` is there the source is not needed any more.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wv_ingest.build_options import DEFAULT_REJECT_FRACTION, BuildOptions
from wv_ingest.build_state import (
    APPENDED,
    PLAN_FILE,
    BuildState,
    Identity,
    load_state,
    read_state,
    remove_build_dir,
    save_state,
    tars_of,
)
from wv_ingest.check import Reason
from wv_ingest.concatenate import join_indexes, join_rejects, join_samples, refuse_damaged_tables, row_groups
from wv_ingest.duplicates import DuplicateOptions
from wv_ingest.errors import BuildMismatchError, SourceError
from wv_ingest.exclude import excluded_rows, refuse_lost
from wv_ingest.finalize import Tables, class_of, unlisted_of, write_tables
from wv_ingest.growth import Growth, NewRows, growth_of
from wv_ingest.locks import folder_lock, unlock_orphans
from wv_ingest.lookup import Lookup, look_up
from wv_ingest.mark_duplicates import MARK_FILES, mark_duplicates
from wv_ingest.plan import order_rows
from wv_ingest.pool import WorkerPool
from wv_ingest.progress import Progress
from wv_ingest.reuse import options_of, read_again
from wv_ingest.shard_jobs import cut, pack_shards, packer
from wv_ingest.sources import Source
from wv_shards import (
    APPEND_DIR,
    EXCLUDE,
    EXCLUDE_ASKED,
    INDEX_FILE,
    MANIFEST_FILE,
    REJECTS_FILE,
    REJECTS_SCHEMA,
    SAMPLES_FILE,
    TIMM_INFO_FILE,
    ClassInfo,
    EarlierInfo,
    Manifest,
    OriginInfo,
    Overlay,
    band_of,
    check_index,
    file_checksum,
    fsync_directory,
    table_checksums,
    temporary_files,
    write_timm_info,
)

_JOINED = "joined"
_BASE = "base"
"""In the plan's identity: digest of the data set that is being appended to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendOptions:
    """What the data set's own options do not say."""

    path_column: str = "path"
    label_column: str = "label"
    classes_from: Path | None = None
    """Shards whose classes the source has to use."""
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    max_reject_fraction: float = DEFAULT_REJECT_FRACTION
    """Of all rows, those that were there before too."""
    unlisted: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class AppendResult:
    """What the data set is now, and what was before."""

    manifest: Manifest
    before: Manifest
    """The same where nothing new was found."""
    seconds: float
    packed_before: int
    """Rows of the source whose path was packed already."""

    @property
    def changed(self) -> bool:
        """Whether anything was new."""
        return self.manifest != self.before


def append(directory: Path, source_path: Path, options: AppendOptions, progress: Progress) -> AppendResult:
    """Append what is new in a source to the data set in `directory`, or finish an append that was stopped.

    Raises:
        SourceError: the source is not what it should be, or a class of it would get another id.
        BuildMismatchError: an unfinished append of something else; other codecs or options than the data set's.
        OutputExistsError: another append is at work there.
        BuildError: too many rejects, a worker died. The append can be resumed.
        ShardsError: no finished data set, or a damaged one.
        OSError, Stopped: as `build`. The append can be resumed.
    """
    started = time.monotonic()
    append_dir = directory / APPEND_DIR
    if (append_dir / _JOINED / MANIFEST_FILE).is_file():
        with folder_lock(append_dir):
            finished = finish_swap(directory)
        progress.note(f"finished an append that was stopped: {finished.samples:,} images; looking for more")
    before = Manifest.load(directory)
    refuse_lost(directory, before)
    check_index(directory / INDEX_FILE, before.index_checksum)
    refuse_damaged_tables(directory, before)
    build_options = options_of(
        directory,
        before,
        path_column=options.path_column,
        label_column=options.label_column,
        workers=options.workers,
        max_reject_fraction=options.max_reject_fraction,
        unlisted=options.unlisted,
    )
    if source_path.resolve() in directory.resolve().parents and build_options.source.source_format == "folders":
        raise SourceError(f"{directory}: lies inside the source, where it would become a class; give another source")
    with folder_lock(append_dir):
        if Manifest.load(directory).digest != before.digest:
            raise BuildMismatchError(f"{directory}: another append has just finished; run the same command again")
        unlock_orphans(append_dir)
        read = partial(read_again, directory, before, source_path, build_options, progress, options.classes_from)
        try:
            after, packed = _append(directory, before, read, build_options, progress)
        except BaseException:
            if append_dir.is_dir() and not (append_dir / PLAN_FILE).is_file():
                remove_build_dir(append_dir)  # nothing has been packed
            for leftover in temporary_files(append_dir):
                leftover.unlink()
            raise
    return AppendResult(manifest=after, before=before, seconds=time.monotonic() - started, packed_before=packed)


def _append(
    directory: Path, before: Manifest, read: Callable[[], Source], options: BuildOptions, progress: Progress
) -> tuple[Manifest, int]:
    append_dir = directory / APPEND_DIR
    source = read()
    progress.note("comparing with what is there")
    growth, new = growth_of(directory, source)
    if growth.relabelled:
        progress.warn(f"{growth.relabelled:,} images are packed under another class than the source has now; they stay")
    if not new.source.rows_in_all and len(source.class_names) == len(before.classes):
        if read_state(append_dir) is None:  # else it is an unfinished append of something else
            remove_build_dir(append_dir)
        return before, growth.packed
    final_options = {**before.options, APPENDED: [*before.options.get(APPENDED, []), source.digest()]}
    identity = Identity(
        seed=before.seed, split=before.split, options={**final_options, _BASE: before.digest}, codecs=before.codecs
    )
    state = load_state(append_dir, append_dir, identity)
    if state is not None and state.tars != tars_of(source):
        raise BuildMismatchError(
            f"{append_dir}: holds an unfinished append from other tars than {source.root} has now (added, removed or "
            "of another size); put them back, or remove that folder"
        )
    pool = WorkerPool(options.workers, packer(source, append_dir, options), options.limits)
    try:
        if state is None:
            state = _plan(append_dir, before, identity, source, new, options, pool, progress)
        del source, new  # gigabytes for millions of rows; the workers map theirs from the plan
        left = Counter(before.rejects) - growth.gone_reasons - Counter({Reason.FILTERED.value: before.rows})
        pack_shards(
            append_dir,
            append_dir,
            state,
            options,
            pool,
            progress,
            before=left,
            rows_before=before.samples + left.total(),
        )
    finally:
        pool.close()
    tables = write_tables(append_dir, state, progress)
    if not tables.samples and len(state.class_names) == len(before.classes) and _same_rejects(directory, growth):
        remove_build_dir(append_dir)
        return before, growth.packed
    _join(directory, before, growth, state, tables, final_options, progress)
    return finish_swap(directory), growth.packed


def _plan(
    append_dir: Path,
    before: Manifest,
    identity: Identity,
    source: Source,
    new: NewRows,
    options: BuildOptions,
    pool: "WorkerPool[Any, Any]",
    progress: Progress,
) -> BuildState:
    progress.note(f"planning {new.source.rows.num_rows:,} rows")
    bands = [
        info.band if info is not None and info.rows else band_of(int(rows))
        for info, rows in zip_longest(before.classes, new.source.class_rows().tolist())
    ]
    order = order_rows(new.source, options.seed, bands)
    found = look_up(source, append_dir, pool, progress, unlisted=options.unlisted)
    lookup = Lookup(places=None if found.places is None else found.places[new.chosen], unlisted=found.unlisted)
    shards, bytes_per_row = cut(new.source, order, lookup, options, pool, before.shards)
    return save_state(append_dir, identity, None, new.source, order, shards, bytes_per_row, lookup)


def _same_rejects(directory: Path, growth: Growth) -> bool:
    """Whether the rows that were tried again have been rejected just as before."""
    old, start = [REJECTS_SCHEMA.empty_table()], 0
    for group in row_groups(directory / REJECTS_FILE):
        gone = ~growth.stays[start : start + group.num_rows]
        old.append(group.select(REJECTS_SCHEMA.names).replace_schema_metadata().filter(pa.array(gone)))
        start += group.num_rows
    new = [
        REJECTS_SCHEMA.empty_table(),
        *(group.replace_schema_metadata() for group in row_groups(directory / APPEND_DIR / REJECTS_FILE)),
    ]
    by_all = [(name, "ascending") for name in REJECTS_SCHEMA.names]
    return bool(pa.concat_tables(old).sort_by(by_all).equals(pa.concat_tables(new).sort_by(by_all)))


def _join(
    directory: Path,
    before: Manifest,
    growth: Growth,
    state: BuildState,
    tables: Tables,
    options: dict[str, Any],
    progress: Progress,
) -> None:
    """Write into `joined` what the data set is to become, its manifest last."""
    append_dir = directory / APPEND_DIR
    joined = append_dir / _JOINED
    joined.mkdir(exist_ok=True)
    join_indexes(
        joined / INDEX_FILE, [(directory / INDEX_FILE, before.samples), (append_dir / INDEX_FILE, tables.samples)]
    )
    samples = join_samples(joined / SAMPLES_FILE, [directory / SAMPLES_FILE, append_dir / SAMPLES_FILE])
    rejects = join_rejects(
        joined / REJECTS_FILE, [(directory / REJECTS_FILE, growth.stays), (append_dir / REJECTS_FILE, None)]
    )
    assert samples == before.samples + tables.samples, "a sample was lost or added"
    classes = _classes(before, growth, state, tables)
    origins = dict.fromkeys([*before.sources, *state.origin_rows])
    manifest = replace(
        before,
        classes=classes,
        shards=(*before.shards, *tables.shards),
        samples=samples,
        rows=samples + sum(rejects.values()),
        rejects=rejects,
        sources={name: _origin(name, before, growth, state, tables) for name in sorted(origins)},
        unlisted=unlisted_of(state),
        metadata_gaps=dict(sorted((Counter(before.metadata_gaps) + Counter(tables.metadata_gaps)).items())),
        index_checksum=file_checksum(joined / INDEX_FILE),
        tables={**before.tables, **table_checksums(joined)},
        options=options,
    )
    if manifest.digest != before.digest:  # else only rejects have changed
        was = EarlierInfo(digest=before.digest, samples=before.samples)
        manifest = replace(manifest, earlier=(*before.earlier, was))
    if before.duplicates is not None and tables.samples:
        rule, rows = DuplicateOptions.of(options), excluded_rows(directory, manifest)
        manifest = mark_duplicates(joined, manifest, rule, progress, rows)
    write_timm_info(joined, manifest)
    manifest.save(joined)
    fsync_directory(append_dir)


def _classes(before: Manifest, growth: Growth, state: BuildState, tables: Tables) -> tuple[ClassInfo, ...]:
    classes = []
    for class_id in range(len(state.class_names)):
        rows, samples = state.class_rows[class_id], tables.class_samples[class_id]
        if class_id >= len(before.classes):
            classes.append(class_of(state, tables, class_id))
            continue
        was = before.classes[class_id]
        classes.append(
            replace(
                was,
                rows=was.rows - int(growth.gone_classes[class_id]) + rows,
                samples=was.samples + samples,
                band=was.band if was.rows else band_of(rows),
            )
        )
    return tuple(classes)


def _origin(name: str, before: Manifest, growth: Growth, state: BuildState, tables: Tables) -> OriginInfo:
    was = before.sources.get(name, OriginInfo(rows=0, samples=0))
    return OriginInfo(
        rows=was.rows - growth.gone_origins[name] + state.origin_rows.get(name, 0),
        samples=was.samples + tables.origin_samples[name],
    )


def finish_swap(directory: Path) -> Manifest:
    """Make the data set what `joined` says. It can be killed at any moment and repeated; the manifest comes last."""
    append_dir = directory / APPEND_DIR
    joined = append_dir / _JOINED
    after = Manifest.load(joined)
    present = directory / MANIFEST_FILE
    if present.is_file() and after.samples_at(Manifest.load(directory).digest) is None:
        raise BuildMismatchError(f"{append_dir}: belongs to another data set than {directory} holds; remove it")
    for info in after.shards:
        for suffix in (".idx", ".tar"):
            if (append_dir / f"{info.name}{suffix}").exists():
                os.replace(append_dir / f"{info.name}{suffix}", directory / f"{info.name}{suffix}")
    fsync_directory(directory)
    if present.is_file():
        _keep_asked(directory, after)
    present.unlink(missing_ok=True)  # from here on the data set is visibly unfinished
    fsync_directory(directory)
    for name in (INDEX_FILE, SAMPLES_FILE, REJECTS_FILE, TIMM_INFO_FILE, *MARK_FILES):
        if (joined / name).exists():
            os.replace(joined / name, directory / name)
    fsync_directory(directory)
    os.replace(joined / MANIFEST_FILE, present)
    fsync_directory(directory)
    remove_build_dir(append_dir)
    return after


def _keep_asked(directory: Path, after: Manifest) -> None:
    """Exclusions by key that were made or undone since `joined` was written hold too."""
    joined = directory / APPEND_DIR / _JOINED
    now, prepared = excluded_rows(directory, after), excluded_rows(joined, after)
    if now is None or prepared is None:  # nothing was prepared: the overlay stays, and is extended by its readers
        return
    asked = np.uint8(EXCLUDE_ASKED)
    rows = (prepared & ~asked) | (now & asked)
    if not np.array_equal(rows, prepared):
        overlay = Overlay.load(joined / EXCLUDE, manifest_digest=after.digest)
        replace(overlay, array=rows).save(joined / EXCLUDE)
