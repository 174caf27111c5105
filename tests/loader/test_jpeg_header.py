"""Which files DALI gets: those whose header promises the picture that every decoder makes of them."""

import csv
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from wv_loader.jpeg_header import plain_jpeg

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of odd files
SIZE = (90, 70)
UPRIGHT = b"\x12\x01\x03\x00\x01\x00\x00\x00\x01\x00\x00\x00"


def jpeg(mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    colours = np.random.default_rng(1).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def with_segments(*segments: bytes, file: bytes | None = None) -> bytes:
    file = file or jpeg()
    return file[:2] + b"".join(segments) + file[2:]


def exif(orientation: int, order: str = "<", extra: bytes = b"") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tag = struct.pack(order + "HHIHH", 0x112, 3, 1, orientation, 0)
    entries = struct.pack(order + "IH", 8, 1) + tag + bytes(4)
    return segment(0xE1, b"Exif\0\0" + mark + entries + extra)


def adobe(transform: int) -> bytes:
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def with_frame(at: int, new: bytes, file: bytes | None = None) -> bytes:
    """The first frame header changed, from the byte `at` on: 0 is its marker's second byte."""
    file = file or jpeg()
    start = next(file.index(bytes((0xFF, code))) for code in (0xC0, 0xC2) if bytes((0xFF, code)) in file) + 1 + at
    return file[:start] + new + file[start + len(new) :]


def without_jfif(file: bytes) -> bytes:
    assert file[2:4] == b"\xff\xe0"
    return file[:2] + file[4 + struct.unpack_from(">H", file, 4)[0] :]


def second_frame(code: int) -> bytes:
    """Another frame header behind the usual one."""
    file = jpeg()
    start = file.index(b"\xff\xc0")
    end = start + 2 + struct.unpack_from(">H", file, start + 2)[0]
    return file[:end] + bytes((0xFF, code)) + file[start + 2 : end] + file[end:]


PLAIN = {
    "usual": jpeg(),
    "progressive": jpeg(progressive=True),
    "optimised": jpeg(optimize=True),
    "grey": jpeg("L"),
    "restart markers": jpeg(restart_marker_rows=1),
    "4:4:4": jpeg(subsampling="4:4:4"),
    "4:2:2": jpeg(subsampling="4:2:2"),
    "no JFIF": without_jfif(jpeg()),
    "a comment": with_segments(segment(0xFE, b"hello \xff\xc0\xff\xda")),
    "a profile": with_segments(*[segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))] * 9),
    "EXIF": with_segments(exif(1)),
    "EXIF, big endian": with_segments(exif(1, ">")),
    "EXIF without an orientation": with_segments(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0" + bytes(4))),
    "XMP": with_segments(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")),
    "Adobe YCbCr": with_segments(adobe(1)),
    "a grey one of Adobe's": with_segments(adobe(0), file=jpeg("L")),
    "wide": jpeg(size=(400, 3)),
}
REFUSED = {
    "nothing": b"",
    "one byte": b"\xff",
    "only its start": b"\xff\xd8",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "CMYK": jpeg("CMYK"),
    "EXIF that turns": with_segments(exif(6)),
    "EXIF that turns, big endian": with_segments(exif(8, ">")),
    "EXIF that flips": with_segments(exif(2)),
    "EXIF that turns behind one that does not": with_segments(exif(1), exif(6)),
    "EXIF with two orientations": with_segments(exif(1, extra=UPRIGHT.replace(b"\x01\0\0\0\x01", b"\x01\0\0\0\x03"))),
    "XMP with an orientation": with_segments(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>6")),
    "a short APP1": with_segments(segment(0xE1, b"Exif")),
    "RGB by Adobe's word": with_segments(adobe(0)),
    "RGB by its components' names": jpeg(keep_rgb=True),
    "RGB by its components' names alone": with_frame(9, b"R\x11\0G\x11\0B\x11", jpeg(subsampling="4:4:4")),
    "a short APP14": with_segments(segment(0xEE, b"Ado")),
    "Adobe's segment cut short": with_segments(segment(0xEE, b"Adobe\0\x64")),
    "12 bits": with_frame(3, b"\x0c"),
    "no height": with_frame(4, b"\0\0"),
    "no width": with_frame(6, b"\0\0"),
    "two components": with_frame(8, b"\x02"),
    "colours that are sampled finer than grey": with_frame(10, b"\x11\0\x02\x22"),
    "colours that are sampled unlike one another": with_frame(16, b"\x12"),
    "a strange sampling": with_frame(10, b"\x31"),
    "two frames": second_frame(0xC0),
    "two frames, one lossless": second_frame(0xC3),
    "two frames, one hierarchical": second_frame(0xC5),
    "two frames, one arithmetic": second_frame(0xC9),
    "a frame longer than its components": with_frame(
        1, b"\0\x14", jpeg().replace(b"\x03\x11\x01", b"\x03\x11\x01\0\0\0", 1)
    ),
    "frame and scan without anything else": b"\xff\xd8\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\x01\x11\0"
    + segment(0xDA, b"\x01\x01\0\0\x3f\0")
    + b"\x55" * 20
    + b"\xff\xd9",
    "a restart marker with a length": with_segments(segment(0xD0, b"hello")),
    "a segment without a marker": with_segments(b"\0" + segment(0xFE, b"hello")[1:]),
    "no end": jpeg()[:-2],
    "bytes behind its end": jpeg() + b"trailing",
    "two starts": b"\xff\xd8" + jpeg(),
    "no frame": jpeg().replace(b"\xff\xc0", b"\xff\xfe"),
    "no scan": with_segments(*[segment(0xFE, b"")] * 300),
    "a fill byte": with_segments(b"\xff"),
    "bytes between segments": with_segments(b"\0"),
    "a segment without a length": with_segments(b"\xff\xe5\0\0"),
    "a segment that leaves the file": with_segments(b"\xff\xe5\xff\xff"),
    **{
        name: with_frame(0, bytes([code]))
        for name, code in {"lossless": 0xC3, "hierarchical": 0xC5, "arithmetic": 0xC9, "arithmetic 2": 0xCA}.items()
    },
}


@pytest.mark.parametrize("file", PLAIN.values(), ids=PLAIN)
def test_a_usual_jpeg_is_plain(file: bytes) -> None:
    assert plain_jpeg(file) == plain_jpeg(memoryview(file)) == Image.open(io.BytesIO(file)).size


@pytest.mark.parametrize("file", REFUSED.values(), ids=REFUSED)
def test_what_decoders_may_read_otherwise_is_refused(file: bytes) -> None:
    assert plain_jpeg(file) == plain_jpeg(memoryview(file)) == (0, 0)


def test_long_metadata_are_refused_before_they_cost_time() -> None:
    """Each takes up to a millisecond."""
    tags = segment(0xE1, b"Exif\0\0" + UPRIGHT * 5000)
    assert plain_jpeg(with_segments(*[tags] * 8)) == SIZE
    assert plain_jpeg(with_segments(*[tags] * 9)) == (0, 0)


def test_odd_files_are_plain_only_where_pillow_agrees(test_data: Path) -> None:
    """Those that are said to be good have the size that they are said to have."""
    folder, plain = test_data / "torture", {}
    with (folder / "expected.csv").open() as file:
        for row in csv.DictReader(file):
            data = (folder / "files" / row["file"]).read_bytes()
            size = plain_jpeg(data)
            if size == (0, 0):
                continue
            plain[row["file"]] = size
            if row["expect"] == "ok":
                assert size == (int(row["width"]), int(row["height"])), row["file"]
                picture = Image.open(io.BytesIO(data))
                assert ImageOps.exif_transpose(picture).size == picture.size == size
    assert {"orientation_1.jpg", "hopper_gray.jpg", "progressive.jpg", "panorama_12000x40.jpg"} <= set(plain)
    turned = {f"orientation_{n}.jpg" for n in (2, 4, 5, 8)}
    others = {"cmyk.jpg", "gif_named.jpg", "twelve_bit.jpg", "zero_height.jpg", "trailing_zip.jpg", "soi_twice.jpg"}
    assert not (turned | others) & set(plain)


def test_most_photos_are_plain(test_data: Path) -> None:
    files = sorted((test_data / "photos").iterdir())
    plain = [(path, size) for path in files if (size := plain_jpeg(path.read_bytes())) != (0, 0)]
    assert len(plain) > 0.9 * len(files)
    assert all(Image.open(io.BytesIO(path.read_bytes())).size == size for path, size in plain)


BASES = [*PLAIN.values(), *(file for file in REFUSED.values() if len(file) > 200)]
edit = st.tuples(
    st.sampled_from(["set", "cut", "put"]), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)
)


def mutated(file: bytes, edits: list[tuple[str, float, bytes]], header_only: bool) -> bytes:
    for what, where, data in edits:
        until = min(len(file), 700) if header_only else len(file)
        at = int(where * until)
        behind = at if what == "put" else at + len(data)
        file = file[:at] + (b"" if what == "cut" else data) + file[behind:]
    return file


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda data: b"\xff\xd8" + data + b"\xff\xd9"))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    width, height = plain_jpeg(data)
    assert (width > 0) == (height > 0)


@pytest.mark.usefixtures("dali")
@given(st.sampled_from(BASES), st.lists(edit, max_size=5), st.booleans())
def test_what_is_plain_has_that_size_for_every_decoder_that_takes_it(
    base: bytes, edits: list[tuple[str, float, bytes]], header_only: bool
) -> None:
    file = mutated(base, edits, header_only)
    size = plain_jpeg(file)
    assert plain_jpeg(memoryview(file)) == size
    if size == (0, 0) or size[0] * size[1] > 1_000_000:
        return
    image = decoder().decode(file)
    if image is not None:
        assert tuple(image.shape) == (size[1], size[0], 3)
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
        picture.load()
    except Exception:  # what Pillow raises for broken files has no bounds
        return
    assert picture.size == size
    assert picture.mode in ("RGB", "L")


def decoder() -> Any:
    """The one in DALI, on the CPU."""
    from nvidia import nvimgcodec

    only_cpu = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
    return nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=only_cpu)
