"""What only a GPU shows of `dali-gpu`: nvJPEG's pixels, where batches lie, that no stream reads too early or late."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from wv_ingest.index_shards import IndexOptions, index_shards
from wv_ingest.progress import Progress
from wv_loader import Batch, DaliOptions, Loader

pytestmark = pytest.mark.usefixtures("cuda", "dali")

Make = Callable[..., Loader]
KERNELS = DaliOptions(hw_decoder_load=0)
"""Without the JPEG engine, whose rounding may be another: which images it takes is nvImageCodec's affair."""
SIZE_PX = 224
NVJPEG_MEAN = 1.0
"""Levels from the same graph on a CPU, over a batch: what DALI's own tests allow its decoder with smooth chroma."""
NVJPEG_FAR, NVJPEG_FAR_FRACTION = 10, 0.01
"""Levels that few values are further off: chroma of a JPEG engine may be smoothed otherwise. Crops one pixel off,
measured on a CPU: 6 levels on average, 16% of the values."""
LONG = 200_000_000
"""Clock ticks that a stream sleeps: 0.1 s, many times what a batch of these takes."""


def index_of(folder: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, (suffix, data) in enumerate(files):
            for member, content in ((f"{number:04d}{suffix}", data), (f"{number:04d}.cls", b"%d" % (number % 5))):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with Progress(io.StringIO()) as progress:
        index_shards(folder, IndexOptions(), progress)
    return folder


@pytest.fixture(scope="module")
def photos(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = [(".jpg", path.read_bytes()) for path in sorted((test_data / "photos").iterdir())[::2]]
    return index_of(tmp_path_factory.mktemp("photos"), files)


@pytest.fixture(scope="module")
def odd(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every odd file between photos."""
    photos = sorted((test_data / "photos").iterdir())[::4]
    torture = sorted((test_data / "torture" / "files").iterdir())
    files = [(path.suffix.lower() or ".jpg", path.read_bytes()) for both in zip(torture, photos) for path in both]  # noqa: B905
    return index_of(tmp_path_factory.mktemp("odd"), files)


@pytest.fixture
def make(cuda: torch.device) -> Make:
    def make_loader(directory: Path, engine: str = "dali-gpu", **options: object) -> Loader:
        device = {"device": cuda} if engine == "dali-gpu" else {}
        given = {"batch_size": 32, "size_px": SIZE_PX, "seed": 3, "threads": 2, "bad_budget": None, "dali": KERNELS}
        given |= {**device, **options}
        return Loader(directory, engine=engine, **given)  # type: ignore[arg-type]

    return make_loader


def on_cpu(loader: Loader) -> list[Batch]:
    return [batch.to("cpu") for batch in loader]


def same_but_pixels(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("labels", "ordinals", "valid"))
    return tensors and (a.index, a.seed, a.masked) == (b.index, b.seed, b.masked)


def assert_near(ours: torch.Tensor, reference: torch.Tensor) -> None:
    distance = (ours.int() - reference.int()).abs()
    assert distance.float().mean() <= NVJPEG_MEAN
    assert (distance > NVJPEG_FAR).float().mean() <= NVJPEG_FAR_FRACTION


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        same_but_pixels(x, y) and torch.equal(x.images, y.images) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("train", [True, False])
def test_pixels_are_the_other_engines_but_for_nvjpegs_rounding(
    make: Make, photos: Path, train: bool, hw_decoder_load: float
) -> None:
    """At 224 px neither Pillow nor turbo lets the JPEG's own DCT reduce these photos."""
    ours = make(photos, train=train, dali=DaliOptions(hw_decoder_load=hw_decoder_load))
    assert ours.engine.name == "dali-gpu"
    references = [make(photos, engine, train=train) for engine in ("dali-cpu", "pillow")]
    for batch, *expected in zip(on_cpu(ours), *references, strict=True):
        for reference in expected:
            assert same_but_pixels(batch, reference)
            assert_near(batch.images, reference.images)
        assert not batch.images[~batch.valid].any()


def test_auto_takes_the_gpu_and_batches_lie_there(make: Make, photos: Path, cuda: torch.device) -> None:
    loader = Loader(photos, batch_size=32, size_px=SIZE_PX, device=cuda)
    assert loader.engine.name == "dali-gpu"
    batch = next(iter(loader))
    for name in ("images", "labels", "ordinals", "valid"):
        assert getattr(batch, name).device == cuda
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (32, 3, SIZE_PX, SIZE_PX)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert next(iter(make(photos, device=None))).images.device == cuda  # the current one


def test_the_same_bytes_every_time_whatever_is_ahead(make: Make, photos: Path) -> None:
    expected = on_cpu(make(photos))
    shallow, deep = replace(KERNELS, prefetch=1), replace(KERNELS, prefetch=6)
    for options in ({"dali": shallow}, {"dali": deep, "prefetch": 8}, {"threads": 4}):
        assert same(on_cpu(make(photos, **options)), expected)


@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("transformed", [False, True])
def test_a_stream_that_lags_behind_still_reads_its_own_batch(
    make: Make, photos: Path, cuda: torch.device, side: bool, transformed: bool
) -> None:
    """Each batch is read behind a long sleep and dropped at once: its memory must not be another batch's by then."""
    expected = [batch.images for batch in on_cpu(make(photos))]

    def mirrored(batch: Batch) -> Batch:
        return replace(batch, images=batch.images.flip(3))

    stream = torch.cuda.Stream(cuda) if side else None  # type: ignore[no-untyped-call]
    read = torch.empty((len(expected), *expected[0].shape), dtype=torch.uint8, device=cuda)
    torch.cuda.synchronize(cuda)
    with torch.cuda.stream(stream):  # of None does nothing
        for i, batch in enumerate(make(photos, transform=mirrored if transformed else None)):
            torch.cuda._sleep(LONG)
            read[i].copy_(batch.images)
            del batch
    torch.cuda.synchronize(cuda)
    shown = read.flip(4) if transformed else read
    for i, images in enumerate(expected):
        assert torch.equal(shown[i].cpu(), images), i


def test_batches_that_are_kept_stay_as_they_were(make: Make, photos: Path) -> None:
    loader = make(photos)
    kept = [(batch, batch.images.cpu()) for _ in range(3) for batch in loader]
    loader.close()
    assert all(torch.equal(batch.images.cpu(), images) for batch, images in kept)


def test_the_loop_does_not_wait_for_the_gpu(make: Make, photos: Path, cuda: torch.device) -> None:
    """Batches that are ready are handed out while the GPU is busy with the ones before."""
    loader = make(photos, prefetch=3)
    for _ in loader:  # memory that is allocated would make the host wait
        pass
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    torch.cuda.synchronize(cuda)
    torch.cuda._sleep(20 * LONG)
    asleep = torch.cuda.Event()  # type: ignore[no-untyped-call]
    asleep.record()  # type: ignore[no-untyped-call]
    second = next(batches), next(batches)
    assert not asleep.query()  # type: ignore[no-untyped-call]
    assert second[1].index == 4
    torch.cuda.synchronize(cuda)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_step_synchronises(
    make: Make, draw_dataset: Callable[..., Path], tmp_path: Path, cuda: torch.device
) -> None:
    """torch raises where something in the process makes the host wait, in the loader's threads too."""
    drawn = draw_dataset(tmp_path / "drawn", [300])  # all are plain JPEGs
    weights = torch.randn(3 * 32 * 32, 8, device=cuda)
    total = torch.zeros((), device=cuda)
    try:
        for i, batch in enumerate(make(drawn, size_px=32, batch_size=20)):
            total += (batch.images.flatten(1).float() @ weights).mean() * batch.labels.float().mean()
            if i == 2:
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(total)


def test_two_loaders_side_by_side_are_each_as_alone(make: Make, photos: Path) -> None:
    first, second = on_cpu(make(photos)), on_cpu(make(photos, size_px=64, train=False))
    together = list(zip(make(photos), make(photos, size_px=64, train=False), strict=True))
    assert same([a.to("cpu") for a, _ in together], first)
    assert same([b.to("cpu") for _, b in together], second)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken TIFF and EXIF
@pytest.mark.parametrize("train", [True, False])
def test_odd_files_are_masked_or_shown_as_on_a_cpu(make: Make, odd: Path, train: bool) -> None:
    """Two epochs: the second without what DALI failed on."""
    ours, other = make(odd, train=train), make(odd, "auto", train=train)
    for _ in range(2):
        for batch, reference in zip(on_cpu(ours), other, strict=True):
            assert same_but_pixels(batch, reference)
            assert not batch.images[~batch.valid].any()
            distance = (batch.images.int() - reference.images.int()).abs().float().mean((1, 2, 3))
            assert distance.median() <= NVJPEG_MEAN
            assert distance.max() <= 3  # of one image, which may be of quality 1; 0.23 on a CPU


def test_a_state_goes_on_with_another_engine(make: Make, photos: Path) -> None:
    for first, second in (("dali-gpu", "auto"), ("auto", "dali-gpu")):
        expected = on_cpu(make(photos, second))
        stopped, follower = make(photos, first), make(photos, second)
        for _, _batch in zip(range(3), stopped, strict=False):
            pass
        follower.load_state_dict(stopped.state_dict())
        assert same(on_cpu(follower), expected[3:])


def test_a_loop_that_is_left_gives_its_memory_back(make: Make, photos: Path, cuda: torch.device) -> None:
    """Torch's part: DALI keeps a pool of its own."""
    loader = make(photos)
    held = []
    for _ in range(4):
        next(iter(loader))
        loader.set_epoch(0)
        torch.cuda.synchronize(cuda)
        held.append(torch.cuda.memory_allocated(cuda))
    assert held[-1] <= held[1]


def test_an_image_in_a_batch_of_a_transform_is_made_on_its_stream(make: Make, photos: Path, cuda: torch.device) -> None:
    """What a transform makes is there when the loop reads it, though nobody synchronises."""

    def brighter(batch: Batch) -> torch.Tensor:
        torch.cuda._sleep(LONG // 10)
        return batch.images.float().add_(1.0)

    expected = [batch.images.float() + 1 for batch in on_cpu(make(photos))]
    for made, images in zip(make(photos, transform=brighter), expected, strict=True):
        assert made.device == cuda
        assert torch.equal(made.clone().cpu(), images)


def test_grey_png_and_turned_pictures_join_the_batch(make: Make, tmp_path: Path) -> None:
    """Alone in it too, where DALI has nothing to decode."""
    files = []
    for i in range(8):
        file = io.BytesIO()
        picture = Image.linear_gradient("L").resize((80, 60)).convert("RGB" if i % 2 else "L")
        exif = Image.Exif()
        exif[0x0112] = 1 + i
        if i < 4:
            picture.save(file, "PNG")
        else:
            picture.save(file, "JPEG", exif=exif.tobytes())
        files.append((".png" if i < 4 else ".jpg", file.getvalue()))
    folder = index_of(tmp_path, files)
    ours, other = (
        on_cpu(make(folder, batch_size=4, train=False)),
        list(make(folder, "auto", batch_size=4, train=False)),
    )
    assert same(ours, other)
