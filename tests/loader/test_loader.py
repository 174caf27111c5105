"""The loader end to end on drawn shards: laws 3, 4, 6 and 7, state, faults, shutdown."""

import gc
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wv_loader import Augment, Batch, Loader, LoaderError, OptionError, StateMismatchError
from wv_shards import CorruptDataError, DuplicatesInfo, Manifest, Overlay, OverlayMismatchError, ShardsError


@pytest.fixture
def make(small_dataset: Path) -> Callable[..., Loader]:
    def make_loader(**options: object) -> Loader:
        return Loader(small_dataset, **{"batch_size": 24, "size_px": 16, "seed": 3, "threads": 2, **options})  # type: ignore[arg-type]

    return make_loader


def epoch_of(loader: Loader) -> list[Batch]:
    return list(loader)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("images", "labels", "ordinals", "valid")) and (
        a.index == b.index
    )


def join(parts: list[Batch]) -> Batch:
    joined = {n: torch.cat([getattr(p, n) for p in parts]) for n in ("images", "labels", "ordinals", "valid")}
    return Batch(**joined, index=parts[0].index)


def test_batches_have_the_documented_shapes_and_the_right_images(make: Callable[..., Loader]) -> None:
    loader = make(augment=Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.2, 1.2), flip=0.0), size_px=20)
    batch = next(iter(loader))
    assert batch.images.shape == (24, 3, 20, 20)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.ordinals.dtype == torch.int64
    assert batch.valid.dtype == torch.bool
    assert batch.valid.all()
    index = loader.dataset.index
    assert batch.labels.tolist() == index["label"][batch.ordinals.numpy()].tolist()
    # 24×20 images, the whole of them shown: decode one by other means.
    import io

    from PIL import Image

    with Image.open(io.BytesIO(loader.dataset.read(int(batch.ordinals[5])))) as image:
        expected = np.asarray(image.convert("RGB").resize((20, 20), Image.Resampling.BILINEAR), dtype=int)
    assert np.abs(batch.images[5].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_normalized_is_what_torchvision_would_give(make: Callable[..., Loader]) -> None:
    from torchvision.transforms.v2.functional import normalize, to_dtype

    batch = next(iter(make()))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    expected = normalize(to_dtype(batch.images, torch.float32, scale=True), mean, std)
    assert torch.allclose(batch.normalized(mean, std), expected, atol=1e-5)


def test_an_epoch_as_collected_shows_every_sample_once(make: Callable[..., Loader]) -> None:
    loader = make()
    batches = epoch_of(loader)
    shown = torch.cat([b.ordinals[b.valid] for b in batches])
    assert sorted(shown.tolist()) == list(range(loader.num_samples))
    assert len(batches) == -(-loader.num_samples // 24)


@pytest.mark.parametrize("world_size", [2, 4, 8, 24])
def test_ranks_joined_are_the_batches_of_one_rank(make: Callable[..., Loader], world_size: int) -> None:
    alone = epoch_of(make(balance=0.3))
    ranks = [epoch_of(make(balance=0.3, rank=k, world_size=world_size)) for k in range(world_size)]
    assert len({len(r) for r in ranks}) == 1
    assert all(same(join(list(parts)), batch) for parts, batch in zip(zip(*ranks, strict=True), alone, strict=True))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_stopped_anywhere_the_same_batches_follow_on_other_ranks(
    make: Callable[..., Loader], data: st.DataObject
) -> None:
    options = {"balance": data.draw(st.sampled_from([0.0, 0.5, 1.0])), "batch_size": 24}
    before = data.draw(st.sampled_from([1, 2, 3, 8]))
    after = data.draw(st.sampled_from([1, 2, 3, 4]))
    epoch = data.draw(st.integers(0, 3))
    whole = make(**options)
    whole.set_epoch(epoch)
    expected = epoch_of(whole)
    done = data.draw(st.integers(1, len(expected)))
    stopped = make(**options, rank=0, world_size=before)
    stopped.set_epoch(epoch)
    state = None
    for count, _ in enumerate(stopped, 1):
        if count == done:
            state = json.loads(json.dumps(stopped.state_dict()))
            break
    assert state is not None
    assert len(json.dumps(state)) < 1000
    ranks = []
    for k in range(after):
        loader = make(**options, rank=k, world_size=after)
        loader.load_state_dict(state)
        loader.set_epoch(epoch)  # as a training loop does: keeps the position
        ranks.append(epoch_of(loader))
    followed = [join(list(parts)) for parts in zip(*ranks, strict=True)]
    assert len(followed) == len(expected) - done
    assert all(same(a, b) for a, b in zip(followed, expected[done:], strict=True))


def test_leaving_the_loop_keeps_the_position_and_epochs_follow(make: Callable[..., Loader]) -> None:
    expected = make()
    first, second = epoch_of(expected), epoch_of(expected)
    loader = make()
    got = []
    for batch in loader:
        got.append(batch)
        if len(got) == 4:
            break
    got += epoch_of(loader)
    assert all(same(a, b) for a, b in zip(got, first, strict=True))
    assert all(same(a, b) for a, b in zip(epoch_of(loader), second, strict=True))
    loader.set_epoch(0)
    assert same(next(iter(loader)), first[0])


def test_ranks_that_do_not_divide_the_streams_are_refused(make: Callable[..., Loader]) -> None:
    with pytest.raises(LoaderError, match="5 ranks can't share 24 streams"):
        make(rank=0, world_size=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "warp"}, "engine 'warp'"),
        ({"batch_size": 0}, "batch_size"),
        ({"size_px": 0}, "size_px"),
        ({"balance": 2.0}, "balance"),
        ({"rank": 3}, "both rank and world_size"),
        ({"rank": 3, "world_size": 2}, "rank 3 of 2"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    make: Callable[..., Loader], options: dict[str, object], message: str
) -> None:
    with pytest.raises(LoaderError, match=message) as raised:
        make(**options)
    assert "\n" not in str(raised.value)


def test_evaluation_shows_every_sample_once_by_ordinal_on_any_ranks(make: Callable[..., Loader]) -> None:
    alone = epoch_of(make(train=False))
    shown = torch.cat([b.ordinals for b in alone])
    total = make().num_samples
    assert shown[:total].tolist() == list(range(total))
    assert (shown[total:] == -1).all()
    assert not torch.cat([b.valid for b in alone])[total:].any()
    ranks = [epoch_of(make(train=False, rank=k, world_size=3)) for k in range(3)]
    assert all(same(join(list(parts)), batch) for parts, batch in zip(zip(*ranks, strict=True), alone, strict=True))


def test_an_exception_in_a_thread_reaches_the_consumer_and_ends_all_threads(
    make: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make()

    def explode(*arguments: object) -> None:
        raise RuntimeError("decoder on fire")

    monkeypatch.setattr(loader.engine, "decode", explode)
    with pytest.raises(RuntimeError, match="decoder on fire") as raised:
        next(iter(loader))
    assert "in batch 0 of the loader" in raised.value.__notes__
    assert not [t for t in threading.enumerate() if t.name.startswith("wv-")]


def test_leaving_the_loop_early_ends_all_threads(make: Callable[..., Loader]) -> None:
    for _ in make(prefetch=8):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("wv-")]


def test_many_epochs_leave_no_threads_and_no_open_files(make: Callable[..., Loader]) -> None:
    loader = make()
    epoch_of(loader)
    gc.collect()  # of other tests' loaders
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        epoch_of(loader)
    assert len(os.listdir("/proc/self/fd")) == files
    loader.close()
    assert len(os.listdir("/proc/self/fd")) < files
    assert not [t for t in threading.enumerate() if t.name.startswith("wv-")]


def test_exclusions_are_not_shown_and_make_another_plan(
    small_dataset: Path, make: Callable[..., Loader], tmp_path: Path
) -> None:
    whole = make()
    gone = np.zeros(whole.num_samples, dtype=bool)
    gone[[3, 50, 51]] = True
    Overlay(kind="exclude", array=gone, manifest_digest=whole.manifest_digest).save(tmp_path / "gone")
    loader = make(exclude=[tmp_path / "gone"])
    shown = torch.cat([b.ordinals[b.valid] for b in loader])
    assert sorted(shown.tolist()) == np.flatnonzero(~gone).tolist()
    assert loader.class_counts.sum() == whole.num_samples - 3
    with pytest.raises(StateMismatchError, match="exclusions was"):
        loader.load_state_dict(whole.state_dict())
    for masks in (gone, [gone[::-1] & gone, gone]):
        assert make(exclude=masks).state_dict() == make(exclude=tmp_path / "gone").state_dict()
    with pytest.raises(LoaderError, match=r"^exclude: shape \(3,\), expected \(\d+,\): a row per sample"):
        make(exclude=[gone[:3]])
    with pytest.raises(OptionError, match=r"^exclude: expected an array of bool"):
        make(exclude=[gone.astype(np.uint8)])
    beside = tmp_path / "beside"
    shutil.copytree(small_dataset, beside)
    Overlay(kind="exclude", array=gone, manifest_digest=whole.manifest_digest).save(beside / "exclude")
    assert Loader(beside, batch_size=24, size_px=16).class_counts.sum() == whole.num_samples - 3
    Overlay(kind="exclude", array=gone, manifest_digest="0" * 32).save(tmp_path / "foreign")
    with pytest.raises(OverlayMismatchError, match="made for data set 000000000000"):
        make(exclude=[tmp_path / "foreign"])


def test_duplicates_are_not_shown_when_their_overlay_is_gone(small_dataset: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(small_dataset, tmp_path / "shards"))
    info = DuplicatesInfo(conflict="keep", near_distance=5, exact=2, near=0, conflicts=0, excluded=2, cut_short=0)
    manifest = replace(Manifest.load(shards), duplicates=info)
    manifest.save(shards)
    with pytest.raises(LoaderError, match=r"exclude.json: is missing, and 2 duplicates were excluded.*wv-ingest dupl"):
        Loader(shards, batch_size=4, size_px=8)
    replace(manifest, duplicates=replace(info, excluded=0)).save(shards)  # of a validation set
    assert Loader(shards, batch_size=4, size_px=8).class_counts.sum() == manifest.samples


def test_an_unfinished_or_missing_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardsError, match="no such directory"):
        Loader(tmp_path / "nothing", batch_size=4, size_px=8)
    (tmp_path / "half" / ".build").mkdir(parents=True)
    with pytest.raises(ShardsError, match="has not been finished"):
        Loader(tmp_path / "half", batch_size=4, size_px=8)


def test_stats_add_up_and_name_a_stage(make: Callable[..., Loader]) -> None:
    loader = make()
    batches = epoch_of(loader)
    report = loader.stats.as_dict()
    assert report["batches"] == len(batches)
    assert report["samples"] == loader.num_samples
    assert report["bytes"] == int(loader.dataset.index["size"].sum())
    assert report["bottleneck"] in {"consumer", "plan", "read", "decode", "none"}
    assert 0 <= report["wait_fraction"] <= 1
    json.dumps(report)
    assert f"{loader.num_samples} samples" in str(loader.stats)


def test_expected_exposure_is_what_many_epochs_show(make: Callable[..., Loader]) -> None:
    loader = make(balance=0.2)
    shows = np.zeros(loader.num_classes)
    for _ in range(12):
        for batch in loader:
            shows += np.bincount(batch.labels[batch.valid], minlength=loader.num_classes)
    assert np.allclose(shows / 12, loader.expected_exposure(), rtol=0.05, atol=0.5)


def test_an_index_that_was_changed_is_refused(small_dataset: Path, tmp_path: Path) -> None:
    """Its labels would be wrong without a word."""
    shards = Path(shutil.copytree(small_dataset, tmp_path / "shards"))
    index = np.load(shards / "index.npy")
    index["label"][3] = 5 - index["label"][3]
    np.save(shards / "index.npy", index)
    with pytest.raises(
        CorruptDataError, match=r"index\.npy: is damaged: checksum .*run `wv-ingest verify --repair`"
    ) as raised:
        Loader(shards, batch_size=24, size_px=8)
    assert "\n" not in str(raised.value)
