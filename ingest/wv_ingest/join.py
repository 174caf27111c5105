"""`finalize`: complete parts of a build, from any number of machines, become one data set.

Every file is compared with what part.json says of it. Shards are linked, or copied to another file system, into
OUT/.build; then comes the last step of any build,
`wv_ingest.finalize`. So the bytes are those of one machine. The source is not needed, and the parts stay as they are.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wv_ingest.build import BuildResult, complete_before
from wv_ingest.build_state import PLAN_FILE, BuildState, differing, read_state, write_state
from wv_ingest.check import Reason
from wv_ingest.errors import BuildMismatchError, PartsError
from wv_ingest.finalize import finalize
from wv_ingest.locks import LOCK_FILE, build_lock, existing, unlock_orphans
from wv_ingest.outcomes import ShardSummary, read_summary
from wv_ingest.pack import BYTES_READ, ROWS, WORKERS_LOCK_FILE, outcomes_path
from wv_ingest.parts import PLAN_FILES, Part, PartNote, read_note, start_again
from wv_ingest.plan import PlannedShard
from wv_ingest.pool import COUNTERS
from wv_ingest.progress import Progress
from wv_ingest.shard_jobs import check_rejects, finished
from wv_ingest.transfer import ChangedFileError, bring
from wv_shards import BUILD_DIR, MANIFEST_FILE, PART_FILE, fsync_directory, write_atomic

JOIN_FILE = "join.txt"
"""In OUT/.build: the digest of the plan whose parts are being joined. Written first."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _CompletePart:
    folder: Path
    part: Part
    state: BuildState
    note: PartNote

    @property
    def build_dir(self) -> Path:
        return self.folder / BUILD_DIR


def join(out: Path, folders: Sequence[Path], max_reject_fraction: float, progress: Progress) -> BuildResult:
    """Make one data set in `out` of all parts of a build; what was killed goes on.

    Raises:
        PartsError: the folders are not all parts of one build, each once, complete and undamaged; the message names
            which, and the files.
        OutputExistsError: `out` holds something else, or another build is at work there.
        BuildMismatchError: `out` holds a data set, finished or not, of something else.
        NothingReadableError: no image could be packed in any part.
        BuildError: too many rejects in all.
        OSError: no space left, no permission. The same command goes on.
        Stopped: a signal arrived. The same command goes on.
    """
    started = time.monotonic()
    existing(out)
    progress.note(f"looking at {len(folders)} parts")
    parts = _complete_parts(out, folders)
    state = replace(parts[0].state, part=None)
    wanted = state.rows - state.filtered
    _check_files(parts, progress)
    _check_rejects(parts, wanted, max_reject_fraction)
    with build_lock(out) as build_dir:
        if build_dir is None:
            return complete_before(out, state.identity, started)
        unlock_orphans(build_dir)
        _claim(out, build_dir, state)
        counts = [0] * COUNTERS  # as `pack` numbers them
        progress.start(total_rows=wanted, done_rows=0, done_rejects=0, counters=lambda: tuple(counts), what="joining")
        for rows, read in _bring_all(out, build_dir, parts, progress.tick):
            counts[ROWS] += rows
            counts[BYTES_READ] += read
            progress.tick()
        write_state(build_dir, state)  # last: now it is a build like any other, all shards packed
        progress.stop()
        manifest = finalize(out, build_dir, state, progress)
    return BuildResult(manifest=manifest, seconds=time.monotonic() - started, packed_rows=wanted)


def _complete_parts(out: Path, folders: Sequence[Path]) -> list[_CompletePart]:
    """The parts by their number; they are all there, once, and of the same build."""
    parts: dict[int, _CompletePart] = {}
    for folder in folders:
        if folder.resolve() == out.resolve():
            raise PartsError(f"{out}: is one of the parts; give the data set a folder of its own")
        part = _complete_part(folder)
        first = next(iter(parts.values()), part)
        if part.part.parts != first.part.parts:
            raise PartsError(
                f"{folder}: is part {part.part} and {first.folder} is part {first.part}; all must be of the same number"
            )
        if (other := parts.setdefault(part.part.number, part)) is not part:
            raise PartsError(f"part {part.part} is there twice: {other.folder} and {folder}; give it once")
        _same_build(first, part)
    count = next(iter(parts.values())).part.parts
    if absent := [str(number) for number in range(1, count + 1) if number not in parts]:
        shown = absent if len(absent) <= _SHOWN else [*absent[: _SHOWN - 1], f"{len(absent) - _SHOWN + 1} more"]
        names = f"part {shown[0]}" if len(shown) == 1 else f"parts {', '.join(shown[:-1])} and {shown[-1]}"
        raise PartsError(
            f"{names} of {count} {'is' if len(shown) == 1 else 'are'} missing; build what is missing with "
            f"`wv-ingest build-shards … --part {absent[0]}/{count}` and give all folders"
        )
    return [parts[number] for number in sorted(parts)]


def _complete_part(folder: Path) -> _CompletePart:
    build_dir = folder / BUILD_DIR
    if not folder.is_dir():
        raise PartsError(f"{folder}: no such folder; expected the OUT of `wv-ingest build-shards … --part`")
    if (folder / MANIFEST_FILE).is_file():
        raise PartsError(f"{folder}: is a finished data set, expected a part (`wv-ingest build-shards … --part`)")
    note = read_note(build_dir)
    if note is not None and (wrong := note.file(PLAN_FILE).damage(build_dir / PLAN_FILE)):
        raise PartsError(f"{wrong}: {start_again(build_dir)}")
    state = read_state(build_dir)
    if state is None or state.part is None:
        raise PartsError(f"{folder}: is no part of a build; expected the OUT of `wv-ingest build-shards … --part`")
    if note is None:
        raise PartsError(f"{folder}: part {state.part} is not complete; run its build command again to finish it")
    if note.plan != state.plan_digest():
        raise PartsError(f"{folder}: part {state.part} is not what was noted of it; build it again")
    return _CompletePart(folder=folder, part=Part.parse(state.part), state=state, note=note)


def _same_build(first: _CompletePart, part: _CompletePart) -> None:
    here, there = first.state.identity, part.state.identity
    if (name := differing(here, there)) == "source_rows":
        raise PartsError(f"{part.folder}: was built from other rows or classes than {first.folder}; build it again")
    if name is not None:
        raise PartsError(
            f"{part.folder}: was built with {name} {there.by_name().get(name)}, {first.folder} with "
            f"{here.by_name().get(name)}; build all parts alike"
        )
    if part.note.plan != first.note.plan:
        plan, other = first.state.plan(), part.state.plan()
        unlike = [name for name in plan if plan[name] != other[name]]
        hint = "or build all parts with --no-unlisted" if unlike == ["unlisted"] else "and build them again"
        raise PartsError(
            f"{part.folder}: has another plan than {first.folder} ({', '.join(unlike)} differ): the machines did not "
            f"see the same files; give them the same source {hint}"
        )


def _check_files(parts: Sequence[_CompletePart], progress: Progress) -> None:
    """Compare all files with what was noted when the part was complete; of tars only the size, `_bring_all` reads them.

    Raises:
        PartsError: some are damaged or missing.
    """
    for part in parts:
        progress.note(f"checking part {part.part}")
        wrong: list[str] = []
        for name in PLAN_FILES:
            if name in part.note.files:
                wrong += _damage(part, name)
        for shard in part.part.share(part.state.shards):
            found = _damage(part, outcomes_path(part.build_dir, shard).name)
            if not found and _summary(part, shard).info is not None:
                found = [*_damage(part, f"{shard.name}.idx"), *_damage(part, f"{shard.name}.tar", whole=False)]
            wrong += found
        _refuse(part, wrong)


def _damage(part: _CompletePart, name: str, *, whole: bool = True) -> list[str]:
    noted, path = part.note.file(name), part.build_dir / name
    wrong = noted.damage(path) if whole else noted.cut_off(path)
    return [] if wrong is None else [wrong]


def _refuse(part: _CompletePart, wrong: Sequence[str]) -> None:
    """Name the first of the part's damaged files, and how many there are."""
    if wrong:
        more = f" (and {len(wrong) - 1} more files of part {part.part})" if len(wrong) > 1 else ""
        raise PartsError(
            f"{wrong[0]}{more}: copy the part again, or build it again with "
            f"`wv-ingest build-shards … {part.folder} --part {part.part}`"
        )


def _check_rejects(parts: Sequence[_CompletePart], wanted: int, max_reject_fraction: float) -> None:
    rejects = Counter({Reason.REPEATED_ROW.value: parts[0].state.repeated, **parts[0].state.unlabelled})
    for part in parts:
        for shard in part.part.share(part.state.shards):
            rejects.update(_summary(part, shard).rejects)
    check_rejects(rejects, wanted, max_reject_fraction, whole=True)


def _summary(part: _CompletePart, shard: PlannedShard) -> ShardSummary:
    return read_summary(outcomes_path(part.build_dir, shard))


def _claim(out: Path, build_dir: Path, state: BuildState) -> None:
    """Make sure that what lies in `build_dir` is what a killed run of the same has left, or nothing."""
    note = build_dir / JOIN_FILE
    if note.is_file() and note.read_text() == state.plan_digest():
        return
    if any(file.name not in (LOCK_FILE, WORKERS_LOCK_FILE) for file in build_dir.iterdir()):
        raise BuildMismatchError(
            f"{out}: holds an unfinished build of something else; finish it, remove it, or choose a new folder"
        )
    write_atomic(note, state.plan_digest().encode())


def _bring_all(
    out: Path, build_dir: Path, parts: Sequence[_CompletePart], tick: Callable[[], None]
) -> Iterator[tuple[int, int]]:
    """Bring all shards to `build_dir`, reading every tar once; yields rows and bytes as they come.

    Raises:
        PartsError: tars are damaged; the others are brought.
    """
    first = parts[0]
    for name in PLAN_FILES[1:]:  # plan.json comes last
        if name in first.note.files and not (build_dir / name).is_file():
            bring(first.build_dir / name, build_dir / name, tick, first.note.file(name).checksum)
    yield first.state.repeated + sum(first.state.unlabelled.values()), 0
    for part in parts:
        wrong: list[str] = []
        for shard in part.part.share(part.state.shards):
            summary = _summary(part, shard)
            if finished(out, build_dir, shard) is None:
                try:
                    _bring_shard(build_dir, part, shard, summary, tick)
                except ChangedFileError as error:
                    wrong.append(f"{error.path}: checksum {error.found}, {PART_FILE} says {error.expected}")
            yield summary.rows, summary.info.bytes if summary.info is not None else 0
        _refuse(part, wrong)
    fsync_directory(build_dir)


def _bring_shard(
    build_dir: Path, part: _CompletePart, shard: PlannedShard, summary: ShardSummary, tick: Callable[[], None]
) -> None:
    outcomes = outcomes_path(part.build_dir, shard).name  # last: it says that the shard is there
    names = [outcomes] if summary.info is None else [f"{shard.name}.idx", f"{shard.name}.tar", outcomes]
    for name in names:
        checksum, is_tar = part.note.file(name).checksum, name.endswith(".tar")
        bring(part.build_dir / name, build_dir / name, tick, checksum, read_links=is_tar)
