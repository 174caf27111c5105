"""Image formats by their first bytes; names and extensions are never believed.

It opens nothing: Pillow is then told which single plugin may read the file, so a file that claims to be
PostScript never starts an interpreter.
"""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """How Pillow reads a format."""

    plugins: tuple[str, ...]
    feature: str | None = None
    """What `PIL.features.check` must find for it."""


ACCEPTED = {
    "jpeg": Format(("JPEG",)),
    "png": Format(("PNG",), "zlib"),
    "gif": Format(("GIF",)),
    "webp": Format(("WEBP",), "webp"),
    "bmp": Format(("BMP",)),
    "tiff": Format(("TIFF",)),
    "ppm": Format(("PPM",)),
    "avif": Format(("AVIF",), "avif"),
    "jpeg2000": Format(("JPEG2000",), "jpg_2000"),
}
"""Of several pictures in a file the first counts: GIF, WebP, APNG, MPO, TIFF."""
RECOGNISED = {"psd", "ico", "heic"}
"""Images that are not accepted: named in the reject's detail."""

_PREFIXES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"8BPS", "psd"),
    (b"\0\0\1\0", "ico"),
)
_BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic", b"msf1": "heic"}
_PPM_KINDS = b"123456"


def sniff(data: bytes) -> str | None:
    """A key of ACCEPTED, a member of RECOGNISED, or None."""
    for prefix, name in _PREFIXES:
        if data.startswith(prefix):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        # The brands behind the major one decide for files that call themselves generic.
        brands = [data[8:12], *(data[i : i + 4] for i in range(16, int.from_bytes(data[:4], "big"), 4))][:32]
        named = {_BRANDS[brand] for brand in brands if brand in _BRANDS}
        return "avif" if "avif" in named else next(iter(named), None)
    if len(data) > 2 and data[:1] == b"P" and data[1] in _PPM_KINDS and data[2:3].isspace():
        return "ppm"
    return None


def png_is_whole(data: bytes) -> bool:
    """Whether every critical chunk up to IEND has the checksum that it claims (Pillow skips that of IDAT)."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        kind = data[at + 4 : at + 8]
        critical = not kind[0] & 0x20
        if end + 4 > len(data):
            return True  # cut short: the decoder says so
        if critical and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if kind == b"IEND":
            return True
        at = end + 4
    return True
