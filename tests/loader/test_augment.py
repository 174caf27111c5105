"""Crops: evaluation as torchvision defines it, training after RandomResizedCrop, both as boxes."""

import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from wv_loader import Augment, Failure, Loader, decode_pictures
from wv_loader.augment import eval_crops, train_crops
from wv_loader.decode_pillow import PillowEngine

sides = st.integers(1, 700)


def arrays(width: int, height: int, n: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, width, dtype=np.int64), np.full(n, height, dtype=np.int64)


@given(sides, sides, st.integers(0, 2**62), st.integers(0, 100))
def test_training_boxes_stay_within_the_image_and_have_whole_pixels(w: int, h: int, seed: int, epoch: int) -> None:
    crops = train_crops(Augment(), *arrays(w, h, 20), seed=seed, epoch=epoch, slots=np.arange(20))
    left, top, right, bottom = crops.boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= w).all()
    assert (bottom <= h).all()
    assert (right > left).all()
    assert (bottom > top).all()
    assert np.array_equal(crops.boxes, np.rint(crops.boxes))


def test_training_crops_have_the_distribution_of_random_resized_crop() -> None:
    augment = Augment(crop_scale=(0.2, 0.9))
    crops = train_crops(augment, *arrays(400, 300, 20_000), seed=1, epoch=2, slots=np.arange(20_000))
    left, top, _, bottom = crops.boxes.T
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    reference = np.array([_torchvision_box(image) for _ in range(4_000)])
    for ours, theirs in ((top, reference[:, 0]), (left, reference[:, 1]), (bottom - top, reference[:, 2])):
        assert np.allclose(np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(theirs, [0.1, 0.5, 0.9]), atol=10)
    assert abs(crops.flips.mean() - 0.5) < 0.02


def _torchvision_box(image: torch.Tensor) -> list[int]:
    made = v2.RandomResizedCrop(8, scale=(0.2, 0.9)).make_params([image])
    return [made["top"], made["left"], made["height"], made["width"]]


def test_crops_depend_on_the_slot_of_the_epoch_and_on_nothing_else() -> None:
    slots = np.arange(50)
    whole = train_crops(Augment(), *arrays(90, 70, 50), seed=1, epoch=0, slots=slots)
    part = train_crops(Augment(), *arrays(90, 70, 20), seed=1, epoch=0, slots=slots[30:])
    assert np.array_equal(whole.boxes[30:], part.boxes)
    assert np.array_equal(whole.flips[30:], part.flips)
    other = train_crops(Augment(), *arrays(90, 70, 50), seed=1, epoch=1, slots=slots)
    assert not np.array_equal(whole.boxes, other.boxes)


# The last are tiny, made much larger, or one pixel wide.
@pytest.mark.parametrize(
    ("width", "height"),
    [(60, 40), (40, 60), (64, 64), (91, 37), (20, 16), (33, 200), (501, 333), (1, 1), (3, 2), (1, 50), (70, 2)],
)
@pytest.mark.parametrize(("size", "fraction"), [(28, 0.875), (28, 1.0), (28, 0.6), (29, 0.77), (31, 0.95)])
def test_evaluation_is_torchvisions_resize_and_centre_crop(width: int, height: int, size: int, fraction: float) -> None:
    rng = np.random.default_rng(width)
    pixels = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    augment = Augment(eval_crop_fraction=fraction)
    out = np.empty((1, size, size, 3), dtype=np.uint8)
    crops = eval_crops(augment, *arrays(width, height), size)
    assert PillowEngine().decode([buffer.getvalue()], *arrays(width, height), crops, out) == [None]
    reference = v2.CenterCrop(size)(v2.Resize(round(size / fraction))(pixels))
    difference = np.abs(out[0].astype(int) - np.asarray(reference).astype(int))
    assert difference.max() <= 2, f"mean {difference.mean():.2f}"


@pytest.mark.parametrize(
    ("size", "fraction", "largest", "mean"),
    # Much smaller pictures are decoded at half the resolution, by libjpeg's own filter.
    [(224, 0.875, 2, 0.05), (225, 0.9, 2, 0.05), (640, 0.875, 2, 0.05), (64, 0.77, 60, 2.0)],
)
def test_evaluation_of_photos_is_torchvisions(
    test_data: Path, size: int, fraction: float, largest: int, mean: float
) -> None:
    differences = []
    for path in sorted((test_data / "photos").glob("*.JPEG"))[::40]:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        crops = eval_crops(Augment(eval_crop_fraction=fraction), *arrays(*rgb.size), size)
        out = np.empty((1, size, size, 3), dtype=np.uint8)
        assert PillowEngine().decode([path.read_bytes()], *arrays(*rgb.size), crops, out) == [None]
        reference = v2.CenterCrop(size)(v2.Resize(round(size / fraction))(rgb))
        differences.append(np.abs(out[0].astype(int) - np.asarray(reference).astype(int)))
    assert np.concatenate(differences).max() <= largest
    assert np.concatenate(differences).mean() <= mean


unit = st.floats(0.0, 1.0)


@given(sides, sides, st.integers(1, 300), st.floats(0.3, 1.0), st.tuples(unit, unit))
def test_an_evaluation_crop_at_any_position_is_the_centre_crop_moved_within_the_image(
    w: int, h: int, size: int, fraction: float, position: tuple[float, float]
) -> None:
    augment = Augment(eval_crop_fraction=fraction)
    centre = eval_crops(augment, *arrays(w, h), size).boxes[0]
    moved = eval_crops(augment, *arrays(w, h), size, position).boxes[0]
    assert np.allclose(moved[2:] - moved[:2], centre[2:] - centre[:2], rtol=1e-9)
    assert (moved[:2] >= 0).all()
    assert (moved[2:] <= np.array([w, h]) * (1 + 1e-12)).all()
    assert eval_crops(augment, *arrays(w, h), size, (0.0, 0.0)).boxes[0, :2].tolist() == [0.0, 0.0]
    assert np.allclose(eval_crops(augment, *arrays(w, h), size, (1.0, 1.0)).boxes[0, 2:], [w, h], rtol=1e-12)


@given(sides, sides, st.integers(1, 300), st.floats(0.3, 1.0))
def test_the_default_position_is_the_centre_crop_bit_for_bit(w: int, h: int, size: int, fraction: float) -> None:
    """Half of the room, rounded to even, as evaluation has always cut it."""
    resized, shorter = round(size / fraction), min(w, h)
    new_w = resized if w == shorter else resized * w // shorter
    new_h = resized if h == shorter else resized * h // shorter
    left, top = round((new_w - size) / 2), round((new_h - size) / 2)
    x_scale, y_scale = w / new_w, h / new_h
    expected = [left * x_scale, top * y_scale, (left + size) * x_scale, (top + size) * y_scale]
    assert eval_crops(Augment(eval_crop_fraction=fraction), *arrays(w, h), size).boxes[0].tolist() == expected


@pytest.mark.parametrize(("width", "height"), [(60, 40), (91, 37), (33, 200)])
def test_corner_crops_are_torchvisions(width: int, height: int) -> None:
    rng = np.random.default_rng(width)
    pixels = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    reference = v2.FiveCrop(28)(v2.Resize(32)(pixels))
    positions = [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)]
    for position, expected in zip(positions, reference, strict=True):
        out, failures = decode_pictures([buffer.getvalue()], 28, Augment(), position)
        assert failures == [None]
        assert np.abs(out[0].astype(int) - np.asarray(expected).astype(int)).max() <= 2, position


@pytest.mark.parametrize("position", [(0.5, 0.5), (0.0, 1.0), (0.8, 0.1)])
def test_pictures_without_a_data_set_are_shown_as_a_loader_shows_its_samples(
    small_dataset: Path, position: tuple[float, float]
) -> None:
    options: dict[str, Any] = {"batch_size": 40, "size_px": 13, "train": False, "engine": "pillow", "threads": 1}
    augment = Augment(eval_crop_fraction=0.7)
    with Loader(small_dataset, **options, augment=augment, crop_position=position) as loader:
        batch = next(iter(loader))
        files = [loader.dataset.read(int(ordinal)) for ordinal in batch.ordinals]
    out, failures = decode_pictures(files, 13, augment, position)
    assert failures == [None] * 40
    assert np.array_equal(out, batch.images.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("engine", ["turbo", "dali-cpu"])
def test_every_engine_shows_the_box_of_the_position(
    small_dataset: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == "dali-cpu":
        request.getfixturevalue("dali")
    elif find_spec("wv_loader._turbo") is None:
        pytest.skip("the turbo engine's kernel is not built here (see setup.py)")
    augment = Augment(eval_crop_fraction=0.6)

    def first(engine: str, position: tuple[float, float]) -> np.ndarray:
        options: dict[str, Any] = {"batch_size": 64, "size_px": 12, "train": False, "threads": 1, "augment": augment}
        with Loader(small_dataset, **options, engine=engine, crop_position=position) as loader:
            return next(iter(loader)).images.numpy().astype(int)

    shown = first("pillow", (1.0, 0.3))
    assert np.abs(first("pillow", (0.5, 0.5)) - shown).mean() > 5.0
    assert np.abs(first(engine, (1.0, 0.3)) - shown).mean() < 1.0


def test_pictures_that_are_none_are_told_from_those_that_are(draw_jpeg: Callable[..., bytes]) -> None:
    file = draw_jpeg(1)
    out, failures = decode_pictures([file, b"no picture", file[: len(file) // 2], b"", file], 8)
    assert failures == [None, Failure.DECODE, Failure.DECODE, Failure.DECODE, None]
    assert np.array_equal(out[0], out[4])
    assert not out[1:4].any()
    assert decode_pictures([], 8)[0].shape == (0, 8, 8, 3)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_exif_turns_is_shown_upright(orientation: int) -> None:
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pixels.transpose(Image.Transpose.ROTATE_180 if orientation == 3 else Image.Transpose.ROTATE_90)
    files = []
    for picture, options in ((pixels, {}), (stored, {"exif": exif.tobytes()})):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", **options)
        files.append(buffer.getvalue())
    out, _ = decode_pictures(files, 16, crop_position=(0.0, 0.0))
    assert np.abs(out[0].astype(int) - out[1].astype(int)).max() <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.5)},
        {"crop_ratio": (2, 1)},
        {"flip": 2},
        {"eval_crop_fraction": 0},
    ],
)
def test_wrong_ranges_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)  # type: ignore[arg-type]


def test_large_jpegs_are_decoded_at_a_fraction_with_the_same_picture() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (1200, 900), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    out = np.empty((1, 64, 64, 3), dtype=np.uint8)
    crops = eval_crops(Augment(), *arrays(1200, 900), 64)
    PillowEngine().decode([buffer.getvalue()], *arrays(1200, 900), crops, out)
    with Image.open(buffer) as decoded:
        exact = decoded.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR, box=tuple(crops.boxes[0]))
    difference = np.abs(out[0].astype(int) - np.asarray(exact).astype(int))
    assert difference.mean() < 1.0
    assert np.quantile(difference, 0.999) <= 6


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA"])
def test_every_colour_mode_comes_out_as_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (250, 250, 250)).convert("L" if mode == "LA" else "RGB").convert(mode).save(
        buffer, "JPEG" if mode in ("L", "CMYK") else "PNG"
    )
    out = np.empty((1, 8, 8, 3), dtype=np.uint8)
    crops = eval_crops(Augment(), *arrays(20, 20), 8)
    assert PillowEngine().decode([buffer.getvalue()], *arrays(20, 20), crops, out) == [None]
    assert (out > 240).all()
