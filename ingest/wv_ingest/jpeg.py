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
_SOS = 0xDA
_EOI = 0xD9
_COMMENT = 0xFE
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""The next marker in coded data: not a stuffed zero, a restart marker or a fill byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrippedJpeg:
    """A JPEG file without metadata, and what its frame header says."""

    data: bytes
    """From SOI to EOI: JFIF and Adobe segments, tables, frame and scans, in their order."""
    precision: int
    """Bits a component."""
    components: int
    height: int
    width: int


def strip(data: bytes) -> StrippedJpeg | None:
    """Cut all APPn but JFIF and Adobe, comments, and what follows the first image's end.

    Returns None when the file is not one plain Huffman-coded image with whole segments: then decode it and encode
    it anew. That the coded data is sound must be found out by decoding.
    """
    if data[:2] != SOI:
        return None
    kept = [SOI]
    frame: tuple[int, int, int, int] | None = None
    at = 2
    while True:
        # A marker is 0xFF (any number of times) and a code.
        if at >= len(data) or data[at] != 0xFF:
            return None
        while at < len(data) and data[at] == 0xFF:
            at += 1
        if at >= len(data):
            return None
        marker = data[at]
        at += 1
        if marker == _EOI:
            break
        length = int.from_bytes(data[at : at + 2], "big")
        end = at + length
        if length < 2 or end > len(data):
            return None
        body = data[at + 2 : end]
        if marker in _SOF:
            if frame is not None or len(body) < 6:
                return None
            frame = (body[0], body[5], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"))
        elif marker == _SOS:
            found = _SCAN_END.search(data, end)
            if frame is None or found is None:
                return None
            end = found.start()
        elif _APP0 <= marker <= _APP15 or marker == _COMMENT:
            jfif = marker == _APP0 and body.startswith(b"JFIF\0")
            adobe = marker == _APP14 and body.startswith(b"Adobe")
            if not (jfif or adobe):
                at = end
                continue
        elif marker not in _TABLES:
            return None
        kept.append(b"\xff" + data[at - 1 : end])
        at = end
    if frame is None:
        return None
    precision, components, height, width = frame
    return StrippedJpeg(
        data=b"".join([*kept, EOI]), precision=precision, components=components, height=height, width=width
    )
