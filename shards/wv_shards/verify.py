"""Is the data set on disk the one that was built? Reads every byte and compares it with manifest and index.

It finds and names; it mends nothing (`wv-ingest verify --repair` does).
"""

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from wv_shards.errors import CorruptDataError, ShardsError
from wv_shards.hashing import checksum, file_checksum
from wv_shards.index import INDEX_FILE, IndexArray, check_index, open_index
from wv_shards.manifest import IN_PLACE, Manifest, ShardInfo
from wv_shards.overlay import EXCLUDE, EXCLUDE_DUPLICATE, Overlay, exclude_remedy, search_command
from wv_shards.reader import Dataset
from wv_shards.tables import DUPLICATES_FILE, REJECTS_FILE, SAMPLES_FILE, damaged_tables
from wv_shards.timm_info import TIMM_INFO_FILE, timm_info
from wv_shards.writer import IDX_VERSION


class ProblemKind(StrEnum):
    """What can be wrong with a file of a data set."""

    MISSING = "missing"
    SIZE = "size"
    CHECKSUM = "checksum"
    SAMPLE = "sample"
    INDEX = "index"
    COUNTS = "counts"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong, for a person to read."""

    path: Path
    kind: ProblemKind
    message: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.message}"


def verify(directory: Path | str, progress: Callable[[int], None] | None = None) -> list[Problem]:
    """Check a finished data set: sizes, checksums, members, index, DALI indexes, tables, exclusions, counts.

    Args:
        directory: the data set.
        progress: called with the bytes of shards checked since the last call.

    Returns:
        Everything that is wrong; empty when the data set is sound.

    Raises:
        ShardsError: there is no finished data set of this format version.
    """
    directory = Path(directory)
    manifest = Manifest.load(directory)
    problems: list[Problem] = []
    index_path = directory / INDEX_FILE
    index: IndexArray | None = None
    try:
        index = open_index(index_path, manifest.samples)
        try:
            check_index(index_path, manifest.index_checksum)
        except CorruptDataError:
            problems.append(_problem(index_path, ProblemKind.CHECKSUM, "checksum differs from the manifest's"))
    except ShardsError as error:
        kind = ProblemKind.INDEX if index_path.exists() else ProblemKind.MISSING
        problems.append(_problem(index_path, kind, str(error)))
    start = 0
    in_place = manifest.options.get(IN_PLACE) is True
    for shard in manifest.shards:
        records = None if index is None else index[start : start + shard.samples]
        problems += _verify_shard(directory, shard, records, progress or (lambda _: None), in_place=in_place)
        start += shard.samples
    problems += _verify_tables(directory, manifest, index)
    problems += _verify_exclude(directory, manifest)
    if not in_place:  # beside foreign tars it is their author's, if there is one
        problems += _verify_timm_info(directory / TIMM_INFO_FILE, manifest)
    if index is not None:
        problems += _verify_counts(index_path, manifest, index)
    return problems


def _problem(path: Path, kind: ProblemKind, message: str) -> Problem:
    return Problem(path=path, kind=kind, message=message)


def _verify_shard(
    directory: Path,
    shard: ShardInfo,
    records: IndexArray | None,
    progress: Callable[[int], None],
    *,
    in_place: bool,
) -> list[Problem]:
    path = directory / f"{shard.name}.tar"
    problems: list[Problem] = []
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            problems.append(_problem(path, ProblemKind.SIZE, f"{size} bytes, the manifest says {shard.bytes}"))
        found = file_checksum(path, progress)
        sound = found == shard.checksum
        if not sound and not problems:
            problems.append(
                _problem(path, ProblemKind.CHECKSUM, f"checksum {found}, the manifest says {shard.checksum}")
            )
        if records is not None:
            bad = _bad_samples(path, records)
            problems += [
                _problem(path, ProblemKind.SAMPLE, f"sample {i} of the shard is not what the index says") for i in bad
            ]
            if sound:  # members of a broken tar are better not trusted
                problems += _verify_foreign(path, records) if in_place else _verify_members(path, records)
    except FileNotFoundError:
        return [_problem(path, ProblemKind.MISSING, "the shard is missing")]
    except OSError as error:
        return [*problems, _problem(path, ProblemKind.UNREADABLE, f"can't be read: {error.strerror}")]
    return problems


def _bad_samples(path: Path, records: IndexArray) -> list[int]:
    bad = []
    with open(path, "rb") as file:
        for i, record in enumerate(records):
            file.seek(int(record["offset"]))
            data = file.read(int(record["size"]))
            if checksum(data) != int(record["checksum"]):
                bad.append(i)
    return bad


def _verify_members(path: Path, records: IndexArray) -> list[Problem]:
    """Tar, index and DALI index must speak of the same members at the same places."""
    lines = member_lines(path)
    problems = []
    said = [line[0].split(" ", 3)[1:3] if line else [] for line in lines]
    indexed = [[str(int(r["offset"])), str(int(r["size"]))] for r in records]
    if said != indexed:
        problems.append(_problem(path, ProblemKind.INDEX, "index.npy does not describe the members of this tar"))
    idx = path.with_suffix(".idx")
    try:
        if idx.read_text() != dali_index(lines):
            problems.append(_problem(idx, ProblemKind.INDEX, "does not describe the members of its tar"))
    except FileNotFoundError:
        problems.append(_problem(idx, ProblemKind.MISSING, "the DALI index is missing"))
    except ValueError:
        problems.append(_problem(idx, ProblemKind.UNREADABLE, "not a text file"))
    return problems


def _verify_foreign(path: Path, records: IndexArray) -> list[Problem]:
    """The same of a tar that was indexed in place: any members in any order, some samples may not be in the index.

    Each line of the DALI index speaks of one record's sample: its members lie in the tar, the image is among them.
    """
    members = _places(path)
    idx = path.with_suffix(".idx")
    wrong = _problem(idx, ProblemKind.INDEX, "does not describe the members of its tar, or not those of index.npy")
    try:
        head, *lines = idx.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return [_problem(idx, ProblemKind.MISSING, "the DALI index is missing")]
    except ValueError:  # not a line
        return [wrong]
    if head != f"{IDX_VERSION} {len(records)}".encode() or len(lines) != len(records):
        return [wrong]
    for line, record in zip(lines, records, strict=True):
        words = line.split(b" ")
        placed = set(zip(words[1::4], words[2::4], strict=False))
        image = (str(int(record["offset"])).encode(), str(int(record["size"])).encode())
        if len(words) % 4 or image not in placed or not placed <= members:
            return [wrong]
    return []


def _places(path: Path) -> set[tuple[bytes, bytes]]:
    """Offset and size of every file of a tar, in decimal; of a truncated one those that are there."""
    found = set()
    with tarfile.open(path, "r:") as tar:
        try:
            for member in tar:
                found.add((str(member.offset_data).encode(), str(member.size).encode()))
        except tarfile.ReadError:  # it ends here; what the index knows must lie before
            pass
    return found


def member_lines(path: Path) -> list[list[str]]:
    """Of each sample of a tar its members, `EXTENSION OFFSET SIZE NAME` each, as a DALI index has them.

    Raises:
        OSError, tarfile.TarError: it can't be read.
    """
    lines: list[list[str]] = []
    with tarfile.open(path, "r:") as tar:
        key = None
        for member in tar:
            name, _, extension = member.name.partition(".")
            if name != key:
                lines.append([])
                key = name
            lines[-1].append(f"{extension} {member.offset_data} {member.size} {member.name}")
    return lines


def dali_index(lines: list[list[str]]) -> str:
    """The text of NAME.idx for the members of a tar."""
    return "\n".join([f"{IDX_VERSION} {len(lines)}", *(" ".join(line) for line in lines), ""])


def _verify_tables(directory: Path, manifest: Manifest, index: IndexArray | None) -> list[Problem]:
    problems: list[Problem] = []
    try:
        for name in damaged_tables(directory, manifest.tables):
            text = f"checksum differs from the manifest's{_remedy(name, manifest)}"
            problems.append(_problem(directory / name, ProblemKind.CHECKSUM, text))
    except OSError as error:
        path = Path(error.filename)
        problems.append(_problem(path, ProblemKind.UNREADABLE, f"can't be read: {error.strerror}"))
    if DUPLICATES_FILE in manifest.tables and not (directory / DUPLICATES_FILE).exists():
        text = f"the table is missing{_remedy(DUPLICATES_FILE, manifest)}"
        problems.append(_problem(directory / DUPLICATES_FILE, ProblemKind.MISSING, text))
    try:
        with Dataset.open(directory) as dataset:
            table = dataset.samples_table(["label", "width", "height", "bytes"])
            if index is not None:
                for column, field in (("label", "label"), ("width", "width"), ("height", "height"), ("bytes", "size")):
                    if not np.array_equal(table.column(column).to_numpy(), index[field]):
                        text = f"column {column} disagrees with the index"
                        problems.append(_problem(directory / SAMPLES_FILE, ProblemKind.INDEX, text))
    except ShardsError as error:
        if index is not None:  # else it is the index, which has been named
            problems.append(_problem(directory / SAMPLES_FILE, ProblemKind.UNREADABLE, str(error)))
    rejects = directory / REJECTS_FILE
    try:
        reasons = pq.read_table(rejects, columns=["reason"]).column("reason").value_counts().to_pylist()
        found = {row["values"]: row["counts"] for row in reasons}
        if found != manifest.rejects:
            text = f"rejects by reason {json.dumps(found)}, the manifest says {json.dumps(manifest.rejects)}"
            problems.append(_problem(rejects, ProblemKind.COUNTS, text))
    except FileNotFoundError:
        problems.append(_problem(rejects, ProblemKind.MISSING, "the table is missing"))
    except (OSError, ValueError) as error:
        problems.append(_problem(rejects, ProblemKind.UNREADABLE, f"not a readable table ({type(error).__name__})"))
    return problems


def _remedy(name: str, manifest: Manifest) -> str:
    if name != DUPLICATES_FILE or manifest.duplicates is None:
        return ""
    return f"; {search_command(manifest.duplicates)} writes it anew"


def _verify_exclude(directory: Path, manifest: Manifest) -> list[Problem]:
    """What is not to be shown must be known; a data set where nothing was looked for or excluded has no overlay."""
    base = directory / EXCLUDE
    files = [directory / f"{EXCLUDE}{suffix}" for suffix in (".json", ".npy")]
    absent = [file for file in files if not file.exists()]
    if manifest.duplicates is None and absent == files:
        return []
    remedy = exclude_remedy(manifest)
    if absent:
        text = f"is missing, and with it which samples are not to be shown; {remedy}"
        return [_problem(file, ProblemKind.MISSING, text) for file in absent]
    try:
        array = Overlay.load_onto(base, manifest, kind=EXCLUDE).array
    except (ShardsError, OSError, ValueError) as error:
        kind = ProblemKind.CHECKSUM if isinstance(error, CorruptDataError) else ProblemKind.UNREADABLE
        return [_problem(files[0], kind, f"{error}. To mend it, {remedy}")]
    if array.ndim != 1 or array.dtype.kind not in "bu":
        text = f"{array.dtype} of {array.ndim} dimensions, expected a whole number for each sample; {remedy}"
        return [_problem(files[1], ProblemKind.UNREADABLE, text)]
    if manifest.duplicates is None or array.dtype == bool:  # bools: someone's own, which gives no reasons
        return []
    found = int(np.count_nonzero(array & EXCLUDE_DUPLICATE))
    if found == manifest.duplicates.excluded:
        return []
    text = f"{found} duplicates excluded, the manifest says {manifest.duplicates.excluded}; {remedy}"
    return [_problem(files[1], ProblemKind.COUNTS, text)]


def _verify_timm_info(path: Path, manifest: Manifest) -> list[Problem]:
    try:
        sound = path.read_bytes() == timm_info(manifest)
    except FileNotFoundError:
        return [_problem(path, ProblemKind.MISSING, "is missing; `wv-ingest verify SHARDS --repair` writes it")]
    except OSError as error:
        return [_problem(path, ProblemKind.UNREADABLE, f"can't be read: {error.strerror}")]
    return [] if sound else [_problem(path, ProblemKind.INDEX, "is not what the manifest says")]


def _verify_counts(index_path: Path, manifest: Manifest, index: IndexArray) -> list[Problem]:
    labels = np.asarray(index["label"])
    if len(labels) and (labels.min() < 0 or labels.max() >= len(manifest.classes)):
        return [_problem(index_path, ProblemKind.COUNTS, f"labels outside 0 … {len(manifest.classes) - 1}")]
    counts = np.bincount(labels, minlength=len(manifest.classes))
    return [
        _problem(index_path, ProblemKind.COUNTS, f"class {c.class_id}: {n} samples, the manifest says {c.samples}")
        for c, n in zip(manifest.classes, counts.tolist(), strict=True)
        if c.samples != n
    ]
