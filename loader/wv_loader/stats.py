"""What the loader did and waited for: sums and counts, so that they can be added over ranks and divided last."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_CONSUMER_WAIT_FRACTION = 0.02
"""Below this share of waiting, the consumer of the batches is the slow stage."""


@dataclass(kw_only=True, slots=True)
class LoaderStats:
    """Totals since the loader was made. Readable at any time, from any thread."""

    batches: int = 0
    samples: int = 0
    """Shows handed out, bad and padded ones not counted."""
    bytes: int = 0
    """Bytes of image files read."""
    wait_seconds_total: float = 0.0
    """Time that the consumer waited for a batch."""
    busy_seconds_total: float = 0.0
    """Time between batches that the consumer spent elsewhere."""
    read_seconds_total: float = 0.0
    """Summed over threads."""
    decode_seconds_total: float = 0.0
    """Summed over threads."""
    ready_batches: int = 0
    """Queue depth: finished batches that waited when the last one was taken."""
    failures: Counter[str] = field(default_factory=Counter)
    """Masked shows by reason."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_read(self, seconds: float, size: int) -> None:
        """Count one task of the read stage."""
        with self._lock:
            self.read_seconds_total += seconds
            self.bytes += size

    def add_decode(self, seconds: float) -> None:
        """Count one task of the decode stage."""
        with self._lock:
            self.decode_seconds_total += seconds

    @property
    def wait_fraction(self) -> float:
        """Share of the consumer's time that it waited for data."""
        total = self.wait_seconds_total + self.busy_seconds_total
        return self.wait_seconds_total / total if total else 0.0

    @property
    def bottleneck(self) -> str:
        """The slow stage: `consumer`, `read` or `decode`."""
        if self.wait_fraction < _CONSUMER_WAIT_FRACTION:
            return "consumer"
        return "read" if self.read_seconds_total > self.decode_seconds_total else "decode"

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "batches": self.batches,
            "samples": self.samples,
            "bytes": self.bytes,
            "wait_seconds_total": self.wait_seconds_total,
            "busy_seconds_total": self.busy_seconds_total,
            "read_seconds_total": self.read_seconds_total,
            "decode_seconds_total": self.decode_seconds_total,
            "wait_fraction": self.wait_fraction,
            "ready_batches": self.ready_batches,
            "failures": dict(self.failures),
            "bottleneck": self.bottleneck,
        }

    def __str__(self) -> str:
        failed = ", ".join(f"{count} {reason}" for reason, count in sorted(self.failures.items()))
        return (
            f"{self.samples} samples in {self.batches} batches, {self.bytes / 1e6:.1f} MB; waited for data "
            f"{self.wait_fraction:.1%} of the time ({self.wait_seconds_total:.1f} s); slowest: {self.bottleneck}"
            + (f"; masked: {failed}" if failed else "")
        )
