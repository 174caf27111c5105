"""A build's parts: which shards belong to part 3 of 16, and the note that says that a part is complete.

Every part makes the same plan, packs its share of the shards in a folder of its own, and at last writes part.json,
which says what its files are. `join` makes a data set of complete parts.
"""

import heapq
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wv_ingest.build_state import FILTERED_FILE, PLAN_FILE, REPEATED_FILE, BuildState
from wv_ingest.errors import PartsError
from wv_ingest.outcomes import read_summary
from wv_ingest.pack import outcomes_path
from wv_ingest.plan import PlannedShard
from wv_ingest.progress import Progress
from wv_shards import PART_FILE, file_checksum, write_atomic

PLAN_FILES = (PLAN_FILE, REPEATED_FILE, FILTERED_FILE)
"""What `join` takes of a part besides its shards. The last one is there only where the source leaves rows out."""
_SHARD_SUFFIXES = (".outcomes", ".idx", ".tar")

_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the parts of a build."""

    number: int
    """From 1."""
    parts: int

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ValueError(
                f"a build has 1 part or more, got {self}; expected a part and how many there are, like 3/16"
            )
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


@dataclass(frozen=True, kw_only=True, slots=True)
class NotedFile:
    """What part.json says of a file."""

    bytes: int
    checksum: str
    """xxh3_128."""

    def damage(self, path: Path) -> str | None:
        """What is wrong with the file at `path`, which is read; None: nothing."""
        if wrong := self.cut_off(path):
            return wrong
        found = file_checksum(path)
        return None if found == self.checksum else f"{path}: checksum {found}, {PART_FILE} says {self.checksum}"

    def cut_off(self, path: Path) -> str | None:
        """The same, by the file's size alone."""
        if not path.is_file():
            return f"{path}: is missing"
        size = path.stat().st_size
        return None if size == self.bytes else f"{path}: has {size:,} bytes, {PART_FILE} says {self.bytes:,}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartNote:
    """What part.json says: which plan the complete part has, and every file that `join` takes from it."""

    path: Path
    """Of part.json."""
    plan: str
    """The plan's digest."""
    files: dict[str, NotedFile]
    """By name."""

    def file(self, name: str) -> NotedFile:
        """What is noted of a file that the plan asks for.

        Raises:
            PartsError: nothing.
        """
        if name not in self.files:
            raise PartsError(f"{self.path}: says nothing of {name}; {start_again(self.path.parent)}")
        return self.files[name]


def note_complete(build_dir: Path, part: Part, state: BuildState) -> None:
    """Say that all shards of the part are packed, and what their files are. Call it last.

    Tars are not read again: what their writer has seen stands in the outcomes.
    """
    files: dict[str, list[int | str]] = {}
    tars: dict[str, list[int | str]] = {}
    read = [build_dir / name for name in PLAN_FILES if (build_dir / name).is_file()]
    for shard in part.share(state.shards):
        outcomes = outcomes_path(build_dir, shard)
        read.append(outcomes)
        if (info := read_summary(outcomes).info) is not None:
            read.append(build_dir / f"{shard.name}.idx")
            tars[f"{shard.name}.tar"] = [info.bytes, info.checksum]
    for path in read:
        files[path.name] = [path.stat().st_size, file_checksum(path)]
    document = {"part": part.number, "parts": part.parts, "plan": state.plan_digest(), "files": files | tars}
    write_atomic(build_dir / PART_FILE, (json.dumps(document, indent=1) + "\n").encode())


def read_note(build_dir: Path) -> PartNote | None:
    """What was noted of the part in `build_dir`; None if it is not complete.

    Raises:
        PartsError: part.json is there and damaged.
    """
    path = build_dir / PART_FILE
    try:
        document = json.loads(path.read_bytes())
        files = {
            str(name): NotedFile(bytes=int(size), checksum=str(checksum))
            for name, (size, checksum) in document["files"].items()
        }
        return PartNote(path=path, plan=str(document["plan"]), files=files)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PartsError(f"{path}: is damaged ({error!r}); {start_again(build_dir)}") from error


def forget_damaged(build_dir: Path, part: Part, state: BuildState, progress: Progress) -> None:
    """Of a complete part that is built again: shards whose files are not what was noted are to be packed again.

    Raises:
        PartsError: the plan is damaged.
    """
    note = read_note(build_dir)
    if note is None:
        return
    progress.note("the part is complete; comparing its files with their checksums")
    for name in PLAN_FILES:
        if name in note.files and (wrong := note.files[name].damage(build_dir / name)):
            raise PartsError(f"{wrong}: {start_again(build_dir)}")
    for shard in part.share(state.shards):
        for suffix in _SHARD_SUFFIXES:
            name = f"{shard.name}{suffix}"
            if name in note.files and (wrong := note.files[name].damage(build_dir / name)):
                progress.warn(f"{wrong}; the shard is packed again")
                outcomes_path(build_dir, shard).unlink(missing_ok=True)
                break


def start_again(build_dir: Path) -> str:
    """What to do where notes are damaged."""
    return f"copy the part again, or remove {build_dir} and build it again"
