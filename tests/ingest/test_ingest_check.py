"""Bytes in, image or reason out."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps, features

from wv_ingest.check import Accepted, CheckOptions, Decode, Reason, Rejected, Subsampling, check_image
from wv_ingest.jpeg import read_header, strip

Draw = Callable[..., bytes]
KEEP = CheckOptions(size_px=0)


def save(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decoded(result: Accepted | Rejected) -> np.ndarray:
    """(H, W, 3) of what is stored."""
    assert isinstance(result, Accepted), result
    with Image.open(io.BytesIO(result.data)) as image:
        assert image.format == "JPEG"
        assert (result.width, result.height) == image.size
        return np.asarray(image.convert("RGB"))


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [columns * 255 // width, rows * 255 // height, (rows + columns) * 255 // (width + height)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size_px", [0, 64, 256])
def test_every_torture_file_comes_out_as_expected(test_data: Path, size_px: int) -> None:
    with open(test_data / "torture" / "expected.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 89
    wrong = []
    for row in rows:
        result = check_image(
            (test_data / "torture" / "files" / row["file"]).read_bytes(), CheckOptions(size_px=size_px)
        )
        if isinstance(result, Rejected):
            if row["expect"] == "ok":
                wrong.append((row["file"], result))
            continue
        pixels = decoded(result)
        size = int(row["width"] or 0), int(row["height"] or 0)
        if size_px == 0 and row["width"] and (result.width, result.height) != size:
            wrong.append((row["file"], result.width, result.height))
        if row["expect"] == "reject" or (row["file"] == "grey_png_16_bit.png" and pixels.std() < 10):
            wrong.append((row["file"], "accepted"))
    assert not wrong


def test_a_sound_jpeg_keeps_its_coded_data_bit_for_bit(encode: Draw) -> None:
    data = encode(1, 100, 60)
    for options in (KEEP, CheckOptions(size_px=60), CheckOptions(size_px=256)):
        result = check_image(data, options)
        assert isinstance(result, Accepted)
        assert result.kept
        assert result.data == data


def test_a_grey_jpeg_keeps_its_coded_data() -> None:
    data = save(gradient().convert("L"), "JPEG")
    result = check_image(data, KEEP)
    assert isinstance(result, Accepted)
    assert result.data == data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("size_px", [0, 24])
def test_orientation_is_applied(orientation: int, file_format: str, size_px: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(gradient(), file_format, exif=exif, **({"quality": 95} if file_format != "TIFF" else {}))
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    wanted = upright.resize((upright.width // 2, upright.height // 2)) if size_px else upright
    result = check_image(data, CheckOptions(size_px=size_px, quality=95))
    assert np.abs(decoded(result).astype(int) - np.asarray(wanted)).mean() < 4
    assert isinstance(result, Accepted)
    assert result.kept == (file_format == "JPEG" and orientation == 1 and size_px == 0)


@pytest.mark.parametrize("side", [(640, 200), (200, 640), (333, 334), (64, 64), (30, 900)])
def test_the_shorter_side_becomes_the_size_and_nothing_is_enlarged(side: tuple[int, int]) -> None:
    result = check_image(save(gradient(*side), "PNG"), CheckOptions(size_px=64, max_aspect=30))
    assert isinstance(result, Accepted)
    assert min(result.width, result.height) == min(64, *side)
    factor = min(1.0, 64 / min(side))
    assert abs(result.width - side[0] * factor) <= 0.5
    assert abs(result.height - side[1] * factor) <= 0.5


def test_a_large_jpeg_decoded_at_a_fraction_looks_like_one_decoded_whole() -> None:
    """Decoding at 1/2 and then reducing stays above 40 dB of PSNR of decoding whole and reducing."""
    noisy = gradient(1200, 900).effect_spread(5)
    data = save(noisy, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        whole = image.resize((267, 200), Image.Resampling.BICUBIC)
    by_check = decoded(check_image(data, CheckOptions(size_px=200, quality=100)))
    reference = decoded(check_image(save(whole, "PNG"), CheckOptions(size_px=0, quality=100)))
    error = np.mean((by_check.astype(float) - reference.astype(float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 40


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (0, 0, 16, 32))
    palette = clear.convert("RGB").quantize(4)
    transparent_index = palette.getpixel((31, 31))
    for data in (
        save(clear, "PNG"),
        save(clear, "WEBP", lossless=True),
        save(clear.convert("LA"), "PNG"),
        save(palette, "GIF", transparency=transparent_index),
        save(palette, "PNG", transparency=transparent_index),
    ):
        pixels = decoded(check_image(data, KEEP))
        assert pixels[:, 24:].min() > 240
        assert pixels[:, :8].mean() < 120


def test_other_pixel_formats_become_rgb() -> None:
    picture = gradient()
    grey16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    for data, tolerance in (
        (save(picture.convert("CMYK"), "JPEG", quality=95), 6),
        (save(picture.convert("CMYK"), "TIFF"), 6),
        (save(picture.quantize(256), "PNG"), 8),
        (save(picture, "BMP"), 4),
        (save(picture, "PPM"), 4),
        (save(picture, "JPEG2000"), 4),
        # Pillow-SIMD is built without it.
        *([(save(picture, "AVIF", quality=90), 6)] if features.check("avif") else []),
    ):
        assert np.abs(decoded(check_image(data, KEEP)).astype(int) - np.asarray(picture)).mean() < tolerance
    for data in (save(grey16, "PNG"), save(grey16, "TIFF"), save(grey16, "PPM"), save(picture.convert("L"), "PNG")):
        grey = np.asarray(picture.convert("L").convert("RGB"))
        assert np.abs(decoded(check_image(data, KEEP)).astype(int) - grey).mean() < 4
    bilevel = decoded(check_image(save(picture.convert("1"), "PNG"), CheckOptions(size_px=0, quality=100)))
    assert (bilevel.min(), bilevel.max()) == (0, 255)


def test_a_colour_profile_is_followed_and_srgb_is_left_alone(test_data: Path) -> None:
    """Photos with Adobe RGB are converted, those with sRGB keep their coded data; neither keeps the profile."""
    converted = kept = 0
    for path in sorted((test_data / "photos").iterdir()):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            icc = image.info.get("icc_profile")
            if not icc or image.mode != "RGB" or image.getexif().get(0x0112, 1) != 1:
                continue
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            name = profile.profile.profile_description or ""
            if "Adobe RGB" in name:
                reference = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
                result = check_image(data, CheckOptions(size_px=0, quality=95))
                assert not result.kept
                assert np.abs(decoded(result).astype(int) - np.asarray(reference)).mean() < 3
                converted += 1
            elif "sRGB" in name:
                result = check_image(data, KEEP)
                assert result.kept
                kept += 1
            else:
                continue
            assert b"ICC_PROFILE" not in result.data
    assert converted
    assert kept


def test_a_broken_profile_or_one_of_another_colour_space_is_ignored(encode: Draw) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (
        save(gradient(), "JPEG", icc_profile=b"no profile at all"),
        save(gradient().convert("L"), "JPEG", icc_profile=srgb),
    ):
        result = check_image(data, KEEP)
        assert isinstance(result, Accepted)
        assert result.kept


def test_no_metadata_survives_reencoding() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "SECRET"
    data = save(gradient(), "JPEG", exif=exif, comment=b"SECRET", dpi=(72, 72))
    result = check_image(data, KEEP)
    assert isinstance(result, Accepted)
    assert not result.kept
    assert b"SECRET" not in result.data
    assert b"Exif" not in result.data


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda d: d[:0], {}, Reason.EMPTY),
        (lambda d: d, {"max_bytes": 100}, Reason.TOO_MANY_BYTES),
        (lambda d: b"<html>" + d, {}, Reason.NOT_AN_IMAGE),
        (lambda d: b"8BPS" + d, {}, Reason.UNSUPPORTED_FORMAT),
        (lambda d: b"\0\0\0\x18ftypheic" + d, {}, Reason.UNSUPPORTED_FORMAT),
        (lambda d: d[:30], {}, Reason.BAD_HEADER),
        (lambda d: d, {"min_side_px": 61}, Reason.TOO_SMALL),
        (lambda d: d, {"max_side_px": 99}, Reason.TOO_LARGE),
        (lambda d: d, {"max_pixels": 5999}, Reason.TOO_LARGE),
        (lambda d: d, {"max_pixels": 100}, Reason.TOO_LARGE),
        (lambda d: d[:-20], {}, Reason.TRUNCATED),
        (lambda d: d.replace(b"\xff\xdb", b"\xff\xfe"), {}, Reason.UNDECODABLE),
    ],
)
def test_a_reject_says_why(
    encode: Draw, change: Callable[[bytes], bytes], options: dict[str, int], reason: Reason
) -> None:
    result = check_image(change(encode(1, 100, 60)), CheckOptions(**options))
    assert isinstance(result, Rejected)
    assert result.reason is reason
    assert len(result.detail) < 60


def test_floating_point_images_are_rejected() -> None:
    result = check_image(save(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"), KEEP)
    assert isinstance(result, Rejected)
    assert result.reason is Reason.UNSUPPORTED_PIXELS


def test_a_png_whose_checksum_is_wrong_is_rejected() -> None:
    """Pillow by itself decodes it without complaint."""
    data = bytearray(save(gradient(), "PNG"))
    kind = data.index(b"IDAT")
    data[kind + 4 + int.from_bytes(data[kind - 4 : kind], "big")] ^= 1
    result = check_image(bytes(data), KEEP)
    assert result == Rejected(reason=Reason.UNDECODABLE, detail="png:checksum")


@given(
    at=st.integers(0, 3000),
    flip=st.integers(1, 255),
    cut=st.integers(0, 3000),
    kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]),
)
def test_no_damage_makes_the_check_raise(encode: Draw, at: int, flip: int, cut: int, kind: str) -> None:
    data = bytearray(encode(2, file_format=kind))
    data[at % len(data)] ^= flip
    for damaged in (bytes(data), bytes(data[: cut % len(data)])):
        result = check_image(damaged, CheckOptions(size_px=16))
        if isinstance(result, Accepted):
            assert decoded(result).shape == (result.height, result.width, 3)


def test_truncated_images_are_never_tolerated() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    "options",
    [{"size_px": -1}, {"quality": 0}, {"quality": 101}, {"min_side_px": 0}, {"max_side_px": 70_000}, {"max_bytes": 0}],
)
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        CheckOptions(**options)


def sound_for_pillow(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:
        return False
    return True


@given(data=st.data(), progressive=st.booleans(), grey=st.booleans())
def test_a_kept_jpeg_is_judged_as_by_decoding_it_at_full_size(
    encode: Draw, data: st.DataObject, progressive: bool, grey: bool
) -> None:
    """What is kept is decoded at an eighth of its size: it passes exactly if Pillow takes it in full."""
    whole = encode(7, 300, 280, progressive=progressive)
    if grey:
        with Image.open(io.BytesIO(whole)) as image:
            whole = save(image.convert("L"), "JPEG", progressive=progressive)
    scan = whole.index(b"\xff\xda") + 14
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(scan, len(whole) - 3))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(scan, len(damaged)))] + b"\xff\xd9"
    header = read_header(bytes(damaged))
    assert header is not None
    stored = strip(bytes(damaged), header)
    result = check_image(bytes(damaged), KEEP)
    if stored is not None:
        assert isinstance(result, Accepted) == sound_for_pillow(stored)


def test_checking_the_header_decodes_nothing_that_is_kept(encode: Draw) -> None:
    header = CheckOptions(size_px=0, decode="header")
    sound = encode(1, 100, 60)
    scan = sound.index(b"\xff\xda") + 14
    rubbish = sound[:scan] + bytes(len(sound) - scan - 2) + b"\xff\xd9"
    for data in (sound, rubbish):
        result = check_image(data, header)
        assert isinstance(result, Accepted)
        assert (result.data, result.width, result.height, result.phash) == (data, 100, 60, None)
    cut = check_image(sound[:-40], header)
    assert isinstance(cut, Rejected)
    assert cut.reason == Reason.TRUNCATED  # the segments show it, so the decoder is asked
    png = check_image(save(gradient(), "PNG"), header)
    assert isinstance(png, Accepted)
    assert png.phash is not None


@pytest.mark.parametrize("decode", ["full", "header"])
def test_limits_hold_before_anything_is_decoded(encode: Draw, decode: Decode) -> None:
    sound = encode(1, 200, 20)
    rubbish = sound[: sound.index(b"\xff\xda") + 14] + bytes(100) + b"\xff\xd9"
    for limits, reason in (
        ({"max_side_px": 199}, Reason.TOO_LARGE),
        ({"max_pixels": 3999}, Reason.TOO_LARGE),
        ({"min_side_px": 21}, Reason.TOO_SMALL),
        ({"max_aspect": 9.9}, Reason.EXTREME_ASPECT),
        ({"max_bytes": 50}, Reason.TOO_MANY_BYTES),
    ):
        result = check_image(rubbish, CheckOptions(size_px=0, decode=decode, **limits))
        assert isinstance(result, Rejected), limits
        assert result.reason == reason


def test_metadata_is_kept_on_demand(encode: Draw) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    plain = save(gradient(), "JPEG", exif=exif, comment=b"a comment")
    exif[0x0112] = 6
    turned = save(gradient(), "JPEG", exif=exif, comment=b"a comment")
    for data in (plain, turned):
        without = check_image(data, KEEP)
        assert isinstance(without, Accepted)
        assert b"a camera" not in without.data
        assert b"a comment" not in without.data
        with_all = check_image(data, CheckOptions(size_px=0, keep_metadata=True))
        assert isinstance(with_all, Accepted)
        assert with_all.kept == (data is plain)
        with Image.open(io.BytesIO(with_all.data)) as image:
            assert image.getexif()[0x010F] == "a camera"
            assert 0x0112 not in image.getexif()  # it has been followed
            assert image.info["comment"] == b"a comment"
    result = check_image(plain, CheckOptions(size_px=0, keep_metadata=True))
    assert isinstance(result, Accepted)
    assert result.data == plain


@pytest.mark.parametrize(("subsampling", "factors"), [("4:2:0", b"\x22"), ("4:2:2", b"\x21"), ("4:4:4", b"\x11")])
def test_colour_is_subsampled_as_asked(subsampling: Subsampling, factors: bytes) -> None:
    result = check_image(save(gradient(), "PNG"), CheckOptions(size_px=0, subsampling=subsampling))
    assert isinstance(result, Accepted)
    frame = result.data.index(b"\xff\xc0")
    assert result.data[frame + 11 : frame + 12] == factors
