"""Effects: operation by operation as torchvision has them, drawn from the plan's randomness, the same everywhere."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from wv_loader import Augment, Batch, Loader
from wv_loader.augment import MAGNITUDE_MAX, Effects, Jitter, Operation, train_effects
from wv_loader.effects import JITTER, apply_effects, operate

EVERYTHING = Augment(
    brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, randaugment_operations=2, randaugment_magnitude=15, erase=0.5
)
BLACK_AND_NEAREST = {"interpolation": v2.InterpolationMode.NEAREST, "fill": None}
TORCHVISION = v2.RandAugment()
NAMES = list(TORCHVISION._AUGMENTATION_SPACE)


@pytest.fixture(scope="module")
def photos(test_data: Path) -> list[Image.Image]:
    """Two photographs, a grey picture, one colour, and noise; the sides are odd and even."""
    made = []
    for path in sorted((test_data / "photos").glob("*.JPEG"))[40:42]:
        with Image.open(path) as image:
            made.append(image.convert("RGB").resize((97, 97)))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return [
        *made,
        made[0].convert("L").convert("RGB"),
        Image.new("RGB", (32, 32), (9, 200, 77)),
        Image.fromarray(noise),
    ]


def difference(ours: Image.Image, theirs: Image.Image | torch.Tensor) -> np.ndarray:
    other = theirs.permute(1, 2, 0).numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    return np.abs(np.asarray(ours).astype(int) - other.astype(int))


def torchvisions(step: Jitter, image: Image.Image | torch.Tensor, factor: float) -> Image.Image | torch.Tensor:
    done = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)[step](image, factor)
    assert isinstance(done, (Image.Image, torch.Tensor))
    return done


@pytest.mark.parametrize("step", list(Jitter))
def test_colour_jitter_is_torchvisions(step: Jitter, photos: list[Image.Image]) -> None:
    """On Pillow images to the bit, saturation within a level; on tensors torchvision rounds otherwise, most in hue."""
    factors = (-0.5, -0.13, 0.0, 0.07, 0.5) if step is Jitter.HUE else (0.0, 0.31, 0.6, 1.0, 1.4, 1.9)
    for image in photos:
        for factor in factors:
            ours = JITTER[step](image, factor)
            same = difference(ours, torchvisions(step, image, factor))
            assert same.max() <= (1 if step is Jitter.SATURATION else 0), factor
            other = difference(ours, torchvisions(step, F.pil_to_tensor(image), factor))
            assert other.max() <= (16 if step is Jitter.HUE else 2), factor
            assert other.mean() <= 2.0, factor


@pytest.mark.parametrize("magnitude", [0, 1, 9, 17, 30])
@pytest.mark.parametrize("operation", list(Operation))
def test_randaugments_operations_are_torchvisions(
    operation: Operation, magnitude: int, photos: list[Image.Image]
) -> None:
    name = NAMES[operation]
    strengths, signed = TORCHVISION._AUGMENTATION_SPACE[name]
    for image in photos:
        strength = strengths(MAGNITUDE_MAX + 1, image.height, image.width)
        for sign in (-1, 1) if signed else (1,):
            theirs = TORCHVISION._apply_image_or_video_transform(
                image,
                name,
                0.0 if strength is None else sign * float(strength[magnitude]),
                v2.InterpolationMode.NEAREST,
                {Image.Image: None},
            )
            ours = operate(image, operation, magnitude, sign)
            # Their strengths are rounded to 32 bits: a level on the very edge may fall to the other side.
            assert (difference(ours, theirs) > 1).mean() <= (0.02 if operation is Operation.SOLARIZE else 0.001)


def test_the_list_of_operations_is_torchvisions() -> None:
    assert [o.name.replace("_", "").lower() for o in Operation] == [name.lower() for name in NAMES]


def test_factors_orders_operations_and_boxes_are_spread_as_documented() -> None:
    effects = drawn(EVERYTHING, 20_000)
    factors = effects.jitter_factors
    for step, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        wanted = low + (high - low) * np.array([0.1, 0.5, 0.9])
        assert np.allclose(np.quantile(factors[:, step], [0.1, 0.5, 0.9]), wanted, atol=0.02)
    assert abs(np.corrcoef(factors.T) - np.eye(4)).max() < 0.03
    orders, counts = np.unique(effects.jitter_order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 0.85 * 20_000 / 24
    for place in range(2):
        counts = np.bincount(effects.operations[:, place], minlength=14)
        assert len(counts) == 14
        assert counts.min() > 0.85 * 20_000 / 14
    assert abs(effects.signs.mean()) < 0.02
    areas = np.prod(effects.erased[:, 2:] - effects.erased[:, :2], axis=1) / 64**2
    assert abs((areas > 0).mean() - 0.5) < 0.02
    assert 0.015 < areas[areas > 0].min() < 0.03
    assert 0.3 < areas.max() <= 0.34
    assert effects.erased.min() == 0
    assert effects.erased.max() == 64
    assert drawn(replace(EVERYTHING, brightness=2.0), 1000).jitter_factors[:, :3].min() >= 0


def test_a_step_without_a_range_is_left_out() -> None:
    effects = drawn(Augment(brightness=0.4, saturation=0.4), 100)
    assert {tuple(order) for order in effects.jitter_order.tolist()} == {(0, 2), (2, 0)}
    assert drawn(Augment(erase=1.0), 3).jitter_order.shape == drawn(Augment(erase=1.0), 3).operations.shape == (3, 0)


def drawn(augment: Augment, n: int, *, first: int = 0, epoch: int = 0) -> Effects:
    effects = train_effects(augment, 64, seed=5, epoch=epoch, slots=np.arange(first, first + n))
    assert effects is not None
    return effects


def test_effects_depend_on_the_slot_of_the_epoch_and_on_nothing_else() -> None:
    whole, part, other = drawn(EVERYTHING, 50), drawn(EVERYTHING, 20, first=30), drawn(EVERYTHING, 50, epoch=1)
    for name in ("operations", "signs", "jitter_order", "jitter_factors", "erased"):
        assert np.array_equal(getattr(whole, name)[30:], getattr(part, name)), name
        assert not np.array_equal(getattr(whole, name), getattr(other, name)), name


def test_without_options_nothing_is_drawn_or_done() -> None:
    assert train_effects(Augment(), 64, seed=5, epoch=0, slots=np.arange(9)) is None


def test_each_image_gets_its_own_effects_in_the_documented_order(photos: list[Image.Image]) -> None:
    pixels = np.stack([np.asarray(photos[i % 2].resize((64, 64))) for i in range(8)])
    effects = drawn(EVERYTHING, 20)
    shown = [i != 2 for i in range(8)]
    done = pixels.copy()
    apply_effects(effects.slots(slice(10, 18)), done, shown)
    for i in range(8):
        image = Image.fromarray(pixels[i])
        if shown[i]:
            for k in range(2):
                operation, sign = Operation(effects.operations[10 + i, k]), int(effects.signs[10 + i, k])
                image = operate(image, operation, 15, sign)
            for step in effects.jitter_order[10 + i].tolist():
                image = JITTER[Jitter(step)](image, effects.jitter_factors[10 + i, step])
            left, top, right, bottom = effects.erased[10 + i].tolist()
            image.paste(EVERYTHING.erase_color, (left, top, right, bottom))
        assert np.array_equal(done[i], np.asarray(image)), i
    assert not np.array_equal(done[3], pixels[3])


def test_the_erased_box_is_torchvisions_erase() -> None:
    pixels = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    effects = drawn(Augment(erase=1.0, erase_color=(1, 2, 3)), 1)
    apply_effects(effects, pixels, [True])
    left, top, right, bottom = effects.erased[0].tolist()
    fill = torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)
    theirs = F.erase(torch.zeros(3, 64, 64, dtype=torch.uint8), top, left, bottom - top, right - left, fill)
    assert np.array_equal(pixels[0], theirs.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "wrong",
    [
        {"brightness": -0.1},
        {"contrast": float("nan")},
        {"saturation": float("inf")},
        {"hue": 0.6},
        {"randaugment_operations": -1},
        {"randaugment_magnitude": 31},
        {"erase": 1.1},
        {"erase_color": (0, 0, 256)},
    ],
)
def test_wrong_effects_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**wrong)  # type: ignore[arg-type]


def batches(directory: Path, **options: object) -> list[Batch]:
    given = {"batch_size": 24, "size_px": 16, "seed": 3, "threads": 2, "augment": EVERYTHING, **options}
    with Loader(directory, **given) as loader:  # type: ignore[arg-type]
        return list(loader)


def test_ranks_joined_show_the_effects_of_one_rank_with_any_threads(small_dataset: Path) -> None:
    alone = batches(small_dataset)
    for world_size, threads in ((2, 1), (8, 3)):
        ranks = [batches(small_dataset, rank=k, world_size=world_size, threads=threads) for k in range(world_size)]
        for parts, batch in zip(zip(*ranks, strict=True), alone, strict=True):
            assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    plain = batches(small_dataset, augment=Augment())
    assert not torch.equal(plain[0].images, alone[0].images)
    assert torch.equal(plain[0].ordinals, alone[0].ordinals)


@pytest.mark.parametrize("engine", ["pillow", "turbo"])
def test_every_engine_gets_the_same_effects_after_its_own_decoding(small_dataset: Path, engine: str) -> None:
    if engine == "turbo" and find_spec("wv_loader._turbo") is None:
        pytest.skip("the turbo engine's kernel is not built here (see setup.py)")
    plain = batches(small_dataset, augment=Augment(), engine=engine)
    for batch, with_effects in zip(plain, batches(small_dataset, engine=engine), strict=True):
        slots = 24 * batch.index + np.arange(24)
        effects = train_effects(EVERYTHING, 16, seed=3, epoch=0, slots=slots)
        assert effects is not None
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        apply_effects(effects, pixels, batch.valid.tolist())
        assert np.array_equal(with_effects.images.permute(0, 2, 3, 1).numpy(), pixels)


def test_masked_and_padded_slots_stay_zero(small_dataset: Path) -> None:
    shown = batches(small_dataset, augment=replace(EVERYTHING, erase=1.0), batch_size=48)
    assert not torch.cat([b.valid for b in shown]).all()
    assert all(not b.images[~b.valid].any() for b in shown)


def test_a_resumed_epoch_shows_the_same_effects(small_dataset: Path) -> None:
    expected = batches(small_dataset)
    options = {"batch_size": 24, "size_px": 16, "seed": 3, "augment": EVERYTHING}
    with Loader(small_dataset, **options) as loader:  # type: ignore[arg-type]
        for batch in loader:
            if batch.index == 2:
                break
        state = loader.state_dict()
    with Loader(small_dataset, **options) as loader:  # type: ignore[arg-type]
        loader.load_state_dict(state)
        for ours, theirs in zip(loader, expected[3:], strict=True):
            assert torch.equal(ours.images, theirs.images)


def test_evaluation_has_no_effects(small_dataset: Path) -> None:
    plain, asked = batches(small_dataset, train=False, augment=Augment()), batches(small_dataset, train=False)
    assert all(torch.equal(a.images, b.images) for a, b in zip(plain, asked, strict=True))
