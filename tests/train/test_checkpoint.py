"""Checkpoints: plain values only, whole or absent, refused where they do not belong."""

import resource
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from wv_train.checkpoint import FORMAT_VERSION, Checkpoint
from wv_train.errors import CheckpointError


def _checkpoint() -> Checkpoint:
    return Checkpoint(
        manifest_digest="a" * 32,
        classes=["cat", "dog"],
        recipe={"model": "x"},
        position={"step": 3},
        model={"weight": torch.arange(3.0)},
        optimizer={"state": {}, "param_groups": []},
        scaler={},
        loader={"epoch": 1},
        ledger=torch.zeros(40, dtype=torch.uint8),
        totals={"steps": 1},
        plateau={},
        metrics_bytes=10,
        best_top1=None,
        torch_threads=1,
        world_size=1,
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = _checkpoint()
    saved.save(tmp_path / "sub" / "last.pt")
    loaded = Checkpoint.load(tmp_path / "sub" / "last.pt")
    assert torch.equal(loaded.model["weight"], saved.model["weight"])
    assert (loaded.classes, loaded.loader, loaded.format_version) == (saved.classes, saved.loader, FORMAT_VERSION)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["last.pt"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "cut"])
def test_damaged_files_are_refused_in_one_line(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    _checkpoint().save(path)
    path.write_bytes(path.read_bytes()[:500] if isinstance(content, str) else content)
    with pytest.raises(CheckpointError, match="not a checkpoint of wv-train, or damaged") as caught:
        Checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_other_files_of_torch_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no format_version"):
        Checkpoint.load(tmp_path / "other.pt")
    torch.save({"format_version": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="damaged: expected"):
        Checkpoint.load(tmp_path / "other.pt")


def test_a_checkpoint_of_format_1_is_read_as_one_of_today(tmp_path: Path) -> None:
    today = _checkpoint()
    state = {item.name: getattr(today, item.name) for item in fields(today) if item.name not in ("ema", "trainer")}
    torch.save({**state, "format_version": 1}, tmp_path / "last.pt")
    loaded = Checkpoint.load(tmp_path / "last.pt")
    assert (loaded.ema, loaded.trainer, loaded.format_version) == (None, {}, FORMAT_VERSION)
    assert loaded.position == today.position
    loaded.save(tmp_path / "again.pt")
    assert Checkpoint.load(tmp_path / "again.pt").classes == today.classes
    torch.save({**state, "format_version": 2}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="damaged: expected"):
        Checkpoint.load(tmp_path / "last.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        Checkpoint.load(tmp_path / "last.pt")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    replace(_checkpoint(), format_version=FORMAT_VERSION + 1).save(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="upgrade wv-toolkit"):
        Checkpoint.load(tmp_path / "last.pt")


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    checkpoint, path = _checkpoint(), tmp_path / "last.pt"
    checkpoint.check_data(path, manifest_digest="a" * 32)
    with pytest.raises(CheckpointError, match="give the shards that the run began with"):
        checkpoint.check_data(path, manifest_digest="b" * 32)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "wolf"], r"last\.pt: class 1 is 'dog' in the checkpoint, 'wolf' in these shards; give the shards"),
        (["cat", "dog", "wolf"], "trained on 2 classes, these shards have 3"),
    ],
)
def test_other_classes_are_refused_by_name(classes: list[str], message: str, tmp_path: Path) -> None:
    checkpoint, path = _checkpoint(), tmp_path / "last.pt"
    checkpoint.check_data(path, manifest_digest="a" * 32, classes=["cat", "dog"])
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_data(path, manifest_digest="b" * 32, classes=classes)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    _checkpoint().save(path)
    before = path.read_bytes()
    later = replace(_checkpoint(), model={"weight": torch.zeros(1_000_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails like a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(CheckpointError, match="the checkpoint before it is still whole"):
            later.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
