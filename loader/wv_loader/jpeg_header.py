"""Whether DALI decodes a JPEG as Pillow does, told from its header alone. Does not look at the coded data."""

import re
from struct import unpack_from

_REFUSED = (0, 0)
_MAX_SEGMENTS = 256
_SHORTEST = 128
_MAX_APP1 = 8
"""Searching one of 64 KB takes up to a millisecond."""
# A tag 0x0112 of any type, in either byte order, unless one short number 1 follows: that is upright.
_TURNED = re.compile(
    rb"\x12\x01(?!\x03\0\x01\0\0\0\x01\0)[\x01-\x0d]\0|\x01\x12(?!\0\x03\0\0\0\x01\0\x01)\0[\x01-\x0d]", re.DOTALL
)
_SAMPLINGS = frozenset((0x11, 0x21, 0x22, 0x12, 0x41, 0x42))
"""The first component's; the others are 1 x 1. What nvJPEG decodes: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1, 4:1:0."""
_FRAME, _APP1, _APP14, _SCAN, _REFUSE = range(1, 6)


def _kinds() -> bytes:
    kinds = bytearray(256)  # 0: a segment to step over
    kinds[0xC0] = kinds[0xC1] = kinds[0xC2] = _FRAME
    kinds[0xE1], kinds[0xEE], kinds[0xDA] = _APP1, _APP14, _SCAN
    # No markers, and frames that are lossless, hierarchical or arithmetically coded.
    for code in (*range(0xC0), 0xC3, *range(0xC5, 0xDA), 0xDC, 0xDE, 0xDF, *range(0xF0, 0xFE), 0xFF):
        kinds[code] = _REFUSE
    return bytes(kinds)


_KINDS = _kinds()


def plain_jpeg(data: bytes | memoryview) -> tuple[int, int]:
    """Width and height of a JPEG that every decoder takes for the same picture; (0, 0) where that is not sure.

    Such a file is upright, of 8 bits, grey or YCbCr, Huffman-coded (progressive too), and has an end. Never raises.
    """
    end = len(data)
    if end < _SHORTEST or data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return _REFUSED
    at, last, width, height, components, rgb, app1 = 2, end - 20, 0, 0, 0, False, 0
    for _ in range(_MAX_SEGMENTS):
        if at > last:
            return _REFUSED
        mark, code, size = unpack_from(">BBH", data, at)
        kind = _KINDS[code]
        if mark != 0xFF or kind == _REFUSE or size < 2:
            return _REFUSED
        if kind == _FRAME:
            framed = components
            precision, height, width, components, ident, sampling = unpack_from(">BHHBBB", data, at + 4)
            if framed or precision != 8 or not width or not height or size != 8 + 3 * components:
                return _REFUSED
            if components == 3:
                if sampling not in _SAMPLINGS or ident == ord("R") or data[at + 14] != 0x11 or data[at + 17] != 0x11:
                    return _REFUSED
            elif components != 1:
                return _REFUSED
        elif kind == _SCAN:
            return _REFUSED if rgb and components == 3 else (width, height)
        elif kind == _APP1:
            app1 += 1
            if app1 > _MAX_APP1 or not _upright(bytes(data[at + 4 : at + 2 + size])):
                return _REFUSED
        elif kind == _APP14:
            body = bytes(data[at + 4 : at + 2 + size])
            if size < 7 or (body[:5] == b"Adobe" and size != 14):
                return _REFUSED
            rgb = rgb or (body[:5] == b"Adobe" and body[11] != 1)
        at += 2 + size
    return _REFUSED


def _upright(body: bytes) -> bool:
    if len(body) < 6:
        return False  # nvImageCodec reads six bytes of every APP1
    if body[:6] == b"Exif\0\0":
        return _TURNED.search(body) is None
    return b"rientation" not in body  # XMP
