"""Cutting metadata out of JPEGs: what is left must be the same coded data, and nothing but picture."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wv_ingest.jpeg import read_header
from wv_ingest.jpeg import strip as strip_scans

Draw = Callable[..., bytes]
SECRET = b"GPS of the photographer's home"


def strip(data: bytes, *, keep_metadata: bool = False) -> bytes | None:
    header = read_header(data, keep_metadata=keep_metadata)
    return None if header is None else strip_scans(data, header, keep_metadata=keep_metadata)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def with_metadata(data: bytes) -> bytes:
    """The JPEG with EXIF, XMP, an ICC chunk, a comment and an archive behind its end."""
    extra = segment(0xE1, b"Exif\0\0" + SECRET) + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + SECRET)
    extra += segment(0xE2, b"ICC_PROFILE\0\1\1" + SECRET) + segment(0xFE, SECRET)
    return data[:2] + extra + data[2:] + b"PK\3\4" + SECRET


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}])
def test_stripping_keeps_scans_and_pixels_and_drops_all_metadata(encode: Draw, options: dict[str, object]) -> None:
    plain = encode(1, 100, 60, **options)
    stripped = strip(with_metadata(plain))
    assert stripped is not None
    assert stripped == plain  # Pillow writes nothing but JFIF and picture
    header = read_header(with_metadata(plain))
    assert header is not None
    assert (header.width, header.height, header.precision, header.components) == (100, 60, 8, 3)
    assert header.profile == SECRET


def test_fill_bytes_before_a_marker_are_no_obstacle(encode: Draw) -> None:
    plain = encode(1)
    filled = plain[:2] + b"\xff\xff" + plain[2:]
    stripped = strip(filled)
    assert stripped is not None
    assert stripped == plain


def test_an_adobe_segment_stays_because_it_says_what_the_colours_mean() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8), "CMYK").save(buffer, "JPEG")
    stripped = strip(with_metadata(buffer.getvalue()))
    assert stripped is not None
    assert b"Adobe" in stripped
    assert SECRET not in stripped
    assert np.array_equal(pixels(stripped), pixels(buffer.getvalue()))


def test_real_photos_keep_their_pixels(test_data: Path) -> None:
    changed = 0
    for path in sorted((test_data / "photos").iterdir())[::8]:
        data = path.read_bytes()
        stripped = strip(data)
        assert stripped is not None, path.name
        assert np.array_equal(pixels(stripped), pixels(data)), path.name
        assert stripped[stripped.index(b"\xff\xda") :] in data, path.name
        assert b"Exif\0\0" not in stripped
        changed += stripped != data
    assert changed, "photos as found have metadata"


@given(cut=st.integers(0, 2000))
def test_a_file_that_is_cut_short_is_declined(encode: Draw, cut: int) -> None:
    whole = with_metadata(encode(3))
    end = whole.index(b"PK\3\4")
    stripped = strip(whole[: min(cut, len(whole))])
    assert (stripped is not None) == (cut >= end)


@given(st.binary(max_size=200), st.integers(0, 600), st.binary(max_size=8))
def test_nothing_makes_the_parser_fail(encode: Draw, tail: bytes, at: int, insert: bytes) -> None:
    plain = encode(5)
    damaged = (
        tail,
        b"\xff\xd8" + tail,
        plain[:at] + insert + plain[at:],
        plain[:at] + insert + plain[at + len(insert) :],
    )
    for data in damaged:
        stripped = strip(data)
        if stripped is not None:
            assert stripped.startswith(b"\xff\xd8")
            assert stripped.endswith(b"\xff\xd9")
            assert len(stripped) <= len(data)


@pytest.mark.parametrize("marker", [0xC9, 0xC3, 0xDE, 0x02, 0xF7])
def test_unusual_processes_are_declined(encode: Draw, marker: int) -> None:
    """Arithmetic coding, lossless, hierarchical, reserved: a decoder may lack them, so they are encoded anew."""
    plain = encode(1)
    body = plain[plain.index(b"\xff\xc0") :]
    unusual = plain.replace(b"\xff\xc0", bytes([0xFF, marker]), 1) if marker in (0xC9, 0xC3) else None
    assert strip(unusual or plain.replace(body, segment(marker, b"abc") + body)) is None


def test_metadata_is_kept_on_demand_and_what_follows_the_image_never(encode: Draw) -> None:
    whole = with_metadata(encode(1))
    assert strip(whole, keep_metadata=True) == whole[: whole.index(b"PK\3\4")]


def test_what_may_turn_a_picture_is_told_from_other_exif(encode: Draw) -> None:
    plain = encode(1)
    for order, turns in ((b"\x01\x12\0\3", True), (b"\x12\x01\3\0", True), (b"\x01\x10\0\2", False)):
        header = read_header(plain[:2] + segment(0xE1, b"Exif\0\0" + order) + plain[2:])
        assert header is not None
        assert header.may_turn == turns
    header = read_header(plain[:2] + segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<tiff:Orientation="6"') + plain[2:])
    assert header is not None
    assert header.may_turn
