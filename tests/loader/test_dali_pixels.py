"""Law 9 for DALI on a CPU: the same region of the same picture as the other engines show, within stated tolerances.

What it is held against is the filter itself: weights in float64 on Pillow's decoded pixels. DALI differs from it by
its rounding alone, so the other engines' distances to DALI are theirs to the filter: they round between the passes, and
their filter ends at the image's edge where DALI's goes on over repeated pixels.
"""

import io
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wv_ingest.index_shards import IndexOptions, index_shards
from wv_ingest.progress import Progress
from wv_loader import Augment, Loader, decode_pillow
from wv_loader.augment import Crops, eval_crops, train_crops
from wv_loader.dali_options import DaliOptions
from wv_loader.decode_pillow import PillowEngine
from wv_loader.engine import Engine, make_engine
from wv_loader.jpeg_header import plain_jpeg
from wv_loader.windows import windows_of

pytestmark = pytest.mark.usefixtures("dali")

ROUNDING = 0.51
"""Levels from the filter in float64, any pixel: rounding to the nearest; 0.0034 of float32 measured."""
REGION = 1
"""Levels between a region and the whole image: borders in float32 that are rounded elsewhere."""
INTERIOR, INTERIOR_MEAN = 1, 0.2
"""Levels from Pillow at full resolution, where the filter stays in the image: Pillow rounds between its passes; mean
0.16 measured."""
BORDER = 32
"""Levels from Pillow in the outermost row or column of a crop at the image's edge, where 1/8 of the filter's weight
lies outside: up to 255/8 in a row or column; 13 measured on photos, 23 on other ones."""
SCALED_MEAN = 1.6
"""Levels from Pillow and turbo where these let the JPEG's own DCT reduce crops that are 4 or more times the output, a
coarser filter; over all images: 1.37 measured at 32 px, 1.04 at 64 px."""
SCALED_MEAN_OF_ONE = 6.0
"""The same of the noisiest image; 4.2 measured."""

Pixels = NDArray[np.int64]
Encode = Callable[[NDArray[np.uint8]], bytes]


@cache
def pipeline(size_px: int, region: bool) -> Any:
    from wv_loader.decode_dali import DaliEngine, DaliPipeline

    engine = DaliEngine(None, PillowEngine(), DaliOptions(region=region))
    return DaliPipeline(engine, slots=128, size_px=size_px, threads=2, hint_px=(1, 1))


def by_dali(
    files: list[bytes], sizes: list[tuple[int, int]], crops: Crops, size_px: int, *, region: bool = True
) -> Pixels:
    widths, heights = np.array(sizes, dtype=np.int64).T
    pipe = pipeline(size_px, region)
    pipe.submit(files, windows_of(widths, heights, crops, size_px, region=region))
    shown: Pixels = pipe.collect().numpy().astype(np.int64)
    return shown


def by(engine: Engine, files: list[bytes], sizes: list[tuple[int, int]], crops: Crops, size_px: int) -> Pixels:
    out = np.empty((len(files), size_px, size_px, 3), dtype=np.uint8)
    widths, heights = np.array(sizes, dtype=np.int64).T
    assert not any(engine.decode(files, widths, heights, crops, out))
    return out.astype(np.int64)


def weights(low: float, high: float, size_px: int, length: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(S, length) of the antialiased linear filter over repeated edges; (S,) where it reaches over an edge."""
    scale = (high - low) / size_px
    radius = max(scale, 1.0)
    centres = low + (np.arange(size_px) + 0.5) * scale
    pad = int(radius) + 2
    taps = np.arange(-pad, length + pad) + 0.5
    drawn = np.maximum(0.0, 1.0 - np.abs(taps - centres[:, None]) / radius)
    outside = drawn[:, :pad].sum(1), drawn[:, -pad:].sum(1)
    inside = drawn[:, pad:-pad].copy()
    inside[:, 0] += outside[0]
    inside[:, -1] += outside[1]
    return inside / inside.sum(1, keepdims=True), np.maximum(*outside) > 1e-9


def exact(files: list[bytes], crops: Crops, size_px: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(n, S, S, 3) what the filter gives, not rounded; (n, S, S) where it reaches over an edge."""
    shown, crosses = [], []
    for file, (left, top, right, bottom), flip in zip(files, crops.boxes.tolist(), crops.flips.tolist(), strict=True):
        with Image.open(io.BytesIO(file)) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
        rows, over_y = weights(top, bottom, size_px, pixels.shape[0])
        columns, over_x = weights(left, right, size_px, pixels.shape[1])
        narrow = np.einsum("bw,hwc->hbc", columns, pixels, optimize=True)
        one, over = np.einsum("ah,hbc->abc", rows, narrow, optimize=True), over_y[:, None] | over_x
        shown.append(one[:, ::-1] if flip else one)
        crosses.append(over[:, ::-1] if flip else over)
    return np.stack(shown), np.stack(crosses)


@pytest.fixture(scope="module")
def photos(test_data: Path) -> list[bytes]:
    files = [path.read_bytes() for path in sorted((test_data / "photos").iterdir())[::8]]
    return [file for file in files if plain_jpeg(file) != (0, 0)]


def crops_of(kind: str, sizes: list[tuple[int, int]], size_px: int, epoch: int = 0) -> Crops:
    widths, heights = np.array(sizes, dtype=np.int64).T
    if kind == "eval":
        return eval_crops(Augment(), widths, heights, size_px)
    return train_crops(Augment(), widths, heights, seed=5, epoch=epoch, slots=np.arange(len(sizes)))


@pytest.mark.parametrize("kind", ["train", "eval"])
@pytest.mark.parametrize("size_px", [32, 64, 224])
def test_photos_are_what_the_filter_makes_of_them_and_near_the_other_engines(
    photos: list[bytes], size_px: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(photos) > 40
    sizes = [plain_jpeg(file) for file in photos]
    crops = crops_of(kind, sizes, size_px)
    ours = by_dali(photos, sizes, crops, size_px)
    filtered, crosses = exact(photos, crops, size_px)
    assert np.abs(ours - filtered).max() <= ROUNDING
    assert np.abs(ours - by_dali(photos, sizes, crops, size_px, region=False)).max() <= REGION
    mirrored = by_dali(photos, sizes, Crops(boxes=crops.boxes, flips=~crops.flips), size_px)
    assert np.abs(ours - mirrored[:, :, ::-1]).max() <= REGION

    for engine in (PillowEngine(), make_engine("auto")):
        distance = np.abs(ours - by(engine, photos, sizes, crops, size_px))  # type: ignore[arg-type]
        assert distance.mean() <= SCALED_MEAN
        assert distance.mean((1, 2, 3)).max() <= SCALED_MEAN_OF_ONE
    monkeypatch.setattr(decode_pillow, "_DRAFT_GAP", 10**6)  # no scaling by the DCT
    distance = np.abs(ours - by(PillowEngine(), photos, sizes, crops, size_px))
    assert distance[~crosses].max() <= INTERIOR
    assert distance[~crosses].mean() <= INTERIOR_MEAN
    if kind == "train":
        assert distance[crosses].max() <= BORDER
        edges = np.zeros((size_px, size_px), dtype=np.bool_)
        edges[[0, -1]] = edges[:, [0, -1]] = True
        assert not crosses[:, ~edges].any()  # one row or column of the output, no more


def drawn(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Edges and noise, so that a wrong row or column shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST), dtype=int)
    return np.clip(smooth + rng.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


def jpeg(pixels: NDArray[np.uint8], mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def rare_jpeg(subsampling: str) -> Encode:
    """Colours subsampled as Pillow can't."""

    def encode(pixels: NDArray[np.uint8]) -> bytes:
        from nvidia import nvimgcodec

        only_cpu = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
        encoder = nvimgcodec.Encoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=only_cpu)
        how = getattr(nvimgcodec.ChromaSubsampling, subsampling)
        params = nvimgcodec.EncodeParams(quality_value=90, chroma_subsampling=how)
        return bytes(encoder.encode(pixels, codec="jpeg", params=params))

    return encode


KINDS: dict[str, Encode] = {
    "4:4:4": lambda pixels: jpeg(pixels, subsampling="4:4:4", quality=95),
    "4:2:2": lambda pixels: jpeg(pixels, subsampling="4:2:2"),
    "4:2:0": lambda pixels: jpeg(pixels, subsampling="4:2:0"),
    "4:4:0": rare_jpeg("CSS_440"),
    "4:1:1": rare_jpeg("CSS_411"),
    "grey": lambda pixels: jpeg(pixels, "L"),
    "progressive": lambda pixels: jpeg(pixels, progressive=True, subsampling="4:2:0"),
    "restart markers": lambda pixels: jpeg(pixels, restart_marker_rows=1),
    "quality 1": lambda pixels: jpeg(pixels, quality=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_jpeg_decodes_to_pillows_pixels(kind: str) -> None:
    """Whole images to the bit, as no filter is between; odd sides, so that blocks and colours are cut."""
    side = 61
    files = [KINDS[kind](drawn(seed, side, side)) for seed in range(4)]
    sizes = [plain_jpeg(file) for file in files]
    assert sizes == [(side, side)] * 4
    whole = Crops(boxes=np.array([[0.0, 0.0, side, side]] * 4), flips=np.array([False, True, False, True]))
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=int) for file in files])
    expected[whole.flips] = expected[whole.flips][:, :, ::-1]
    assert np.array_equal(by_dali(files, sizes, whole, side, region=False), expected)
    assert np.array_equal(by_dali(files, sizes, whole, side), expected)
    inner = Crops(boxes=np.array([[7.0, 13.0, 40.0, 55.0], [0.0, 3.5, 17.0, 61.0]] * 2), flips=whole.flips)
    assert np.abs(by_dali(files, sizes, inner, 16) - exact(files, inner, 16)[0]).max() <= ROUNDING


corner = st.floats(0, 1, allow_subnormal=False)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 99),
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    size_px=st.sampled_from([1, 2, 7, 40]),
    corners=st.tuples(corner, corner, corner, corner),
    edges=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    flip=st.booleans(),
)
def test_any_region_of_any_jpeg_is_what_the_filter_makes_of_it(
    kind: str,
    seed: int,
    width: int,
    height: int,
    size_px: int,
    corners: tuple[float, float, float, float],
    edges: tuple[bool, bool, bool, bool],
    flip: bool,
) -> None:
    """Tiny images, crops at every edge, one pixel of output, more pixels out than in."""
    left, right = sorted((corners[0] * width, corners[2] * width))
    top, bottom = sorted((corners[1] * height, corners[3] * height))
    box = np.where(edges, (0.0, 0.0, width, height), (left, top, right, bottom))
    assume((box[2:] - box[:2]).min() >= 0.5)
    file = KINDS[kind](drawn(seed, width, height))
    crops = Crops(boxes=box[None], flips=np.array([flip]))
    expected, _ = exact([file], crops, size_px)
    for region in (True, False):
        ours = by_dali([file], [(width, height)], crops, size_px, region=region)
        assert np.abs(ours - expected).max() <= ROUNDING


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (2, 3), (3000, 8)])
def test_images_of_a_pixel_and_of_a_row_are_shown(size: tuple[int, int]) -> None:
    file = jpeg(drawn(1, *size), quality=95)
    whole = Crops(boxes=np.array([[0.0, 0.0, *size]]), flips=np.array([True]))
    for size_px in (1, 40):
        ours = by_dali([file], [size], whole, size_px)
        assert np.abs(ours - exact([file], whole, size_px)[0]).max() <= ROUNDING
        assert ours.any()


@settings(max_examples=300)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    size_px=st.integers(1, 500),
    corners=st.tuples(corner, corner, corner, corner),
    flip=st.booleans(),
    region=st.booleans(),
)
def test_windows_hold_the_box_and_what_the_filter_reaches(
    width: int, height: int, size_px: int, corners: tuple[float, float, float, float], flip: bool, region: bool
) -> None:
    low = np.array([corners[1] * height, corners[0] * width])  # y, x
    high = np.maximum(np.array([corners[3] * height, corners[2] * width]), low + 0.01)
    size = np.array([height, width])
    high = np.minimum(high, size)
    assume((low < high).all())
    box = np.array([[low[1], low[0], high[1], high[0]]])
    flips = np.array([flip])
    found = windows_of(np.array([width]), np.array([height]), Crops(boxes=box, flips=flips), size_px, region=region)
    for name, dtype in (("start", np.int32), ("shape", np.int32), ("roi_start", np.float32), ("roi_end", np.float32)):
        array = getattr(found, name)
        assert array.dtype == dtype
        assert array.shape == (1, 2)
        assert array.flags.c_contiguous
    start, end = found.start[0], found.start[0] + found.shape[0]
    assert (start >= 0).all()
    assert (start < end).all()
    assert (end <= size).all()
    if not region:
        assert (start == 0).all()
        assert (end == size).all()
    # Every pixel of the image whose centre is within the filter's radius of an output pixel's centre.
    scale = (high - low) / size_px
    radius = np.maximum(scale, 1.0)
    first = np.floor(low + scale / 2 - radius + 0.5)
    last = np.ceil(high - scale / 2 + radius - 0.5)
    assert (start <= np.maximum(first, 0)).all()
    assert (end >= np.minimum(last, size)).all()
    # No more than a row and a column too many on each side.
    if region:
        assert (start >= np.floor(low) - np.ceil(radius) - 1).all()
        assert (end <= np.ceil(high) + np.ceil(radius) + 1).all()
    roi_start, roi_end = found.roi_start[0].astype(float), found.roi_end[0].astype(float)
    if flip:
        roi_start[1], roi_end[1] = roi_end[1], roi_start[1]
    assert np.allclose(roi_start, low - start, atol=1e-3)
    assert np.allclose(roi_end, high - start, atol=1e-3)
    assert np.array_equal(box, [[low[1], low[0], high[1], high[0]]])  # the crop is the loader's


@pytest.fixture(scope="module")
def mixed(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, then every odd file, indexed as they are; a sample's number is in its name."""
    folder = tmp_path_factory.mktemp("mixed")
    files = sorted((test_data / "photos").iterdir())[4::16] + sorted((test_data / "torture" / "files").iterdir())
    rare = [(f"rare{i}.jpg", KINDS[kind](drawn(i, 90, 70))) for i, kind in enumerate(sorted(KINDS))]
    with tarfile.open(folder / "mixed.tar", "w") as tar:
        for number, (name, data) in enumerate([*((f.name, f.read_bytes()) for f in files), *rare]):
            suffix = Path(name).suffix.lower() or ".jpg"
            for member, content in ((f"{number:04d}{suffix}", data), (f"{number:04d}.cls", b"%d" % (number % 3))):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with Progress(io.StringIO()) as progress:
        index_shards(folder, IndexOptions(), progress)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken TIFF and EXIF
@pytest.mark.parametrize("train", [True, False])
def test_odd_files_come_out_as_from_the_other_engines(mixed: Path, train: bool) -> None:
    """In batches with plain ones beside them; two epochs, the second without files that DALI failed on."""
    size_px = 64
    options = {"batch_size": 16, "size_px": size_px, "seed": 3, "train": train, "bad_budget": None, "threads": 2}

    def epochs(engine: str) -> list[list[Any]]:
        with Loader(mixed, engine=engine, **options) as loader:  # type: ignore[arg-type]
            return [list(loader) for _ in range(2)]

    ours, cpu, pillow = epochs("dali-cpu"), epochs("auto"), epochs("pillow")
    with Loader(mixed, **options) as loader:  # type: ignore[arg-type]
        sizes = [(int(row["width"]), int(row["height"])) for row in loader.dataset.index]
        files = [bytes(loader.dataset.read(i)) for i in range(loader.num_samples)]
    plain = np.array([plain_jpeg(file) == size for file, size in zip(files, sizes, strict=True)])
    shown = set()
    for epoch in range(2):
        for batch, expected, reference in zip(ours[epoch], cpu[epoch], pillow[epoch], strict=True):
            for name in ("ordinals", "labels", "valid"):
                assert torch.equal(getattr(batch, name), getattr(expected, name))
                assert torch.equal(getattr(batch, name), getattr(reference, name))
            is_plain = plain[batch.ordinals.numpy()] & (batch.ordinals >= 0).numpy()
            # The same code decodes these, in whatever thread.
            assert torch.equal(batch.images[~is_plain], expected.images[~is_plain])
            for other in (expected, reference):
                distance = (batch.images.int() - other.images.int()).abs().float()
                assert distance.mean() <= SCALED_MEAN
                assert distance.mean((1, 2, 3)).max() <= SCALED_MEAN_OF_ONE
            shown |= set(batch.ordinals[batch.valid].tolist())
    assert sum(not plain[i] for i in shown) > 25
    assert sum(bool(plain[i]) for i in shown) > 40
