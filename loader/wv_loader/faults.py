"""What happens to samples that fail: they are counted and named, and a run is stopped when there are too many.

A broken disk is told from broken images: reads that the operating system refuses are counted by shard and error, stop a
run at once where nothing can be read any more, and are never blamed on the images. Which slots are masked is decided
elsewhere, and done by then.
"""

import errno
import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wv_loader.errors import BadSampleBudgetError, StorageError
from wv_loader.quarantine import Quarantine
from wv_loader.read import Failure
from wv_loader.stats import LoaderStats
from wv_shards import Dataset, ShardsError

_SMALLEST_BUDGET = 16
"""Of a budget that is a fraction: a small set is not stopped by its first bad image."""
_REFUSED_IN_A_ROW = 32
"""Shows in a row, of more than one shard, that the operating system refused to read: the disk or mount is gone."""


class Faults:
    """Account of this rank's failed shows. One consumer's thread uses it."""

    def __init__(
        self, dataset: Dataset, stats: LoaderStats, *, budget: int | float | None, quarantine: Path | None
    ) -> None:
        """`budget`: failed shows of an epoch on this rank, a count or a fraction of its shows; None: without end.

        Raises LoaderError: a quarantine that can't be written.
        """
        self._dataset = dataset
        self._stats = stats
        self._budget = budget
        self._quarantine = None if quarantine is None else Quarantine(quarantine)
        self._failed: Counter[str] = Counter()
        self._io_errors_before = Counter(stats.io_errors)
        self._allowed: int | None = None
        self._refused_in_a_row = 0
        self._refused_shards: set[int] = set()

    def begin(self, shows: int, *, afresh: bool) -> None:
        """Before an epoch of `shows` on this rank; `afresh` at its start, not where it goes on after a pause."""
        budget = self._budget
        self._allowed = max(_SMALLEST_BUDGET, round(budget * shows)) if isinstance(budget, float) else budget
        if afresh:
            self._failed.clear()
            self._io_errors_before = self._stats.snapshot().io_errors
            self._reset_row()

    def account(self, epoch: int, batch: int, ordinals: NDArray[np.int64], failures: dict[int, Failure]) -> None:
        """Count the shows of a batch.

        Args:
            epoch, batch: where it is in the order.
            ordinals: (n,); −1 where padded.
            failures: by slot, why it is masked.

        Raises:
            StorageError: many reads in a row failed, of several shards.
            BadSampleBudgetError: more shows failed than are allowed.
        """
        counts = Counter(str(reason) for reason in failures.values())
        self._stats.add_outcome(int((ordinals >= 0).sum()) - len(failures), counts)
        if not failures:
            self._reset_row()
            return
        self._failed.update(counts)
        if self._quarantine is not None:
            self._name(self._quarantine, epoch, batch, ordinals, failures)
        if self._budget is None:
            return
        self._watch_storage(epoch, ordinals, failures)
        # What a full decode has flagged was told when the data set was indexed; it may not stop every run.
        failed = self._failed.total() - self._failed[Failure.KNOWN_BAD]
        if self._allowed is not None and failed > self._allowed:
            raise BadSampleBudgetError(self._budget_message(epoch, failed))

    def _watch_storage(self, epoch: int, ordinals: NDArray[np.int64], failures: dict[int, Failure]) -> None:
        shards = self._dataset.shard_of(ordinals)
        for slot, ordinal in enumerate(ordinals.tolist()):
            reason = failures.get(slot)
            if ordinal < 0 or reason == Failure.KNOWN_BAD:
                continue  # was not read
            if reason == Failure.IO_ERROR:
                self._refused_in_a_row += 1
                self._refused_shards.add(int(shards[slot]))
            else:
                self._reset_row()
        several = min(2, len(self._dataset.manifest.shards))
        if self._refused_in_a_row >= _REFUSED_IN_A_ROW and len(self._refused_shards) >= several:
            raise StorageError(
                f"{self._dataset.directory}: {self._refused_in_a_row} reads in a row failed in epoch {epoch}; "
                f"{self._worst_shard()}: the disk or mount, not the images; bring it back and resume"
            )

    def _reset_row(self) -> None:
        self._refused_in_a_row = 0
        self._refused_shards.clear()

    def _budget_message(self, epoch: int, failed: int) -> str:
        counts = ", ".join(f"{n} {reason}" for reason, n in sorted(self._failed.items()))
        begin = f"{failed} samples of epoch {epoch} failed, {self._allowed} are allowed ({counts}); "
        end = "or raise bad_budget (wv-train: --bad-budget)"
        if 2 * self._failed[Failure.IO_ERROR] > failed:
            return f"{begin}{self._worst_shard()}: the disk or mount, not the images; mend it and resume, {end}"
        return f"{begin}run `wv-ingest verify {self._dataset.directory}`, {end}"

    def _worst_shard(self) -> str:
        """The shard with the most refused reads of this epoch, and how many others have some."""
        refused = self._stats.snapshot().io_errors - self._io_errors_before
        if not refused:
            return "reads failed"
        (shard, number), count = refused.most_common(1)[0]
        others = len({other for other, _ in refused}) - 1
        more = f" (and those of {others} more shards)" if others else ""
        return f"{self._dataset.shard_path(shard).name}: {count} reads failed with {_error_name(number)}{more}"

    def _name(
        self,
        quarantine: Quarantine,
        epoch: int,
        batch: int,
        ordinals: NDArray[np.int64],
        failures: dict[int, Failure],
    ) -> None:
        errors = dict(list(self._stats.snapshot().io_errors))  # shard → its latest errno
        rows = []
        for slot, reason in sorted(failures.items()):
            ordinal = int(ordinals[slot])
            shard = int(self._dataset.shard_of(ordinal))
            row = {
                "epoch": epoch,
                "batch": batch,
                "ordinal": ordinal,
                "shard": self._dataset.shard_path(shard).name,
                "reason": str(reason),
            }
            if reason == Failure.IO_ERROR and shard in errors:
                row["detail"] = _error_name(errors[shard])
            rows.append(row)
        quarantine.write(rows, self._keys)

    def _keys(self, ordinals: list[int]) -> list[str | None]:
        try:
            return list(self._dataset.keys(ordinals))
        except ShardsError:  # the table of keys may lie on the disk that has gone: the ordinals must do
            return [None] * len(ordinals)


def _error_name(number: int) -> str:
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
