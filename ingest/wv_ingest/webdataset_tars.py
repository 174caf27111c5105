"""From a WebDataset source as it was given to its tars scanned: found, spooled where need be, their samples listed."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wv_ingest.errors import SourceError
from wv_ingest.pack import ROWS
from wv_ingest.pool import Desk, WorkerPool
from wv_ingest.progress import Progress
from wv_ingest.source_webdataset import WebDatasetTars, digest_of, read_class_names
from wv_ingest.sources import SourceOptions, detect
from wv_ingest.wds_samples import ScanJob, ScannedTar, scan_tar
from wv_ingest.webdataset_urls import TarUrl, spooled, tar_urls
from wv_shards import MANIFEST_FILE, Manifest

_SAY_SECONDS = 10.0


def tars_of_source(source: Path | str, options: SourceOptions) -> list[TarUrl]:
    """The tars of a WebDataset source; none if it is something else.

    Raises:
        SourceError: no such source, or no layout that is known.
    """
    if isinstance(source, Path) and source.exists() and options.source_format is None:
        kind = detect(source)
    else:
        kind = options.source_format or ("list" if isinstance(source, Path) else "webdataset")
    if kind != "webdataset":
        for name, value in (("--label-key", options.label_key), ("--class-names", options.class_names)):
            if value is not None:
                raise SourceError(f"{source}: {name} is for WebDataset tars, this is read as {kind}")
        return []
    return tar_urls(source)


def streams_of(tars: Sequence[TarUrl]) -> str | None:
    """A fingerprint of the tars of a source if some of them are streams; None: all are files here."""
    return digest_of([tar.url for tar in tars]) if any(tar.local is None for tar in tars) else None


def scanned(
    source: Path | str,
    tars: Sequence[TarUrl],
    options: SourceOptions,
    *,
    spool_dir: Path,
    workers: int,
    progress: Progress,
) -> WebDatasetTars:
    """Spool the streams among the tars, then list the samples of all with `workers` processes.

    Raises:
        SourceError: one can't be opened or is no tar.
        OSError: no space left.
    """
    paths, warnings = spooled(tars, spool_dir, progress.note)
    if again := sum(tar.times > 1 for tar in tars):
        warnings = (*warnings, f"{again:,} tars stand in the source more than once; each is read once")
    jobs = [
        ScanJob(tar=path.resolve(), name=tar.url, label_key=options.label_key)
        for path, tar in zip(paths, tars, strict=True)
    ]
    progress.note(f"listing the samples of {len(jobs)} tars")
    return WebDatasetTars(
        names=tuple(tar.name for tar in tars),
        paths=tuple(paths),
        scanned=tuple(_scan(jobs, min(workers, len(jobs)), progress)),
        warnings=warnings,
        streams=streams_of(tars),
        class_names=_class_names(source, options),
    )


def _class_names(source: Path | str, options: SourceOptions) -> tuple[str, ...] | None:
    if options.class_names is not None:
        return read_class_names(options.class_names)
    if options.label_key is None and isinstance(source, Path) and (source / MANIFEST_FILE).is_file():
        return tuple(info.name for info in Manifest.load(source).classes)  # our own shards, to be packed again
    return None


def _scan(jobs: Sequence[ScanJob], workers: int, progress: Progress) -> list[ScannedTar]:
    """In the order of the jobs."""
    said = time.monotonic()
    found: dict[Path, ScannedTar] = {}

    def tick() -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            samples = sum(tar.samples.num_rows for tar in found.values())
            progress.note(f"listing samples: {len(found):,} of {len(jobs):,} tars, {samples:,} samples")

    for job, tar in _results(jobs, workers, tick):
        found[job.tar] = tar
    return [found[job.tar] for job in jobs]


def _results(jobs: Sequence[ScanJob], workers: int, tick: Any) -> Iterator[tuple[ScanJob, ScannedTar]]:
    if workers == 1:  # a process more would only cost its start
        for job in jobs:
            yield job, scan_tar(job)
            tick()
        return
    pool: WorkerPool[ScanJob, tuple[ScanJob, ScannedTar]] = WorkerPool(workers, scan_job)
    try:
        yield from pool.run(sorted(jobs, key=lambda job: -job.tar.stat().st_size), tick)
    finally:
        pool.close()


def scan_job(job: ScanJob, desk: Desk) -> tuple[ScanJob, ScannedTar]:
    """`scan_tar` in a worker."""
    tar = scan_tar(job)
    desk.count_up(ROWS, tar.samples.num_rows)
    return job, tar
