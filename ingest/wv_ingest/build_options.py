"""What is asked of a build: one value of options, which says what of it decides bytes."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wv_ingest.check import CheckOptions
from wv_ingest.duplicates import DuplicateOptions
from wv_ingest.parts import Part
from wv_ingest.pool import WorkerLimits
from wv_ingest.ray_pool import RayOptions
from wv_ingest.sources import Source, SourceOptions

DEFAULT_REJECT_FRACTION = 0.1


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
