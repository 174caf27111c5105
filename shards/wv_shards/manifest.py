"""`manifest.json`: what a directory of shards holds. Written last, so its presence means that the rest is whole."""

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import xxhash

from wv_shards.atomic import write_atomic
from wv_shards.errors import CorruptDataError, FormatVersionError, NotADatasetError, UnfinishedBuildError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Parsed = TypeVar("Parsed", bound="DataclassInstance")

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
_DIGEST_CLASS = ("class_id", "name", "rows", "samples", "band")
IN_PLACE = "in_place"
"""Key of `options`, true where foreign tars were indexed as they are (`wv-ingest index`)."""
BUILD_DIR = ".build"
"""Folder of an unfinished build inside its output directory; removed after the manifest is written."""
PART_FILE = "part.json"
"""In BUILD_DIR: all shards of one part of a build are there, and wait for `wv-ingest finalize`."""
APPEND_DIR = ".append"
"""The same of an unfinished append."""
MERGE_DIR = ".merge"
"""The same of an unfinished merge."""
UNFINISHED = {APPEND_DIR: "append", MERGE_DIR: "merge"}
"""Such folders, and the command that finishes what was begun there."""


def band_of(rows: int) -> int | None:
    """Band of a class with `rows` source rows: b with 2^(b/2) ≤ rows < 2^((b+1)/2), or None without rows.

    Raises:
        ValueError: `rows` is negative.
    """
    if rows < 0:
        raise ValueError(f"a class can't have {rows} rows")
    return (rows * rows).bit_length() - 1 if rows else None


def band_range(band: int) -> tuple[int, int]:
    """Fewest and most rows of a class in `band`: the whole numbers n with 2^(b/2) ≤ n < 2^((b+1)/2)."""
    return math.isqrt(2**band - 1) + 1, math.isqrt(2 ** (band + 1) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassInfo:
    """One class of the data set."""

    class_id: int
    name: str
    rows: int
    """Rows of the source with this label, known before anything was decoded; `filtered` ones do not count."""
    samples: int
    """Samples packed."""
    band: int | None
    """`band_of(rows)` when it first had rows; None for a class without rows, and in tars not packed by band."""
    original_id: int | None = None
    """The class's id in the source's lists, where only some of their classes were packed; None: the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One tar of the data set."""

    name: str
    """File name without `.tar`."""
    samples: int
    bytes: int
    """Size of the tar."""
    checksum: str
    """xxh3_128 of the tar, in hexadecimal."""
    band: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginInfo:
    """One origin (`google`, `flickr`) of the data set."""

    rows: int
    """Rows of the source; `filtered` ones do not count."""
    samples: int
    """Samples packed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnlistedInfo:
    """Files of the source that no list names."""

    files: int
    first: tuple[str, ...]
    """Some of their paths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicatesInfo:
    """Pictures that are there more than once, by the rule that made the exclude overlay. Counts are of samples."""

    conflict: str
    """`keep`, `drop` or `report`: what became of pictures that stand in several classes."""
    near_distance: int | None
    """Bits of the perceptual hash in which copies within a class may differ; None: only equal files are copies."""
    exact: int
    """Copies within a class, of the same file as the one that is kept."""
    near: int
    """Other copies within a class."""
    conflicts: int
    """Of the rest, those whose picture stands in another class too."""
    excluded: int
    """Not to be shown for one of these reasons."""
    cut_short: int
    """Pictures with too many lookalikes to be compared with all of them; 0: the search was complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierInfo:
    """What the data set was before samples were appended. Its samples are the first of today's, ordinal by ordinal."""

    digest: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a reader must know before it opens a shard."""

    seed: int
    split: str
    classes: tuple[ClassInfo, ...]
    """By class id, without gaps."""
    shards: tuple[ShardInfo, ...]
    """In the order of ordinals."""
    samples: int
    rows: int
    """Rows of the source: samples and rejects."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Rows that did not get in, by reason."""
    sources: dict[str, OriginInfo] = field(default_factory=dict)
    """By the origin's name; empty where the source has none."""
    unlisted: UnlistedInfo | None = None
    """None: not looked for."""
    metadata_gaps: dict[str, int] = field(default_factory=dict)
    """Samples without a record of metadata where the source has such, by reason."""
    duplicates: DuplicatesInfo | None = None
    """None: not looked for."""
    index_checksum: str
    """xxh3_128 of index.npy."""
    tables: dict[str, str] = field(default_factory=dict)
    """xxh3_128 of the Parquet tables, by file name; without those that an older writer did not note."""
    options: dict[str, Any] = field(default_factory=dict)
    """Every option that decides a byte of the data set."""
    codecs: dict[str, str] = field(default_factory=dict)
    """Decoder and encoder, with versions."""
    earlier: tuple[EarlierInfo, ...] = ()
    """The oldest first; overlays made for one of them hold for the first samples of this one."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if [c.class_id for c in self.classes] != list(range(len(self.classes))):
            raise ValueError("class ids must be 0 … K−1 in order")
        if sum(s.samples for s in self.shards) != self.samples:
            raise ValueError(f"shards hold {sum(s.samples for s in self.shards)} samples, manifest says {self.samples}")
        if sum(c.samples for c in self.classes) != self.samples:
            raise ValueError(
                f"classes hold {sum(c.samples for c in self.classes)} samples, manifest says {self.samples}"
            )
        if self.samples + sum(self.rejects.values()) != self.rows:
            raise ValueError(
                f"{self.samples} samples and {sum(self.rejects.values())} rejects are not {self.rows} rows"
            )
        if any(e.samples > self.samples for e in self.earlier):
            raise ValueError(f"an earlier state had more than the {self.samples} samples of today")

    @cached_property
    def digest(self) -> str:
        """Identity of the data set, 32 hexadecimal digits: format version, classes, shards' checksums, the index's."""
        covered = {
            "format_version": self.format_version,
            "classes": [{name: getattr(c, name) for name in _DIGEST_CLASS} for c in self.classes],
            "shards": [[s.name, s.checksum] for s in self.shards],
            "index": self.index_checksum,
        }
        return xxhash.xxh3_128_hexdigest(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode())

    def samples_at(self, digest: str) -> int | None:
        """How many samples the data set had when `digest` was its digest; None: it never was."""
        if digest == self.digest:
            return self.samples
        return {state.digest: state.samples for state in self.earlier}.get(digest)

    def save(self, directory: Path) -> None:
        """Write the manifest into `directory`. Call it last: it declares the data set finished."""
        document = {**asdict(self), "digest": self.digest}
        text = json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True)
        write_atomic(directory / MANIFEST_FILE, (text + "\n").encode())

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read the manifest of `directory`.

        Raises:
            NotADatasetError: there is no such directory, or no manifest in it.
            UnfinishedBuildError: a build into it has not been finished.
            FormatVersionError: it was written by a newer version of the format.
            CorruptDataError: the manifest can't be parsed, contradicts itself, or has another digest than it says.
        """
        directory = Path(directory)
        path = directory / MANIFEST_FILE
        try:
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(directory) from None
        except ValueError as error:
            raise CorruptDataError(f"{path}: not a manifest: not JSON; build the shards again") from error
        if not isinstance(document, dict) or "format_version" not in document:
            raise CorruptDataError(f"{path}: not a manifest: no format_version in it; build the shards again")
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise FormatVersionError(
                f"{path}: format version {version}, this wv-toolkit reads version {FORMAT_VERSION}; "
                "upgrade wv-toolkit, or build the shards again with this one"
            )
        try:
            said = document.pop("digest", None)
            document["classes"] = _parse_all(ClassInfo, "classes", document.get("classes"))
            document["shards"] = _parse_all(ShardInfo, "shards", document.get("shards"))
            sources = document.get("sources", {})
            document["sources"] = {name: _parse(OriginInfo, f"sources.{name}", s) for name, s in sources.items()}
            if unlisted := document.get("unlisted"):
                document["unlisted"] = UnlistedInfo(files=unlisted["files"], first=tuple(unlisted["first"]))
            if duplicates := document.get("duplicates"):
                document["duplicates"] = _parse(DuplicatesInfo, "duplicates", duplicates)
            document["earlier"] = _parse_all(EarlierInfo, "earlier", document.get("earlier", []))
            manifest = _parse(cls, "manifest", document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptDataError(f"{path}: contradicts itself ({error}); build the shards again") from error
        if manifest.digest != said:
            raise CorruptDataError(
                f"{path}: digest {manifest.digest}, expected {said}: the file changed after the build; "
                "restore it or build the shards again"
            )
        return manifest


def _parse(kind: type[Parsed], where: str, row: object) -> Parsed:
    """A JSON object as one of our dataclasses. Raises ValueError naming the key that is not what it should be."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {row!r}")
    known = {item.name: item for item in fields(kind)}
    for name, value in row.items():
        if name not in known:
            raise ValueError(f"{where}: unknown key {name}")
        wanted = known[name].type
        if wanted in (int, str, int | None) and not isinstance(value, wanted):  # type: ignore[arg-type] # just checked
            raise ValueError(f"{where}.{name}: expected {getattr(wanted, '__name__', wanted)}, found {value!r}")
    for name, item in known.items():
        if name not in row and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where}: no {name}")
    return kind(**row)


def _parse_all(kind: type[Parsed], where: str, rows: object) -> tuple[Parsed, ...]:
    if not isinstance(rows, list):
        raise ValueError(f"{where}: expected a list, found {rows!r}")
    return tuple(_parse(kind, f"{where}[{i}]", row) for i, row in enumerate(rows))


def _missing(directory: Path) -> NotADatasetError | UnfinishedBuildError:
    if (directory / BUILD_DIR / PART_FILE).is_file():
        return UnfinishedBuildError(
            f"{directory}: {_part(directory)}; `wv-ingest finalize OUT PART_DIR…` joins it with the others"
        )
    if (directory / BUILD_DIR).is_dir():
        return UnfinishedBuildError(
            f"{directory}: the build has not been finished; run the same `wv-ingest` command again to finish it"
        )
    for folder, command in UNFINISHED.items():
        if (directory / folder).is_dir():
            return UnfinishedBuildError(
                f"{directory}: `wv-ingest {command}` has not been finished; run the same command again to finish it"
            )
    if directory.is_dir():
        return NotADatasetError(
            f"{directory}: no {MANIFEST_FILE} in it; expected the output of `wv-ingest build-shards`"
        )
    return NotADatasetError(f"{directory}: no such directory; expected the output of `wv-ingest build-shards`")


def _part(directory: Path) -> str:
    try:
        note = json.loads((directory / BUILD_DIR / PART_FILE).read_bytes())
        return f"is part {note['part']} of {note['parts']} of a build, complete"
    except (OSError, ValueError, KeyError, TypeError):
        return "is a part of a build"
