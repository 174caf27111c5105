"""Fixtures of the trainer's tests: a tiny recipe of three phases, and batches without a loader."""

import signal
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wv_loader import Batch, Loader
from wv_shards import Manifest, Overlay
from wv_train.data import DataConfig
from wv_train.job import Job, run_job
from wv_train.recipe import recipe_from_table
from wv_train.table import set_key, to_toml


def tiny_table(*overrides: str) -> dict[str, Any]:
    """base → gated → fine-tune in 33 steps on `small_dataset` (15 global batches an epoch)."""
    table: dict[str, Any] = {
        "model": "wv_resnet_16_32_64",
        "batch_size": 16,
        "size_px": 16,
        "seed": 3,
        "log_every_steps": 4,
        "checkpoint_every_steps": 5,
        "phases": [
            {"name": "base", "epochs": 1, "lr": 0.05, "balance": 0.5, "class_weights": "sqrt", "warmup_steps": 3},
            {
                "name": "gated",
                "steps": 12,
                "lr": 0.05,
                "schedule": "step",
                "milestones": [0.5],
                "gate": {"start": 0.3, "end": 0.0, "kind": "label_average"},
                "denominator": "kept",
            },
            {"name": "finetune", "steps": 6, "lr": 0.01, "backbone_factor": 0.1},
        ],
    }
    for override in overrides:
        set_key(table, override)
    return table


def save_overlays(shards: Path, folder: Path, *, clusters: int = 4, top_class: int = 5) -> dict[str, NDArray[Any]]:
    """`clusters`, `tiers` and `teacher` of a data set, drawn; four clusters whatever the overlay says of them."""
    manifest, generator = Manifest.load(shards), np.random.default_rng(1)
    two = np.dtype([("class_id", "<i4", (2,)), ("probability", "<f2", (2,))])
    teacher = np.zeros(manifest.samples, dtype=two)
    teacher["class_id"] = generator.integers(0, top_class + 1, (manifest.samples, 1)) - [0, 1]
    teacher["probability"] = [0.5, 0.25]
    made: dict[str, NDArray[Any]] = {
        "clusters": generator.integers(-1, 4, manifest.samples).astype(np.int32),
        "tiers": generator.integers(0, 4, manifest.samples).astype(np.uint8),
        "teacher": teacher,
    }
    for name, array in made.items():
        info = {"clusters": clusters} if name == "clusters" else {}
        Overlay(kind=name, array=array, manifest_digest=manifest.digest, info=info).save(folder / name)
    return made


@pytest.fixture(scope="session", name="save_overlays")
def save_overlays_fixture() -> Callable[..., dict[str, NDArray[Any]]]:
    return save_overlays


@pytest.fixture(scope="session", name="tiny_table")
def tiny_table_fixture() -> Callable[..., dict[str, Any]]:
    return tiny_table


@pytest.fixture(scope="session")
def write_recipe() -> Callable[..., Path]:
    def write(path: Path, *overrides: str) -> Path:
        path.write_text(to_toml(tiny_table(*overrides)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def val_dataset(tmp_path_factory: pytest.TempPathFactory, draw_dataset: Callable[..., Path]) -> Path:
    """The classes of `small_dataset`, 10 samples each."""
    return draw_dataset(tmp_path_factory.mktemp("val") / "shards", [10] * 6, seed=5)


@pytest.fixture(scope="session")
def draw_batch() -> Callable[..., Batch]:
    def draw(slots: int, *, classes: int = 5, invalid: tuple[int, ...] = (), seed: int = 0, size_px: int = 12) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        valid = torch.ones(slots, dtype=torch.bool)
        valid[list(invalid)] = False
        return Batch(
            images=torch.randint(0, 256, (slots, 3, size_px, size_px), dtype=torch.uint8, generator=generator),
            labels=torch.randint(0, classes, (slots,), generator=generator),
            ordinals=torch.randperm(slots * 2, generator=generator)[:slots],
            valid=valid,
            index=0,
        )

    return draw


@pytest.fixture(scope="session")
def two_runs(small_dataset: Path, val_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Finished runs of other models, sizes and crops on the same classes; read-only by agreement."""
    runs = []
    for name, changes in (
        ("a", ("size_px=16",)),
        ("b", ("size_px=20", "model=wv_resnet_16_32_64_gn", "augment={eval_crop_fraction = 0.7}", "seed=8")),
    ):
        table = tiny_table(*changes)
        table["phases"] = table["phases"][:1]
        out = tmp_path_factory.mktemp("two_runs") / name
        data = DataConfig(shards=small_dataset, loader_threads=1)
        run_job(Job(recipe=recipe_from_table(table), data=data, out=out, device="cpu"))
        runs.append(out)
    return runs[0], runs[1]


@pytest.fixture(scope="session")
def shipped() -> Callable[[str], str]:
    """The text of a shipped recipe."""
    folder = resources.files("wv_train") / "recipes"
    return lambda name: (folder / f"{name}.toml").read_text(encoding="utf-8")


_ITERATE = Loader.__iter__
"""As it is before anything is patched, so that a later `stop_after` takes an earlier one's place."""


def stop_after(patch: pytest.MonkeyPatch, step: int | None) -> None:
    """A real SIGTERM arrives while the batch of the process's `step`-th step (from 1) is handed out; None: never."""
    handed_out = 0

    def interrupted(self: Loader) -> Iterator[Batch]:
        nonlocal handed_out
        for batch in _ITERATE(self):
            handed_out += self.train
            if self.train and handed_out == step:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    patch.setattr(Loader, "__iter__", interrupted)


@pytest.fixture(scope="session", name="stop_after")
def stop_after_fixture() -> Callable[[pytest.MonkeyPatch, int | None], None]:
    return stop_after
