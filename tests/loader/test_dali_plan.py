"""Laws 3, 4, 6 and 7 for DALI on a CPU: which samples a batch shows is the plan's affair, whatever decodes them."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wv_loader import Augment, Batch, DaliOptions, EngineError, Loader, OptionError, dali_flight
from wv_loader.augment import train_effects
from wv_loader.decode_pillow import PillowEngine
from wv_loader.effects import apply_effects

pytestmark = pytest.mark.usefixtures("dali")

Make = Callable[..., Loader]
NEAR = 32
"""Levels between engines in the row at an image's edge; elsewhere 1 or 2 (see test_dali_pixels.py)."""
NEAR_MEAN = 1.0
"""Levels over a batch; other crops, or another order, would be 30 and more."""


@pytest.fixture
def make(small_dataset: Path) -> Make:
    def make_loader(engine: str = "dali-cpu", **options: object) -> Loader:
        given = {"batch_size": 24, "size_px": 16, "seed": 3, "threads": 2, "balance": 0.3, **options}
        return Loader(small_dataset, engine=engine, **given)  # type: ignore[arg-type]

    return make_loader


def same_but_pixels(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("labels", "ordinals", "valid"))
    return tensors and (a.index, a.seed, a.masked) == (b.index, b.seed, b.masked)


def same(a: list[Batch], b: list[Batch]) -> bool:
    """To the bit."""
    return len(a) == len(b) and all(
        same_but_pixels(x, y) and torch.equal(x.images, y.images) for x, y in zip(a, b, strict=True)
    )


def distance(a: Batch, b: Batch) -> torch.Tensor:
    return (a.images.int() - b.images.int()).abs()


@pytest.mark.parametrize("train", [True, False])
def test_batches_are_turbos(make: Make, train: bool) -> None:
    """The last of evaluation is padded."""
    with make(train=train) as ours, make("auto", train=train) as other:
        for _ in range(2):
            batches, expected = list(ours), list(other)
            assert len(batches) == len(ours) == len(expected)
            for batch, reference in zip(batches, expected, strict=True):
                assert same_but_pixels(batch, reference)
                assert batch.images.shape == (24, 3, 16, 16)
                assert batch.images.dtype == torch.uint8
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                assert distance(batch, reference).max() <= NEAR
                assert distance(batch, reference).float().mean() <= NEAR_MEAN
                assert not batch.images[~batch.valid].any()
                assert batch.images[batch.valid].any()
        assert train or bool((~batches[-1].valid).any())


def test_slots_without_a_sample_are_black_whatever_dali_was_given_for_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(white, "JPEG")
    monkeypatch.setattr(dali_flight, "_BLANK", white.getvalue())
    last = list(make(train=False))[-1]
    assert not last.valid.all()
    assert not last.images[~last.valid].any()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_joined_are_the_batches_of_one_rank(make: Make, world_size: int) -> None:
    alone = list(make())
    ranks = [list(make(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for parts, batch in zip(zip(*ranks, strict=True), alone, strict=True):
        for name in ("images", "labels", "ordinals", "valid"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_stopped_anywhere_another_engine_goes_on(make: Make, data: st.DataObject) -> None:
    first, second = data.draw(st.permutations(["dali-cpu", "auto"]))
    epoch = data.draw(st.integers(0, 2))
    whole = make(second)
    whole.set_epoch(epoch)
    expected = list(whole)
    done = data.draw(st.integers(1, len(expected)))
    stopped, state = make(first), None
    stopped.set_epoch(epoch)
    for count, _ in enumerate(stopped, 1):
        if count == done:
            state = json.loads(json.dumps(stopped.state_dict()))
            break
    assert state is not None
    follower = make(second)
    follower.load_state_dict(state)
    follower.set_epoch(epoch)
    assert same(list(follower), expected[done:])


def test_a_loop_that_is_left_goes_on_where_it_was(make: Make) -> None:
    """With batches in DALI that nobody takes; and the pipeline is used again."""
    expected = list(make())
    loader = make(dali=DaliOptions(prefetch=4), prefetch=6)
    taken: list[Batch] = []
    while len(taken) < len(expected):
        taken += [batch for _, batch in zip(range(3), loader, strict=False)]
    assert same(taken[: len(expected)], expected)


def test_batches_that_are_kept_stay_as_they_were(make: Make) -> None:
    loader = make()
    kept = [(batch, batch.images.clone()) for _ in range(3) for batch in loader]
    assert all(torch.equal(batch.images, images) for batch, images in kept)
    loader.close()
    assert all(torch.equal(batch.images, images) for batch, images in kept)


def test_effects_are_those_of_the_other_engines_on_dalis_pixels(make: Make) -> None:
    augment = Augment(brightness=0.4, hue=0.1, randaugment_operations=2, erase=0.5)
    plain = make(batch_size=48)
    for epoch in range(2):
        changed = make(augment=augment, batch_size=48)  # more than one thread takes at a time
        changed.set_epoch(epoch)
        for batch, before in zip(changed, list(plain), strict=True):
            slots = batch.index * 48 + np.arange(48)
            pixels = before.images.permute(0, 2, 3, 1).numpy().copy()
            apply_effects(
                train_effects(augment, 16, seed=3, epoch=epoch, slots=slots),  # type: ignore[arg-type]
                pixels,
                before.valid.tolist(),
            )
            assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), pixels)
            assert not torch.equal(batch.images, before.images)


def test_evaluation_has_no_effects(make: Make) -> None:
    assert same(list(make(train=False, augment=Augment(brightness=0.4))), list(make(train=False)))


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"threads": 4},
        {"dali": DaliOptions(prefetch=1)},
        {"dali": DaliOptions(prefetch=2, hw_decoder_load=0)},
        {"dali": DaliOptions(prefetch=16), "prefetch": 20},
        {"prefetch": 1},
        {"transform": lambda batch: batch},
        {"device": "cpu"},
        {"read_ahead_batches": 0, "read_ahead_bytes": 0},
    ],
)
def test_bytes_do_not_depend_on_how_the_work_is_done(make: Make, options: dict[str, object]) -> None:
    assert same(list(make(**options)), list(make()))


def test_whole_images_decoded_give_the_same_but_for_rounding(make: Make) -> None:
    for region, whole in zip(make(), make(dali=DaliOptions(region=False)), strict=True):
        assert same_but_pixels(region, whole)
        assert distance(region, whole).max() <= 1


def test_parts_of_images_are_decoded_on_a_cpu_and_whole_ones_on_a_gpu_unless_asked_for() -> None:
    """nvImageCodec issue 55: parts on a GPU may crash the process."""
    from wv_loader.decode_dali import DaliEngine

    def region(device: torch.device | None, **options: bool) -> bool:
        return DaliEngine(device, PillowEngine(), DaliOptions(**options)).region

    assert region(None)
    assert not region(None, region=False)
    assert not region(torch.device("cuda", 0))
    assert region(torch.device("cuda", 0), region=True)


def test_worker_processes_are_refused(make: Make) -> None:
    with pytest.raises(EngineError, match="processes=2"):
        make(processes=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefetch": 0}, "dali.prefetch"),
        ({"prefetch": 17}, "dali.prefetch"),
        ({"prefetch": 1.5}, "dali.prefetch"),
        ({"prefetch": True}, "dali.prefetch"),
        ({"hw_decoder_load": -0.1}, "dali.hw_decoder_load"),
        ({"hw_decoder_load": 1.01}, "dali.hw_decoder_load"),
        ({"hw_decoder_load": "all"}, "dali.hw_decoder_load"),
        ({"hw_decoder_load": float("nan")}, "dali.hw_decoder_load"),
        ({"region": 1}, "dali.region"),
        ({"region": "auto"}, "dali.region"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        DaliOptions(**options)  # type: ignore[arg-type]


def test_options_come_as_their_class(make: Make) -> None:
    with pytest.raises(OptionError, match=r"dali.*DaliOptions"):
        make(dali={"prefetch": 2})
    kept = DaliOptions(prefetch=np.int64(3), hw_decoder_load=np.float32(1))  # type: ignore[arg-type]
    assert (kept.prefetch, kept.hw_decoder_load) == (3, 1.0)
