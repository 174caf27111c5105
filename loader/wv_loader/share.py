"""What one rank has of every batch: which streams, which slots. Arithmetic, but for asking who we are."""

import itertools
import os
from dataclasses import dataclass
from typing import Self

import torch.distributed

from wv_loader.errors import LoaderError, OptionError
from wv_loader.plan import default_streams

_BATCH_SIZES_TRIED = 1024
"""For a better one, beside that which was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One rank's part of every global batch."""

    parts: range
    """Of the streams 0 … V−1; without streams, of the slots 0 … B−1."""
    slots: range
    """Of 0 … B−1."""
    rows: list[range]
    """Slots that are read one after the other: those of each stream; without streams, some stretches of `slots`."""

    @classmethod
    def of(cls, rank: int, world_size: int, *, batch_size: int, streams: int | None, processes: int) -> Self:
        """The share of rank k of W.

        Args:
            rank, world_size: k, W.
            batch_size: B.
            streams: V; None: every sample once by ordinal, without streams.
            processes: that share the rows; 0: none.

        Raises:
            LoaderError: W does not divide the streams or slots, or there are more processes than rows.
        """
        parts = streams or batch_size
        if parts % world_size:
            *fewer, last = [str(w) for w in range(1, parts + 1) if parts % w == 0]
            ranks = f"{', '.join(fewer)} or {last}" if fewer else last
            raise LoaderError(
                f"{world_size} ranks can't share {parts} {'streams' if streams else 'slots of a batch'} evenly: choose "
                f"{ranks} ranks, or for a new run another batch size (now {batch_size}) or number of streams"
            )
        mine, slots = _cut(range(parts), world_size)[rank], _cut(range(batch_size), world_size)[rank]
        rows = _cut(slots, len(mine) if streams else max(1, processes))
        most = min(len(rows), len(slots))
        if processes > most:  # below 0 is refused with the other options
            hint = _more_streams(batch_size, streams, world_size, processes) if streams else ""
            raise OptionError(
                f"processes must be between 0 and {most}, this rank's share of "
                f"{'the streams' if streams else 'a batch'}, got {processes}{hint}"
            )
        return cls(parts=mine, slots=slots, rows=rows)

    @property
    def row_slots(self) -> list[int]:
        """Slots of each row."""
        return [len(row) for row in self.rows]


def find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size: as given, else of torch.distributed, else of torchrun's environment, else 0 of 1.

    Raises:
        LoaderError: only one is given, or there is no such rank.
    """
    if (rank is None) != (world_size is None):
        raise LoaderError("give both rank and world_size, or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise LoaderError(f"rank must be 0 … world_size − 1, got rank {rank} of {world_size}")
    return rank, world_size


def local_ranks() -> int:
    """Ranks on this machine, which share its cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _more_streams(batch_size: int, streams: int, world_size: int, processes: int) -> str:
    """Why there are so few streams, and what would give W ranks enough of them for so many processes each."""

    def enough(number: int) -> bool:
        return number % world_size == 0 and number // world_size >= processes

    steps = range(1, _BATCH_SIZES_TRIED if streams == default_streams(batch_size) else 1)
    near = (size for step in steps for size in (batch_size - step, batch_size + step))
    size = next((size for size in near if size > 0 and enough(default_streams(size))), None)
    divisor = next((v for v in range(streams + 1, batch_size + 1) if batch_size % v == 0 and enough(v)), None)
    choices = [f"batch_size={size}"] if size else []
    choices += [f"streams={divisor}"] if divisor else []
    reason = f"; batch_size {batch_size} is read as {streams} stream{'s' if streams > 1 else ''}, which must divide it"
    return reason + (f": choose another, such as {' or '.join(choices)}, or fewer processes" if choices else "")


def _cut(numbers: range, pieces: int) -> list[range]:
    """A range in pieces, alike in length but for one."""
    borders = [len(numbers) * piece // pieces for piece in range(pieces + 1)]
    return [numbers[a:b] for a, b in itertools.pairwise(borders)]
