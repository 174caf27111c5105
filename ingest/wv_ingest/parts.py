"""A build's parts: which shards belong to part 3 of 16, and the note that says that a part is complete.

Every part makes the same plan, packs its share of the shards in a folder of its own, and at last writes part.json.
`join` makes a data set of complete parts.
"""

import heapq
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wv_ingest.build_state import BuildState
from wv_ingest.plan import PlannedShard
from wv_shards import PART_FILE, write_atomic

_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the parts of a build."""

    number: int
    """From 1."""
    parts: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.parts:
            raise ValueError(f"parts are numbered 1/{self.parts} … {self.parts}/{self.parts}, got {self}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The part that `3/16` names.

        Raises:
            ValueError: it names none.
        """
        match = _PART.fullmatch(text)
        if match is None:
            raise ValueError(f"expected a part and how many there are, like 3/16, got '{text}'")
        return cls(number=int(match[1]), parts=int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def share(self, shards: Sequence[PlannedShard]) -> list[PlannedShard]:
        """This part's shards: the largest first, each goes to the part that has the fewest rows so far."""
        own: list[PlannedShard] = []
        loads = [(0, number) for number in range(1, self.parts + 1)]
        for shard in sorted(shards, key=lambda shard: (shard.start - shard.stop, shard.start)):
            rows, number = loads[0]
            heapq.heapreplace(loads, (rows + shard.stop - shard.start, number))
            if number == self.number:
                own.append(shard)
        return own


def note_complete(build_dir: Path, part: Part, state: BuildState) -> None:
    """Say that all shards of the part are packed. Call it last."""
    document = {"part": part.number, "parts": part.parts, "plan": state.plan_digest()}
    write_atomic(build_dir / PART_FILE, (json.dumps(document, indent=1) + "\n").encode())


def noted_plan(build_dir: Path) -> str | None:
    """Digest of the plan that the complete part in `build_dir` has; None if no complete part is there."""
    try:
        return str(json.loads((build_dir / PART_FILE).read_bytes())["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
