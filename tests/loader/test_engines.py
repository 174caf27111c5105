"""Law 9: all engines agree on the pixels, and on which files have none."""

import csv
import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wv_loader import LoaderError, engine, engine_choice
from wv_loader.augment import Augment, Crops, train_crops
from wv_loader.decode_pillow import PillowEngine
from wv_loader.read import Failure

if os.environ.get("WV_REQUIRE_TURBO") != "1":
    pytest.importorskip("wv_loader._turbo", reason="the turbo engine's kernel is not built here (see setup.py)")
from wv_loader import _turbo
from wv_loader.decode_turbo import TurboEngine

MEAN_TOLERANCE = 0.02
"""Levels of 0 … 255, over all pixels; measured 0.002."""
MOST = 2
"""Levels, any pixel: the filter's weights have 14 bits instead of 22."""


def jpeg(seed: int, width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    """A picture with edges and noise, so that a wrong row or column shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST), dtype=int)
    pixels = np.clip(smooth + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decode(
    what: engine.Engine, files: list[bytes], sizes: list[tuple[int, int]], crops: Crops, size_px: int
) -> tuple[np.ndarray, list[Failure | None]]:
    out = np.full((len(files), size_px, size_px, 3), 7, dtype=np.uint8)
    widths, heights = np.array(sizes, dtype=np.int64).T
    failures = what.decode(files, widths, heights, crops, out)
    return out.astype(int), failures


def agree(files: list[bytes], sizes: list[tuple[int, int]], crops: Crops, size_px: int) -> None:
    ours, failed = decode(TurboEngine(), files, sizes, crops, size_px)
    reference, refused = decode(PillowEngine(), files, sizes, crops, size_px)
    assert failed == refused
    difference = np.abs(ours - reference)
    assert difference.max() <= MOST
    if difference.size > 10_000:
        assert difference.mean() <= MEAN_TOLERANCE


@pytest.mark.parametrize("size_px", [32, 224, 448])
def test_engines_agree_on_random_crops_of_real_photos(test_data: Path, size_px: int) -> None:
    files = [path.read_bytes() for path in sorted((test_data / "photos").iterdir())[:: 4 if size_px < 400 else 10]]
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    widths, heights = np.array(sizes, dtype=np.int64).T
    for epoch in range(2):
        agree(files, sizes, train_crops(Augment(), widths, heights, seed=5, epoch=epoch, slots=widths), size_px)


corner = st.floats(0, 1, allow_subnormal=False)


@given(
    seed=st.integers(0, 99),
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    size_px=st.integers(1, 40),
    corners=st.tuples(corner, corner, corner, corner),
    whole=st.booleans(),
    flip=st.booleans(),
    mode=st.sampled_from(["RGB", "L"]),
    options=st.fixed_dictionaries(
        {
            "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
            "progressive": st.booleans(),
            "quality": st.sampled_from([30, 90]),
            "restart_marker_rows": st.sampled_from([0, 1]),
        }
    ),
)
def test_engines_agree_on_any_region_of_any_jpeg(
    seed: int,
    width: int,
    height: int,
    size_px: int,
    corners: tuple[float, float, float, float],
    whole: bool,
    flip: bool,
    mode: str,
    options: dict[str, object],
) -> None:
    left, right = sorted((corners[0] * width, corners[2] * width))
    top, bottom = sorted((corners[1] * height, corners[3] * height))
    if whole:
        left, top, right, bottom = map(math.floor, (left, top, right, bottom))
    box = np.array([[left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)]])
    box[:, :2] = np.minimum(box[:, :2], box[:, 2:] - 0.5)
    file = jpeg(seed, width, height, mode, **options)
    agree([file], [(width, height)], Crops(boxes=np.maximum(box, 0.0), flips=np.array([flip])), size_px)


def test_vector_and_plain_paths_give_the_same_bytes() -> None:
    sizes = [(90 + i, 70 + 2 * i) for i in range(12)]
    files = [jpeg(i, *size) for i, size in enumerate(sizes)]
    widths, heights = np.array(sizes, dtype=np.int64).T
    crops = train_crops(Augment(), widths, heights, seed=1, epoch=0, slots=widths)
    assert not _turbo.use_vectors(False)
    try:
        plain = [decode(TurboEngine(), files, sizes, crops, size_px)[0] for size_px in (5, 31, 64)]
    finally:
        _turbo.use_vectors(True)
    vectors = [decode(TurboEngine(), files, sizes, crops, size_px)[0] for size_px in (5, 31, 64)]
    assert all(np.array_equal(a, b) for a, b in zip(plain, vectors, strict=True))


def whole_images(sizes: list[tuple[int, int]]) -> Crops:
    return Crops(boxes=np.array([[0.0, 0.0, *size] for size in sizes]), flips=np.zeros(len(sizes), dtype=np.bool_))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken TIFF and EXIF
def test_engines_take_and_refuse_the_same_odd_files(test_data: Path) -> None:
    folder = test_data / "torture"
    with open(folder / "expected.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    files = [(folder / "files" / row["file"]).read_bytes() for row in rows]
    sizes = [(int(row["width"] or 8), int(row["height"] or 8)) for row in rows]
    ours, failed = decode(TurboEngine(), files, sizes, whole_images(sizes), 48)
    reference, refused = decode(PillowEngine(), files, sizes, whole_images(sizes), 48)
    assert [row["file"] for row, a, b in zip(rows, failed, refused, strict=True) if a != b] == []
    assert np.abs(ours - reference).max() <= MOST
    assert {row["expect"] for row, failure in zip(rows, failed, strict=True) if failure is None} >= {"ok"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_shown_upright_by_both(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = jpeg(3, 40, 24, exif=exif.tobytes())
    size = (40, 24) if orientation < 5 else (24, 40)
    agree([file], [size], Crops(boxes=np.array([[2.0, 3.0, 20.0, 21.0]]), flips=np.array([True])), 16)


def test_a_file_that_ends_within_the_crop_is_refused_by_both() -> None:
    file = jpeg(1, 64, 64)
    agree([file[: len(file) // 2]], [(64, 64)], whole_images([(64, 64)]), 16)
    _, failures = decode(TurboEngine(), [file[: len(file) // 2]], [(64, 64)], whole_images([(64, 64)]), 16)
    assert failures == [Failure.DECODE]


def test_a_picture_of_another_size_than_the_index_says_is_no_crash() -> None:
    agree([jpeg(1, 64, 48)], [(200, 300)], whole_images([(200, 300)]), 16)
    agree([jpeg(1, 200, 300)], [(64, 48)], whole_images([(64, 48)]), 16)


@pytest.mark.parametrize("make", [TurboEngine, PillowEngine])
def test_slots_without_an_image_are_black_and_views_are_files(make: type[engine.Engine]) -> None:
    file = jpeg(1, 30, 30)
    data = [None, memoryview(b"xx" + file)[2:], Failure.CHECKSUM, b"no image", file]
    out = np.full((5, 8, 8, 3), 9, dtype=np.uint8)
    sizes = np.full(5, 30, dtype=np.int64)
    failures = make().decode(data, sizes, sizes, whole_images([(30, 30)] * 5), out)
    assert failures == [None, None, Failure.CHECKSUM, Failure.DECODE, None]
    assert not out[[0, 2, 3]].any()
    assert np.array_equal(out[1], out[4])
    assert out[1].any()


def test_damaged_files_never_stop_the_kernel() -> None:
    rng = np.random.default_rng(0)
    whole = [jpeg(i, 50, 40, progressive=bool(i % 2)) for i in range(8)]
    damaged = []
    for i in range(400):
        file = bytearray(whole[i % 8])
        for place in rng.integers(2, len(file), 6):
            file[place] = rng.integers(256)
        damaged.append(bytes(file[: rng.integers(2, len(file))] if i % 3 == 0 else file))
    sizes = [(50, 40)] * len(damaged)
    ours, failed = decode(TurboEngine(), damaged, sizes, whole_images(sizes), 24)
    reference, refused = decode(PillowEngine(), damaged, sizes, whole_images(sizes), 24)
    # Pillow reads on behind the last row, and refuses a few that are broken only there.
    good = np.array([failure is None for failure in refused])
    assert all(failure is None for failure, fine in zip(failed, good, strict=True) if fine)
    assert 40 < good.sum() < 360
    assert np.abs(ours - reference)[good].max() <= MOST


def test_the_kernel_refuses_arrays_of_a_wrong_size() -> None:
    sizes, boxes, flips = np.ones((2, 2), dtype=np.int64), np.ones((2, 4)), np.zeros(2, dtype=np.bool_)
    out, outcomes = np.zeros((2, 4, 4, 3), dtype=np.uint8), np.zeros(2, dtype=np.uint8)
    with pytest.raises(ValueError, match="out: 96 bytes, expected 150"):
        _turbo.decode([None, None], sizes, boxes, flips, out, outcomes, 5)
    with pytest.raises(ValueError, match="sizes: 32 bytes, expected 16"):
        _turbo.decode([None], sizes, boxes[:1], flips[:1], out[:1], outcomes[:1], 4)
    with pytest.raises(ValueError, match="size_px"):
        _turbo.decode([], sizes, boxes, flips, out, outcomes, 0)


def test_an_engine_that_is_unknown_or_not_built_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.make_engine("auto").name == "turbo"
    assert engine.make_engine("pillow").name == "pillow"
    with pytest.raises(LoaderError, match=r"'jpeg4000'.*auto, turbo, pillow"):
        engine.make_engine("jpeg4000")
    monkeypatch.setattr(engine_choice, "find_spec", {}.get)
    assert engine.make_engine("auto").name == "pillow"
    with pytest.raises(LoaderError, match="not built here"):
        engine.make_engine("turbo")
