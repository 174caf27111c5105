"""What is done to batches after the pipeline: `transform`, `device`, and the pairs that timm's loops want."""

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wv_loader import Augment, Batch, Loader, LoaderError, TimmLoader
from wv_shards import EXCLUDE, FLAG_BAD, Overlay

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def make(small_dataset: Path) -> Callable[..., Loader]:
    def make_loader(**options: object) -> Loader:
        return Loader(small_dataset, **{"batch_size": 24, "size_px": 16, "seed": 3, "threads": 2, **options})  # type: ignore[arg-type]

    return make_loader


def noisy(batch: Batch) -> Batch:
    """As users are told to write it: random numbers from the batch's seed alone."""
    drawn = torch.Generator().manual_seed(batch.seed)
    return replace(batch, images=batch.images ^ torch.randint(2, (), generator=drawn, dtype=torch.uint8))


def no_threads_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("wv-")]


def test_transform_gets_every_batch_in_order_and_the_loop_sees_what_it_gives(make: Callable[..., Loader]) -> None:
    seen: list[tuple[int, str]] = []

    def transform(batch: Batch) -> tuple[torch.Tensor, int]:
        seen.append((batch.index, threading.current_thread().name))
        return batch.ordinals, batch.index

    plain = list(make())
    got = list(make(transform=transform))
    assert [index for _, index in got] == [index for index, _ in seen] == list(range(len(plain)))  # type: ignore[misc]
    assert all(torch.equal(ordinals, batch.ordinals) for (ordinals, _), batch in zip(got, plain, strict=True))  # type: ignore[misc]
    assert {name for _, name in seen} == {"wv-deliver_0"}
    assert no_threads_left()


def test_transform_overlaps_with_the_loop_and_is_at_most_two_batches_ahead(make: Callable[..., Loader]) -> None:
    ahead, begun = threading.Event(), []

    def transform(batch: Batch) -> Batch:
        begun.append(batch.index)
        if batch.index == 2:
            ahead.set()
        return batch

    for batch in make(transform=transform):
        assert ahead.wait(60)
        assert len(begun) <= batch.index + 3


def test_the_position_is_that_of_the_loop_and_a_resumed_run_sees_the_same(make: Callable[..., Loader]) -> None:
    expected = [list(loader) for loader in [make(transform=noisy)] for _ in range(2)]
    for done in (1, 3, len(expected[0]) - 1):
        stopped = make(transform=noisy, rank=0, world_size=2)
        for batch in stopped:
            if batch.index == done - 1:
                break
        state = json.loads(json.dumps(stopped.state_dict()))
        assert state["batches"] == done
        assert no_threads_left()
        resumed = make(transform=noisy)
        resumed.load_state_dict(state)
        for epoch, followed in ((0, expected[0][done:]), (1, expected[1])):
            resumed.set_epoch(epoch)
            for ours, theirs in zip(resumed, followed, strict=True):
                assert torch.equal(ours.images, theirs.images)
                assert ours.seed == theirs.seed


def test_seeds_are_alike_on_all_ranks_and_differ_by_batch_epoch_and_loader(make: Callable[..., Loader]) -> None:
    loader = make()
    first, second = [[batch.seed for batch in loader] for _ in range(2)]
    other = [batch.seed for batch in make(seed=4)]
    assert len({*first, *second, *other}) == 3 * len(first)
    assert all(0 <= seed < 2**63 for seed in first)
    assert [batch.seed for batch in make(rank=1, world_size=4)] == first


@pytest.mark.parametrize("at", [0, 2])
def test_an_error_in_transform_reaches_the_loop_with_the_batch_and_ends_all_threads(
    make: Callable[..., Loader], at: int
) -> None:
    def transform(batch: Batch) -> Batch:
        if batch.index == at:
            raise KeyError("no such colour")
        return batch

    seen = []
    with pytest.raises(KeyError, match="no such colour") as raised:
        seen += [batch.index for batch in make(transform=transform)]
    assert raised.value.__notes__ == [f"in the transform of batch {at} of the loader"]
    assert no_threads_left()


def test_a_transform_that_runs_out_is_told_as_any_error_of_it(make: Callable[..., Loader]) -> None:
    colours = iter(["red", "green"])
    with pytest.raises(RuntimeError, match="transform raised StopIteration") as raised:
        list(make(transform=lambda _: next(colours)))
    assert raised.value.__notes__ == ["in the transform of batch 2 of the loader"]
    assert isinstance(raised.value.__cause__, StopIteration)
    assert no_threads_left()


def test_an_error_in_the_decoder_is_not_blamed_on_transform(
    make: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make(transform=noisy)

    def explode(*arguments: object) -> None:
        raise RuntimeError("decoder on fire")

    monkeypatch.setattr(loader.engine, "decode", explode)
    with pytest.raises(RuntimeError, match="decoder on fire") as raised:
        next(iter(loader))
    assert raised.value.__notes__ == ["in batch 0 of the loader"]
    assert no_threads_left()


@pytest.mark.parametrize("transform", [None, noisy])
def test_a_loop_that_takes_just_as_many_batches_as_len_says_gets_the_next_epoch_next(
    make: Callable[..., Loader], transform: Callable[[Batch], Batch] | None
) -> None:
    expected = make(transform=transform)
    loader = make(transform=transform)
    for _ in range(3):
        taken = list(itertools.islice(loader, len(loader)))
        for ours, theirs in zip(taken, expected, strict=True):
            assert torch.equal(ours.ordinals, theirs.ordinals)
    assert loader.state_dict()["batches"] == len(loader)
    loader.set_epoch(0)
    assert next(iter(loader)).index == 0


def test_masked_slots_are_counted_on_the_batch(make: Callable[..., Loader]) -> None:
    batches = list(make(train=False))
    assert [batch.masked for batch in batches] == [int((~batch.valid).sum()) for batch in batches]
    assert batches[-1].masked > 0


def test_a_device_that_is_not_there_is_refused_in_one_line(make: Callable[..., Loader]) -> None:
    with pytest.raises(LoaderError, match="device 'warp': expected one of torch's"):
        make(device="warp")
    with pytest.raises(LoaderError, match=r"^device cuda:99: no .* \((install|expected) [^\n]*\)$"):
        make(device="cuda:99")


def test_gpus_that_the_driver_is_too_old_for_are_counted_and_refused(
    make: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LoaderError, match=r"^device cuda:0: [^\n]+\)$"):
        make(device="cuda:0")


def test_batches_come_on_the_device(make: Callable[..., Loader]) -> None:
    for ours, theirs in zip(make(device="cpu"), make(), strict=True):
        assert torch.equal(ours.images, theirs.images)
    assert no_threads_left()


def test_on_a_gpu_batches_are_the_same_and_transform_sees_them_there(
    make: Callable[..., Loader], cuda: torch.device
) -> None:
    def transform(batch: Batch) -> tuple[torch.Tensor, Batch]:
        assert batch.images.device == cuda
        return batch.normalized(MEAN, STD), batch

    engine = "pillow"  # `auto` may take another one there
    expected = list(make(engine=engine))
    kept = []
    for images, batch in make(engine=engine, device=cuda, transform=transform):  # type: ignore[misc]
        assert images.is_contiguous(memory_format=torch.channels_last)
        # Work that is still queued when the tensors are let go of.
        kept.append((images.clone().mul_(1.0), batch.images.clone(), batch.valid.clone()))
        del images, batch
    for (images, pixels, valid), theirs in zip(kept, expected, strict=True):
        assert torch.equal(pixels.cpu(), theirs.images)
        assert torch.equal(valid.cpu(), theirs.valid)
        assert torch.allclose(images.cpu(), theirs.normalized(MEAN, STD), atol=1e-5)


# -- timm ---------------------------------------------------------------------------------------------------------


def test_timms_loops_get_full_normalised_batches_and_epochs_follow(make: Callable[..., Loader]) -> None:
    ours = TimmLoader(make(), mean=MEAN, std=STD, img_dtype=torch.float64)
    plain = make()
    for epoch in range(2):
        ours.sampler.set_epoch(epoch)
        batches = list(plain)
        full = plain.num_samples // 24
        assert len(ours) == full == len(batches) - 1
        for (images, labels), batch in zip(ours, batches[:full], strict=True):
            assert images.dtype == torch.float64
            assert torch.equal(images, batch.normalized(MEAN, STD).double())
            assert torch.equal(labels, batch.labels)
    assert ours.loader.state_dict()["epoch"] == 2


def test_in_evaluation_timms_loops_count_every_sample_once(make: Callable[..., Loader]) -> None:
    ours = TimmLoader(make(train=False), mean=MEAN, std=STD)
    labels = torch.cat([labels for _, labels in ours])
    assert labels.tolist() == ours.loader.labels.tolist()
    assert len(ours) == len(ours.loader)


def test_a_rank_without_samples_repeats_one_in_evaluation(make: Callable[..., Loader]) -> None:
    total = make().num_samples
    ranks = [list(TimmLoader(make(train=False, rank=k, world_size=24), mean=MEAN, std=STD)) for k in range(24)]
    assert {len(pairs) for pairs in ranks} == {-(-total // 24)}
    assert {len(labels) for pairs in ranks for _, labels in pairs} == {1}
    assert total % 24 == 23
    assert torch.equal(ranks[23][-1][0], ranks[23][-2][0])


Reseal = Callable[[Path], None]


def bad_dataset(draw_dataset: Callable[..., Path], reseal: Reseal, directory: Path, bad: list[int]) -> Path:
    draw_dataset(directory, [40, 8])
    index = np.load(directory / "index.npy")
    index["flags"][bad] = FLAG_BAD
    np.save(directory / "index.npy", index)
    reseal(directory)
    return directory


def test_masked_slots_show_other_samples_of_the_batch(
    draw_dataset: Callable[..., Path], reseal: Reseal, tmp_path: Path
) -> None:
    directory = bad_dataset(draw_dataset, reseal, tmp_path / "shards", [1, 5, 6, 30])
    options = {"batch_size": 12, "size_px": 8, "augment": Augment(crop_scale=(1.0, 1.0), flip=0.0)}
    whole = list(Loader(directory, **options))  # type: ignore[arg-type]
    for (images, labels), batch in zip(
        TimmLoader(Loader(directory, **options), mean=MEAN, std=STD),  # type: ignore[arg-type]
        whole,
        strict=True,
    ):
        assert images.shape == (12, 3, 8, 8)
        good = batch.normalized(MEAN, STD)[batch.valid]
        assert torch.equal(images[batch.valid], good)
        assert torch.equal(images[~batch.valid], good[: batch.masked])
        assert torch.equal(labels[~batch.valid], batch.labels[batch.valid][: batch.masked])
    shown = torch.cat(
        [labels for _, labels in TimmLoader(Loader(directory, train=False, **options), mean=MEAN, std=STD)]
    )  # type: ignore[arg-type]
    assert len(shown) == 44


def test_where_nothing_can_be_shown_timms_loop_is_told(
    draw_dataset: Callable[..., Path], reseal: Reseal, tmp_path: Path
) -> None:
    directory = bad_dataset(draw_dataset, reseal, tmp_path / "shards", list(range(48)))
    for train in (True, False):
        loader = Loader(directory, batch_size=12, size_px=8, train=train, bad_budget=None)
        with pytest.raises(LoaderError, match="shards: no sample can be shown; run `wv-ingest verify"):
            list(TimmLoader(loader, mean=MEAN, std=STD))


def test_a_rank_that_never_has_a_sample_shows_one_of_the_data_set(
    draw_dataset: Callable[..., Path], reseal: Reseal, tmp_path: Path
) -> None:
    """As timm's own sampler does where ranks do not divide the samples; the first two are bad, the third excluded."""
    directory = bad_dataset(draw_dataset, reseal, tmp_path / "shards", [0, 1])
    whole = Loader(directory, batch_size=48, size_px=8, train=False)
    exclude = np.zeros(48, dtype=np.bool_)
    exclude[2] = True
    Overlay(kind=EXCLUDE, array=exclude, manifest_digest=whole.manifest_digest).save(tmp_path / "out")
    options = {"batch_size": 96, "size_px": 8, "train": False, "world_size": 4, "exclude": tmp_path / "out"}
    expected = next(iter(whole))
    for rank, count in enumerate([22, 23, 1, 1]):
        ((images, labels),) = TimmLoader(Loader(directory, rank=rank, **options), mean=MEAN, std=STD)  # type: ignore[arg-type]
        assert len(images) == len(labels) == count
    assert torch.equal(images[0], expected.normalized(MEAN, STD)[3])
    assert labels.tolist() == [expected.labels[3]]


def test_a_rank_whose_first_training_batch_is_all_bad_goes_on(
    draw_dataset: Callable[..., Path], reseal: Reseal, tmp_path: Path
) -> None:
    options = {"batch_size": 12, "size_px": 8, "rank": 1, "world_size": 12}
    directory = draw_dataset(tmp_path / "shards", [40, 8])
    first = int(next(iter(Loader(directory, **options))).ordinals)  # type: ignore[arg-type]
    bad_dataset(draw_dataset, reseal, tmp_path / "bad", [first])
    pairs = list(TimmLoader(Loader(tmp_path / "bad", **options), mean=MEAN, std=STD))  # type: ignore[arg-type]
    assert [len(labels) for _, labels in pairs] == [1] * 4
    assert pairs[0][0].any()


def test_a_training_set_smaller_than_a_batch_is_refused_for_timm(
    draw_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    draw_dataset(tmp_path / "shards", [40, 8])
    with pytest.raises(LoaderError, match=r"48 samples an epoch make no full batch of 49.*batch_size of at most 48"):
        TimmLoader(Loader(tmp_path / "shards", batch_size=49, size_px=8), mean=MEAN, std=STD)
    assert len(TimmLoader(Loader(tmp_path / "shards", batch_size=49, size_px=8, train=False), mean=MEAN, std=STD)) == 1


def test_mixup_is_called_while_it_is_enabled_and_in_training_only(make: Callable[..., Loader]) -> None:
    def mixup(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.flip(0), labels + 100

    ours = TimmLoader(make(), mean=MEAN, std=STD, mixup=mixup)
    assert ours.mixup_enabled
    assert all(labels.min() >= 100 for _, labels in ours)
    ours.mixup_enabled = False
    assert all(labels.max() < 100 for _, labels in ours)
    assert all(labels.max() < 100 for _, labels in TimmLoader(make(train=False), mean=MEAN, std=STD, mixup=mixup))
    with pytest.raises(LoaderError, match="without transform"):
        TimmLoader(make(transform=noisy), mean=MEAN, std=STD)
