"""Samples of WebDataset tars: members grouped by key, the image among them, the label beside it.

Headers are walked and the small label members are read; no image is. A sample is what the `webdataset` package
takes for one: consecutive members of one key, the name up to the first dot behind the last slash. It decides no class
ids: labels stay texts here.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from wv_ingest.check import Reason
from wv_ingest.errors import SourceError
from wv_ingest.tar_walk import BLOCK_BYTES, Member, TarWalk
from wv_ingest.tars import EXAMPLES

IMAGE_EXTENSIONS = (b"jpg", b"jpeg", b"png", b"webp", b"gif", b"bmp", b"tif", b"tiff", b"ppm", b"jfif", b"mpo", b"jpe")
"""Of a sample's members the image is the first in this order."""
MAX_NUMBER_DIGITS = 18
NO_IMAGE_OFFSET = -1

_NAME = re.compile(rb"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(rb"__[^/]*__($|/)")
_NUMBER = re.compile(rb"\s*(-?[0-9]{1,%d})\s*" % MAX_NUMBER_DIGITS)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_LABEL_BYTES = 1 << 20
"""A label member that is longer is not read."""
_OWN_FACTS = ("path", "source", "query")
"""What `key.json` of our own shards says."""

SCAN_SCHEMA = pa.schema(
    [
        ("member", pa.large_binary()),  # name of the image in the tar; the key where there is none
        ("offset", pa.int64()),  # of the image; NO_IMAGE_OFFSET where there is none
        ("size", pa.int64()),
        ("label", pa.string()),  # as it stands there; null where there is none or none that can be used
        ("reason", pa.string()),  # why there is no label; empty where there is one
        ("detail", pa.string()),
        ("source", pa.string()),
        ("query", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class TarSample:
    """A sample as it stands in its tar."""

    key: bytes
    members: tuple[tuple[bytes, Member], ...]
    """(extension, member), in the tar's order; no extension twice, whatever its case."""

    def member(self, extension: bytes) -> Member | None:
        """The member with this extension, given in lower case."""
        return next((member for name, member in self.members if name.lower() == extension), None)

    @property
    def image(self) -> Member | None:
        """The first of IMAGE_EXTENSIONS that is there."""
        return next((member for name in IMAGE_EXTENSIONS if (member := self.member(name)) is not None), None)


class Samples:
    """Iterates over the samples of an open tar.

    A member whose extension the sample already has begins a new sample. Hard links and members without a key
    (no dot, hidden, `__meta__`) belong to none, as in `webdataset`; they are counted.

    Args:
        walk: over the tar.
    """

    def __init__(self, walk: TarWalk) -> None:
        self._walk = walk
        self.strays = 0
        """Members that are in no sample, so far."""
        self.first_strays: list[bytes] = []
        """Names of the first of them, EXAMPLES at most."""

    def __iter__(self) -> Iterator[TarSample]:
        key, members, extensions = b"", list[tuple[bytes, Member]](), set[bytes]()
        for member in self._walk.members():
            split = None if member.link is not None else split_name(member.name)
            if split is None:
                self.strays += 1
                if len(self.first_strays) < EXAMPLES:
                    self.first_strays.append(member.name)
                continue
            folded = split[1].lower()
            if members and (split[0] != key or folded in extensions):
                yield TarSample(key, tuple(members))
                members, extensions = [], set()
            key = split[0]
            members.append((split[1], member))
            extensions.add(folded)
        if members:
            yield TarSample(key, tuple(members))


def split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Key and extension of a member, as `webdataset` cuts them; None if it belongs to no sample."""
    match = _NAME.fullmatch(name)
    if match is None or match[1].endswith(b"/") or _META.match(name):
        return None
    return match[1], match[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanJob:
    """A tar whose samples are to be listed."""

    tar: Path
    name: str
    """What it is called in messages."""
    label_key: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannedTar:
    """What a tar holds."""

    samples: pa.Table
    """(samples,) of SCAN_SCHEMA, in the tar's order."""
    strays: int
    first_strays: tuple[bytes, ...]
    warnings: tuple[str, ...]


def scan_tar(job: ScanJob) -> ScannedTar:
    """List the samples of a tar, with the labels that stand in it.

    Raises:
        SourceError: it can't be read, or is no tar.
    """
    try:
        descriptor = os.open(job.tar, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"{job.name}: can't be opened: {error.strerror}") from error
    try:
        refuse_other_files(descriptor, job.name)
        walk = TarWalk(descriptor, os.fstat(descriptor).st_size)
        samples = Samples(walk)
        columns: list[list[object]] = [[] for _ in SCAN_SCHEMA]
        for sample in samples:
            for column, value in zip(columns, _facts(descriptor, sample, job.label_key), strict=True):
                column.append(value)
    except OSError as error:
        raise SourceError(f"{job.name}: can't be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCAN_SCHEMA, strict=True)]
    return ScannedTar(
        samples=pa.table(arrays, schema=SCAN_SCHEMA),
        strays=samples.strays,
        first_strays=tuple(samples.first_strays),
        warnings=walk_warnings(job.name, walk),
    )


def walk_warnings(name: str, walk: TarWalk) -> tuple[str, ...]:
    """What a person should know of a tar that was walked to its end."""
    warnings = []
    if walk.damage:
        warnings.append(f"{name}: {walk.damage}; what is there whole is taken, whatever came behind it is not known")
    if walk.odd:
        warnings.append(f"{name}: {walk.odd:,} sparse members can't be read in place and are left out")
    return tuple(warnings)


def refuse_other_files(descriptor: int, name: str) -> None:
    """A tar begins with a header; an empty archive with its end mark.

    Raises:
        SourceError: this file does not; compressed tars are named as such.
    """
    start = os.pread(descriptor, BLOCK_BYTES, 0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise SourceError(
                f"{name}: a {kind}-compressed file, which can't be read at random; unpack it "
                "(`gzip -d`, `zstd -d`, …), or build from it by way of a pipe, as in 'pipe:gzip -dc x.tar.gz'"
            )
    walk = TarWalk(descriptor, BLOCK_BYTES)
    next(walk.members(), None)
    if walk.damage.startswith("no header") or len(start) < BLOCK_BYTES:
        raise SourceError(f"{name}: not a tar ({len(start)} bytes of its first block, no header of a member in them)")


def _facts(descriptor: int, sample: TarSample, label_key: str | None) -> tuple[object, ...]:
    image = sample.image
    member = sample.member(b"json")
    document, broken = (None, "") if member is None else _document(descriptor, member)
    label, reason, detail = _label(descriptor, sample, document, broken, label_key)
    origin, query = _origin(document)
    if image is None:
        return sample.key, NO_IMAGE_OFFSET, 0, label, reason, detail, origin, query
    return image.name, image.offset, image.size, label, reason, detail, origin, query


def _label(
    descriptor: int, sample: TarSample, document: object, broken: str, label_key: str | None
) -> tuple[str | None, str, str]:
    """The label's text, or the reason why there is none and a detail."""
    number = sample.member(b"cls") if label_key is None else None
    if number is not None:
        match = _NUMBER.fullmatch(_read(descriptor, number) or b"")
        return (None, Reason.BAD_LABEL.value, "cls") if match is None else (match[1].decode(), "", "")
    if broken:
        return None, Reason.BAD_LABEL.value, broken
    found = document
    for part in (label_key or "label").split("."):
        if not isinstance(found, dict) or part not in found:
            return None, Reason.NO_LABEL.value, ""
        found = found[part]
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) < 10**MAX_NUMBER_DIGITS:
        return str(found), "", ""
    if isinstance(found, str) and found.strip() and found.isprintable():
        return found.strip(), "", ""
    return None, Reason.BAD_LABEL.value, f"json-{type(found).__name__}"


def _document(descriptor: int, member: Member) -> tuple[object, str]:
    """The sample's JSON, and a code where it can't be had."""
    data = _read(descriptor, member)
    if data is None:
        return None, "json-size"
    try:
        return json.loads(data), ""
    except (ValueError, RecursionError):
        return None, "json"


def _origin(document: object) -> tuple[str, str]:
    """Source and query of a sample of our own shards; empty for others."""
    if not isinstance(document, dict) or not all(isinstance(document.get(name), str) for name in _OWN_FACTS):
        return "", ""
    origin, query = document["source"], document["query"]
    return (origin, query) if origin.isprintable() and query.isprintable() else ("", "")


def _read(descriptor: int, member: Member) -> bytes | None:
    return os.pread(descriptor, member.size, member.offset) if member.size <= _LABEL_BYTES else None
