"""One file's bytes become an image to store, or a reason why not.

A pure function of (bytes, options, codec versions): no clock, no file system, no randomness. Cheap tests come
first: size, magic bytes, sides from the header; then everything is decoded in full. What is stored is always a
JPEG without metadata in sRGB; a JPEG that already is that keeps its coded data.
"""

import io
import logging
import warnings
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import PIL
from PIL import Image, features

from wv_ingest.color import flatten, follow_profile, to_srgb
from wv_ingest.formats import ACCEPTED, RECOGNISED, png_is_whole, sniff
from wv_ingest.jpeg import JpegHeader, read_header, strip
from wv_ingest.phash import phash_of

Subsampling = Literal["4:2:0", "4:2:2", "4:4:4"]
Decode = Literal["full", "header"]

JPEG_MAX_SIDE_PX = 65_500
"""libjpeg encodes no longer side."""
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DRAFT_GAP = 2
"""A JPEG is decoded at a fraction of its size only if that is still so many times what is wanted."""
_MODES = {1: "L", 3: "RGB"}
"""Mode of a JPEG by its components; others need a change."""
_SEGMENT_BYTES = 65_533
"""A JPEG segment holds no more."""
_PROBE_SIDE_PX = 32
"""What is kept as it is gets decoded at an eighth of its size, or so that its shorter side has this at least."""


logging.getLogger("PIL").addHandler(logging.NullHandler())  # plugins log what they also raise


class Reason(StrEnum):
    """Why a row of the source did not get in. A closed set: reports and tests count by it."""

    REPEATED_ROW = "repeated-row"
    """The same path stood in the source before; the first row counts."""
    FILTERED = "filtered"
    """The row was not asked for: another origin, another class."""
    BAD_ROW = "bad-row"
    """A line of WebVision's lists that can't be read, or whose path leads out of the source."""
    MISSING = "missing"
    """There is no such file, and no such member of a tar."""
    UNREADABLE = "unreadable"
    """The file is there but can't be read: permission, I/O error, a folder."""
    NO_IMAGE = "no-image"
    """A sample of a WebDataset tar without a member that is called like an image."""
    NO_LABEL = "no-label"
    """A sample of a WebDataset tar that says nothing of its class."""
    BAD_LABEL = "bad-label"
    """What it says is no class: no number, no text, out of range, not a name of the classes given."""
    EMPTY = "empty"
    """No bytes."""
    TOO_MANY_BYTES = "too-many-bytes"
    NOT_AN_IMAGE = "not-an-image"
    """No known format's magic bytes."""
    UNSUPPORTED_FORMAT = "unsupported-format"
    """An image, of a format that is not accepted or that this Pillow can't decode."""
    BAD_HEADER = "bad-header"
    """The magic bytes are right and what follows is not."""
    TOO_SMALL = "too-small"
    TOO_LARGE = "too-large"
    """A side or the number of pixels is above the limits, by the header."""
    EXTREME_ASPECT = "extreme-aspect"
    """Too long for its height, or too high for its length, by the header."""
    TRUNCATED = "truncated"
    """The file ends before the image does."""
    UNDECODABLE = "undecodable"
    UNSUPPORTED_PIXELS = "unsupported-pixels"
    """Decodes, to something that has no 8-bit RGB (floating point, LAB)."""
    DECODER_CRASHED = "decoder-crashed"
    """Ended a process that did nothing else, twice."""
    DECODER_CPU_LIMIT = "decoder-cpu-limit"
    DECODER_MEMORY_LIMIT = "decoder-memory-limit"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOptions:
    """What an image must be to get in, and what is made of it."""

    size_px: int = 256
    """Shorter side of what is stored; larger images are reduced, none is enlarged. 0: all keep their size."""
    quality: int = 90
    """Of the JPEGs that are encoded anew."""
    subsampling: Subsampling = "4:2:0"
    """Of the colour of JPEGs that are encoded anew."""
    keep_metadata: bool = False
    """Leave EXIF, GPS, profiles and comments in JPEGs, where they are cut out otherwise."""
    decode: Decode = "full"
    """`header`: what is kept as it is need not decode, its segments are looked at only."""
    max_bytes: int = 50_000_000
    max_pixels: int = 100_000_000
    max_side_px: int = 20_000
    min_side_px: int = 8
    max_aspect: float = 20.0
    """Longer side over shorter."""

    def __post_init__(self) -> None:
        if self.size_px < 0:
            raise ValueError(f"size must be 0 (keep) or positive, got {self.size_px}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be within 1 … 100, got {self.quality}")
        if not 1 <= self.min_side_px <= self.max_side_px <= JPEG_MAX_SIDE_PX:
            raise ValueError(
                f"sides need 1 <= min <= max <= {JPEG_MAX_SIDE_PX}, got {self.min_side_px} and {self.max_side_px}"
            )
        if not self.max_aspect >= 1:
            raise ValueError(f"the longer side is at least 1 time the shorter, got max_aspect {self.max_aspect}")
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ValueError(f"limits must be positive, got {self.max_bytes} bytes and {self.max_pixels} pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """What to store."""

    data: bytes
    """A JPEG file."""
    width: int
    height: int
    kept: bool
    """The coded data is the source's own."""
    phash: int | None
    """`phash.phash_of` the picture; None: it was not decoded, or has too little structure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Why nothing is stored."""

    reason: Reason
    detail: str
    """A code: format, sides, or the kind of the decoder's error."""


class _Refused(Exception):  # noqa: N818 - control flow inside this module
    def __init__(self, reason: Reason, detail: str) -> None:
        self.rejected = Rejected(reason=reason, detail=detail)


def check_image(data: bytes, options: CheckOptions) -> Accepted | Rejected:
    """What to store of `data`, or why it is rejected.

    Raises nothing but MemoryError, whatever `data` may be. Sets Pillow's global pixel limit.
    """
    return check_header(data, options) or decode_image(data, options)


def decode_image(data: bytes, options: CheckOptions) -> Accepted | Rejected:
    """The same of what `check_header` has left open: decode it in full."""
    Image.MAX_IMAGE_PIXELS = options.max_pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters here raises
        try:
            return _check(data, options)
        except _Refused as refused:
            return refused.rejected


def header_size(data: bytes, options: CheckOptions) -> tuple[int, int] | None:
    """(width, height) by the header, after EXIF orientation; None where it says none or one beyond the limits."""
    Image.MAX_IMAGE_PIXELS = options.max_pixels
    format_name = sniff(data)
    if format_name is None or format_name in RECOGNISED or not _decodable(format_name):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = _open(data, format_name)
            _check_sides(image.size, options)
        except _Refused:
            return None
        width, height = image.size
        turned = format_name != "tiff" and _orientation(image) >= 5  # Pillow turns a TIFF's size itself
    return (height, width) if turned else (width, height)


def check_header(data: bytes, options: CheckOptions) -> Accepted | Rejected | None:
    """What can be said of `data` without any decoder, and without their risks; None: ask `decode_image`."""
    try:
        if not data:
            raise _Refused(Reason.EMPTY, "")
        if len(data) > options.max_bytes:
            raise _Refused(Reason.TOO_MANY_BYTES, str(len(data)))
        if options.decode != "header":
            return None
        header = _keepable(data, options)
        if header is None or header.may_turn or header.profile is not None:
            return None
        return _keep(data, header, options)
    except _Refused as refused:
        return refused.rejected


def _check(data: bytes, options: CheckOptions) -> Accepted:
    format_name = sniff(data)
    if format_name in RECOGNISED or (format_name and not _decodable(format_name)):
        raise _Refused(Reason.UNSUPPORTED_FORMAT, str(format_name))
    if format_name is None:
        raise _Refused(Reason.NOT_AN_IMAGE, "")
    if not options.size_px:  # then most need no more than this; else most have to be reduced
        header = _keepable(data, options)
        if header is not None and not header.may_turn and not _changes_colours(header.profile, header.components):
            kept = _keep(data, header, options)
            if kept is not None:
                return kept
    image = _open(data, format_name)
    _check_sides(image.size, options)
    if format_name == "png" and not png_is_whole(data):
        raise _Refused(Reason.UNDECODABLE, "png:checksum")
    if format_name == "jpeg" and not 0 < options.size_px < min(image.size) and not _needs_change(image):
        header = _keepable(data, options)
        if header is not None and image.size == (header.width, header.height):
            kept = _keep(data, header, options)
            if kept is not None:
                return kept
    return _encode(image, format_name, options)


def _decodable(format_name: str) -> bool:
    feature = ACCEPTED[format_name].feature
    return feature is None or bool(features.check(feature))


def _open(data: bytes, format_name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=ACCEPTED[format_name].plugins)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise _Refused(Reason.TOO_LARGE, format_name) from None
    except Exception as error:
        # Plugins raise whatever their parsing hits: struct.error, KeyError, SyntaxError, MemoryError, …
        raise _Refused(Reason.BAD_HEADER, f"{format_name}:{type(error).__name__}") from None


def _check_sides(size: tuple[int, int], options: CheckOptions) -> None:
    width, height = size
    detail = f"{width}x{height}"
    if min(size) < 1:
        raise _Refused(Reason.BAD_HEADER, detail)
    if width * height > options.max_pixels or max(size) > options.max_side_px:
        raise _Refused(Reason.TOO_LARGE, detail)
    if min(size) < options.min_side_px:
        raise _Refused(Reason.TOO_SMALL, detail)
    if max(size) > options.max_aspect * min(size):
        raise _Refused(Reason.EXTREME_ASPECT, detail)


def _load(image: Image.Image, format_name: str) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise _Refused(Reason.TOO_LARGE, format_name) from None
    except Exception as error:
        # As in _open; Pillow has no exception of its own for a file that is cut short.
        short = isinstance(error, EOFError) or (isinstance(error, OSError) and "truncated" in str(error))
        reason = Reason.TRUNCATED if short else Reason.UNDECODABLE
        raise _Refused(reason, f"{format_name}:{type(error).__name__}") from None


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF breaks in any way, and the picture is still good
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _keepable(data: bytes, options: CheckOptions) -> JpegHeader | None:
    """The header of a JPEG whose frame needs no change."""
    header = read_header(data, keep_metadata=options.keep_metadata)
    if header is None or header.precision != 8 or header.components not in _MODES:
        return None
    return None if 0 < options.size_px < min(header.width, header.height) else header


def _changes_colours(profile: bytes | None, components: int) -> bool:
    """Whether a profile has to be followed; also when it takes more to say so."""
    return profile is not None and (not profile or to_srgb(profile, _MODES[components]) is not None)


def _needs_change(image: Image.Image) -> bool:
    """Whether orientation or colours ask for an encoding of its own."""
    icc = image.info.get("icc_profile")
    return image.mode not in ("L", "RGB") or _orientation(image) != 1 or bool(icc and to_srgb(icc, image.mode))


def _keep(data: bytes, header: JpegHeader, options: CheckOptions) -> Accepted | None:
    """The JPEG with its own coded data; None if its scans are not what they should be.

    What is stored is what gets decoded, not what it was made from.
    """
    _check_sides((header.width, header.height), options)
    stored = strip(data, header, keep_metadata=options.keep_metadata)
    if stored is None:
        return None
    phash = None
    if options.decode == "full":
        image = _open(stored, "jpeg")
        # All coded data is read at any scale, and nothing after that can fail.
        scale = max(1, min(8, min(image.size) // _PROBE_SIDE_PX))
        image.draft(None, (image.width // scale, image.height // scale))
        _load(image, "jpeg")
        phash = phash_of(image)
    return Accepted(data=stored, width=header.width, height=header.height, kept=True, phash=phash)


def _encode(image: Image.Image, format_name: str, options: CheckOptions) -> Accepted:
    size_px = options.size_px
    whole = image.size
    if format_name == "jpeg" and size_px and min(whole) > size_px:
        # Decodes at 1/2, 1/4 or 1/8 where that is at least _DRAFT_GAP times what is wanted; all data is still read.
        width, height = _reduced(whole, size_px)
        image.draft(None, (_DRAFT_GAP * width, _DRAFT_GAP * height))
        _load(image, format_name)
    else:
        _load(image, format_name)
        whole = image.size  # some plugins turn the image, or learn its extent, while loading
        _check_sides(whole, options)
    orientation = _orientation(image)
    try:
        flat = flatten(image)
    except Exception:  # Pillow raises ValueError, OSError or its own for pairs of modes that it can't convert
        raise _Refused(Reason.UNSUPPORTED_PIXELS, f"{format_name}:{image.mode}") from None
    wanted = _reduced(whole, size_px)
    if flat.size != wanted:
        flat = flat.resize(wanted, Image.Resampling.BICUBIC)  # antialiased when it reduces
    if orientation in _TURNS:
        flat = flat.transpose(_TURNS[orientation])
    flat = follow_profile(flat, image.info.get("icc_profile"))  # on the reduced image: it costs by the pixel
    metadata = _metadata(image) if options.keep_metadata else {}
    flat.info = {}  # or the encoder would write comments back
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=options.quality, subsampling=options.subsampling, **metadata)
    data = buffer.getvalue()
    return Accepted(data=data, width=flat.width, height=flat.height, kept=False, phash=phash_of(flat))


def _metadata(image: Image.Image) -> dict[str, bytes]:
    """EXIF and comment as the encoder takes them, without the orientation, which has been followed."""
    kept = {}
    try:
        exif = image.getexif()
        exif.pop(_ORIENTATION_TAG, None)
        if exif:
            kept["exif"] = exif.tobytes()
    except Exception:  # as in _orientation; what can't be read can't be kept
        kept.pop("exif", None)
    comment = image.info.get("comment")
    if isinstance(comment, str):
        comment = comment.encode()
    if isinstance(comment, bytes) and 0 < len(comment) <= _SEGMENT_BYTES:
        kept["comment"] = comment
    if len(kept.get("exif", b"")) > _SEGMENT_BYTES:
        del kept["exif"]
    return kept


def _reduced(size: tuple[int, int], size_px: int) -> tuple[int, int]:
    """(width, height) with the shorter side at most `size_px` and the same aspect; as it is for 0."""
    shorter = min(size)
    if not 0 < size_px < shorter:
        return size
    # Halves round up, in integers: the same on every machine.
    width, height = ((2 * side * size_px + shorter) // (2 * shorter) for side in size)
    return width, height


def codecs() -> dict[str, str]:
    """Decoder, encoder and table writer with their versions: together with the options they decide every byte."""
    libraries = {
        "libjpeg-turbo": "libjpeg_turbo",
        "zlib": "zlib",
        "libtiff": "libtiff",
        "libwebp": "webp",
        "libavif": "avif",
        "openjpeg": "jpg_2000",
        "littlecms": "littlecms2",
    }
    found = {name: features.version(feature) or "absent" for name, feature in libraries.items()}
    if found["libjpeg-turbo"] == "absent":
        found["libjpeg"] = features.version("jpg") or "absent"
    listed = ", ".join(f"{name} {text}" for name, text in found.items() if text != "absent")
    jpeg_library = next(f"{name} {found[name]}" for name in ("libjpeg-turbo", "libjpeg") if found.get(name) != "absent")
    return {
        "decoder": f"{pillow_name()} ({listed})",
        "encoder": f"{pillow_name()} ({jpeg_library})",
        "tables": f"pyarrow {version('pyarrow')}",
    }


def pillow_name() -> str:
    """`Pillow-SIMD 9.5.0.post1` or `Pillow 12.1.1`: both install the package `PIL`."""
    try:
        return f"Pillow-SIMD {version('Pillow-SIMD')}"
    except PackageNotFoundError:
        return f"Pillow {PIL.__version__}"
