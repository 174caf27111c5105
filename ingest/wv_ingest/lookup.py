"""Where each row's bytes lie, and which files no row names: found before the shards are planned."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from wv_ingest.info_files import INFO_TAR
from wv_ingest.pack import ROWS
from wv_ingest.progress import Progress
from wv_ingest.ray_pool import AnyPool
from wv_ingest.source_files import METADATA_PLACES_FILE
from wv_ingest.sources import Source
from wv_ingest.tars import IndexedTar, IndexJob, Listed, Unlisted, add_up
from wv_shards import atomic_file

_NOTE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """What was found."""

    places: NDArray[np.void] | None = None
    """(rows,) of PLACE_DTYPE; None: the source has no tars."""
    unlisted: Unlisted | None = None
    """None: not looked for."""


def look_up(
    source: Source,
    build_dir: Path,
    pool: AnyPool,
    progress: Progress,
    *,
    unlisted: bool,
) -> Lookup:
    """Index the source's tars with the workers, find every row in them, and count what no row names.

    Args:
        source: its tars are indexed into `build_dir`.
        unlisted: whether to look for files that no list names; it walks all folders.
    """
    if source.folders is None:
        return Lookup(places=source.places, unlisted=source.strays)
    tars = _index(source, build_dir, pool, progress)
    if not tars and not unlisted:
        return Lookup()
    metadata = [name.encode() for name in source.metadata_lists]
    columns = [source.rows.column("path")]
    if source.left_out is not None:
        columns.append(source.left_out.column("path"))
    columns.append(pa.chunked_array([pa.array(metadata, pa.large_binary())]))
    listed = Listed(columns, source.flat)
    places = None
    if tars:
        found = listed.places(tars)
        places = found[: source.rows.num_rows]
        if metadata:
            _note_metadata(build_dir / METADATA_PLACES_FILE, metadata, found[-len(metadata) :])
    if not unlisted:
        return Lookup(places=places)
    progress.note("looking for files that no list names (--no-unlisted leaves it out)")
    total = add_up(listed.unlisted_files(source.root, source.folders), Unlisted(files=0, first=()))
    for tar in tars:
        if tar.job.tar.name != INFO_TAR:
            total = add_up(listed.unlisted_members(tar), total)
    return Lookup(places=places, unlisted=total)


def _index(source: Source, build_dir: Path, pool: AnyPool, progress: Progress) -> list[IndexedTar]:
    """All tars, by their number."""
    jobs = [
        IndexJob(tar=tar.resolve(), index=build_dir / f"members-{number:03d}.npy", flat=source.flat)
        for number, tar in enumerate(source.tars)
    ]
    if not jobs:
        return []
    progress.note(f"indexing {len(jobs)} tars")
    said = time.monotonic()

    def tick() -> None:
        nonlocal said
        if time.monotonic() - said > _NOTE_SECONDS:
            said = time.monotonic()
            progress.note(f"indexing tars: {pool.counters()[ROWS]:,} members")

    done = sorted(_largest_first(jobs, pool, tick), key=lambda tar: tar.job.index.name)
    for tar in done:
        for text in tar.warnings:
            progress.warn(text)
    return done


def _largest_first(jobs: list[IndexJob], pool: AnyPool, tick: Any) -> Iterator[IndexedTar]:
    yield from pool.run(sorted(jobs, key=lambda job: -job.tar.stat().st_size), tick)


def _note_metadata(path: Path, names: list[bytes], places: NDArray[np.void]) -> None:
    hit = np.flatnonzero(places["tar"] >= 0)
    table = pa.table(
        {
            "path": pa.array([names[i] for i in hit], pa.binary()),
            **{name: pa.array(np.ascontiguousarray(places[name][hit])) for name in ("tar", "offset", "size")},
        }
    )
    with atomic_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
