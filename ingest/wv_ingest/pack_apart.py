"""Packing for workers that may be given up while they still write: on a node that nobody hears of any more.

Each packs in a folder of its own below the build's folder and moves what is finished. Two that pack the same shard
then write the same bytes to different files, and whoever moves first or last, the shard is whole.
"""

import os
import shutil
import uuid
from pathlib import Path

from wv_ingest.check import CheckOptions
from wv_ingest.outcomes import ShardSummary
from wv_ingest.pack import PLAN_ROWS_FILE, WORKERS_LOCK_FILE, Packer, TrialJob, outcomes_path
from wv_ingest.plan import PlannedShard
from wv_ingest.pool import Desk
from wv_ingest.source_files import METADATA_PLACES_FILE
from wv_ingest.tars import IndexedTar, IndexJob
from wv_shards import fsync_directory

_PREFIX = "apart-"


class ApartPacker:
    """As `Packer`; its shards come to `build_dir` when they are finished."""

    def __init__(self, root: Path, build_dir: Path, options: CheckOptions, tars: tuple[Path, ...] = ()) -> None:
        self._build_dir = build_dir
        self._arguments = (root, options, tars)
        self._folder: Path | None = None
        self._packer: Packer | None = None

    def __call__(
        self, job: PlannedShard | TrialJob | IndexJob, desk: Desk
    ) -> ShardSummary | list[int] | IndexedTar | None:
        """See `Packer`."""
        if self._folder is None or self._packer is None:
            root, options, tars = self._arguments
            self._folder = self._build_dir / f"{_PREFIX}{uuid.uuid4().hex}"
            self._packer = Packer(root, self._folder, options, tars)
        if not isinstance(job, PlannedShard):
            return self._packer(job, desk)
        if not self._folder.is_dir():
            self._folder.mkdir()
            for name in (PLAN_ROWS_FILE, METADATA_PLACES_FILE, WORKERS_LOCK_FILE):
                (self._folder / name).symlink_to(Path("..") / name)
        result = self._packer(job, desk)
        if isinstance(result, ShardSummary):
            outcomes = outcomes_path(self._folder, job)
            names = [f"{job.name}.idx", f"{job.name}.tar"] if result.info is not None else []
            for name in [*names, outcomes.name]:  # last what says that the shard is there
                os.replace(self._folder / name, self._build_dir / name)
            fsync_directory(self._build_dir)
        return result


def clear_apart(build_dir: Path) -> None:
    """Remove what such workers have left; they have ended, or what they still write does not count."""
    for folder in build_dir.glob(f"{_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)
