"""The outer structure of a JPEG file: which segments it has, and the file without its metadata.

It reads markers and lengths (ITU-T T.81, annex B) and never touches coded data: a stripped file decodes to the
same pixels because tables, frame and scans are the same bytes. What it does not understand it declines.
"""

import re
from dataclasses import dataclass

SOI = b"\xff\xd8"
EOI = b"\xff\xd9"
_SOF = {0xC0, 0xC1, 0xC2}
"""Huffman-coded baseline, extended and progressive frames: what every decoder that matters can read."""
_TABLES = {0xC4, 0xDB, 0xDD}
"""DHT, DQT, DRI."""
_PICTURE = _TABLES | _SOF | {0xE0, 0xEE}
"""What may stand before the first scan, metadata aside."""
_SOS = 0xDA
_EOI = 0xD9
_COMMENT = 0xFE
_APP0, _APP1, _APP2, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_ICC = b"ICC_PROFILE\0"
_ICC_HEAD_BYTES = len(_ICC) + 2
"""The name, the segment's number and their count."""
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""The next marker in coded data: not a stuffed zero, a restart marker or a fill byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegHeader:
    """What stands before a JPEG file's first scan."""

    kept: tuple[bytes, ...]
    """The segments to keep, markers included: JFIF and Adobe, tables, frame."""
    scan: int
    """Where the first scan's marker begins."""
    precision: int
    """Bits a component."""
    components: int
    height: int
    width: int
    may_turn: bool
    """A segment may hold an orientation other than upright."""
    profile: bytes | None
    """The colour profile, empty if it is in several segments; None: there is none."""


def read_header(data: bytes, *, keep_metadata: bool = False) -> JpegHeader | None:
    """Read the segments before the first scan. APPn but JFIF and Adobe, and comments, are not kept unless asked for.

    Returns None when they are not those of one plain Huffman-coded image: then decode it and encode it anew.
    """
    if data[:2] != SOI:
        return None
    kept = [SOI]
    frame: tuple[int, int, int, int] | None = None
    may_turn, profile = False, None
    at = 2
    while (segment := _segment(data, at)) is not None:
        marker, at, end = segment
        if marker == _SOS:
            if frame is None:
                return None
            precision, components, height, width = frame
            return JpegHeader(
                kept=tuple(kept),
                scan=at,
                precision=precision,
                components=components,
                height=height,
                width=width,
                may_turn=may_turn,
                profile=profile,
            )
        body = data[at + 4 : end]
        if marker in _SOF:
            if frame is not None or len(body) < 6:
                return None
            frame = (body[0], body[5], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"))
        elif marker == _APP1:
            may_turn = may_turn or _may_turn(body)
        elif marker == _APP2 and body.startswith(_ICC):
            profile = body[_ICC_HEAD_BYTES:] if body[len(_ICC) : _ICC_HEAD_BYTES] == b"\1\1" else b""
        if keep_metadata or not _is_metadata(marker, body):
            if not _is_metadata(marker, body) and marker not in _PICTURE:
                return None
            kept.append(data[at:end])
        at = end
    return None


def strip(data: bytes, header: JpegHeader, *, keep_metadata: bool = False) -> bytes | None:
    """The file from SOI to EOI without what is not to be kept, and without what follows its first image.

    Returns None as `read_header` does, and when the scans break off. That the coded data is sound must be found out
    by decoding.
    """
    kept = list(header.kept)
    at = header.scan
    while (segment := _segment(data, at)) is not None:
        marker, at, end = segment
        if marker == _EOI:
            return b"".join([*kept, EOI])
        if marker == _SOS:
            found = _SCAN_END.search(data, end)
            if found is None:
                return None
            end = found.start()
        elif _is_metadata(marker, data[at + 4 : end]):
            if not keep_metadata:
                at = end
                continue
        elif marker not in _TABLES:
            return None
        kept.append(data[at:end])
        at = end
    return None


def _segment(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Marker, its place and the segment's end; None if there is none in whole."""
    # A marker is 0xFF (any number of times) and a code.
    if data[at : at + 1] != b"\xff":
        return None
    while data[at + 1 : at + 2] == b"\xff":
        at += 1
    if at + 1 >= len(data):
        return None
    marker = data[at + 1]
    if marker == _EOI:
        return marker, at, at + 2
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    end = at + 2 + length
    return None if length < 2 or end > len(data) else (marker, at, end)


def _is_metadata(marker: int, body: bytes) -> bool:
    """APPn and comments, but for those that say what the colours mean."""
    if marker == _APP0 and body.startswith(b"JFIF\0"):
        return False
    if marker == _APP14 and body.startswith(b"Adobe"):
        return False
    return _APP0 <= marker <= _APP15 or marker == _COMMENT


def _may_turn(body: bytes) -> bool:
    """Whether an APP1 segment may hold an orientation: the tag's number in either byte order, or XMP's word."""
    return b"\x01\x12" in body or b"\x12\x01" in body or b"rientation" in body
