"""The data sets of `wv-bench methods`: CIFAR-10N as it is, made skewed, and the drawn demonstration set.

CIFAR-10N is read from `cifar10n_train.npz` and `cifar10n_test.npz`: `jpeg` (uint8, all files end to end), `offsets`
(int64, n + 1), labels `clean`, `worse`, `random1` (uint8). Shards are made by `wv-ingest`, as a user would make them.
A set is there as a whole or not at all.
"""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from wv_bench.stage_process import last_line

TRAIN_NPZ, TEST_NPZ = "cifar10n_train.npz", "cifar10n_test.npz"
SETS = ("worse", "random1", "worse-skewed", "random1-skewed", "demo")
SKEW = 100.0
"""Samples of the largest class over those of the smallest."""
SUBSET_SEED = 0
"""Of the images that a set takes, and of which classes are the rare ones; the same for all seeds of a run."""
_SKEWED = "-skewed"
_DEMO_IMAGES = 3000
_DEMO_SIZE_PX = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime:
    """How long a run is."""

    name: str
    images: int
    epochs: int


REGIMES = {
    regime.name: regime
    for regime in (
        Regime(name="memorise", images=5000, epochs=60),
        Regime(name="short", images=20_000, epochs=16),
        Regime(name="published", images=50_000, epochs=100),
    )
}
"""By name. Plain training has the time to memorise in the first, and not in the second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """A set as it lies on disk."""

    name: str
    train: Path
    test: Path
    """Clean labels."""
    truth: Path
    """path, label, true_label of the training samples."""


def is_skewed(name: str) -> bool:
    """Whether a set's classes differ in size by design."""
    return name.endswith(_SKEWED) or name == "demo"


def runs_in(name: str, regime: str) -> bool:
    """Whether a set is used in a regime: the demonstration set is too small for all but one."""
    return name != "demo" or regime == "memorise"


def skewed_counts(available: NDArray[np.int64], images: int, ratio: float = SKEW) -> NDArray[np.int64]:
    """Samples to take of each class, (K,): n_k = n_max · ratio^(−k / (K − 1)), k the class's rank.

    Which class has which rank is drawn. n_max gives `images` in all, or is the largest that every class can fulfil.

    Args:
        available: (K,) samples that there are.
        images: samples wanted in all.
        ratio: of the largest class to the smallest.
    """
    classes = len(available)
    ranks = np.random.default_rng(SUBSET_SEED).permutation(classes)
    shares = ratio ** (-ranks / (classes - 1))
    largest = min(images / shares.sum(), (available / shares).min())
    counts: NDArray[np.int64] = np.maximum(1, np.floor(largest * shares + 1e-9)).astype(np.int64)
    return counts


def planned_images(name: str, regime: Regime, labels: Callable[[str], NDArray[np.int64]]) -> int:
    """Samples of a set in a regime; `labels` gives the noisy labels of all of CIFAR-10N's images by their name."""
    if name == "demo":
        return _DEMO_IMAGES
    if not name.endswith(_SKEWED):
        return regime.images
    available = np.bincount(labels(name.removesuffix(_SKEWED)))
    return int(skewed_counts(available, regime.images).sum())


class Cifar10n:
    """The labels of the training images, read once."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._labels: dict[str, NDArray[np.int64]] = {}

    def folder(self) -> Path:
        """Where the files are. Raises click's error where they are not."""
        if self._directory is None:
            raise click.UsageError(f"--data is missing: the folder that holds {TRAIN_NPZ} and {TEST_NPZ}")
        for name in (TRAIN_NPZ, TEST_NPZ):
            if not (self._directory / name).is_file():
                raise click.UsageError(f"--data {self._directory}: expected {name} there")
        return self._directory

    def labels(self, name: str) -> NDArray[np.int64]:
        """(50,000,) of `worse`, `random1` or `clean`."""
        if name not in self._labels:
            with np.load(self.folder() / TRAIN_NPZ) as data:
                self._labels[name] = data[name].astype(np.int64)
        return self._labels[name]


def make_set(out: Path, name: str, regime: Regime, source: Cifar10n) -> DataSet:
    """The set, made in `out` where it is not there yet."""
    if name == "demo":
        folder = _whole(out / "demo", _make_demo)
        return DataSet(name=name, train=folder / "train", test=folder / "test", truth=folder / "truth.csv")
    images = planned_images(name, regime, source.labels)
    folder = _whole(out / f"{name}-{images}", lambda at: _make_train(at, name, regime, source))
    test = _whole(out / "cifar10-test", lambda at: _make_test(at, folder / "train", source))
    return DataSet(name=name, train=folder / "train", test=test / "test", truth=folder / "truth.csv")


def _whole(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made under another name and renamed when all is in it."""
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def _make_train(folder: Path, name: str, regime: Regime, source: Cifar10n) -> None:
    labels, clean = source.labels(name.removesuffix(_SKEWED)), source.labels("clean")
    chosen = _choose(labels, regime.images, skewed=name.endswith(_SKEWED))
    rows = [(int(at), int(labels[at]), int(clean[at])) for at in chosen]
    _write_images(folder / "raw", source.folder() / TRAIN_NPZ, rows)
    _ingest("build-shards", folder / "raw" / "list.csv", folder / "train", "--size", 0, "--no-report")
    with (folder / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "true_label"])
        table.writerows([_path(at), label, true] for at, label, true in rows)
    shutil.rmtree(folder / "raw")


def _choose(labels: NDArray[np.int64], images: int, *, skewed: bool) -> NDArray[np.int64]:
    """Which images a set takes, in their order."""
    order = np.random.default_rng(SUBSET_SEED).permutation(len(labels))
    if not skewed:
        return np.sort(order[:images])
    counts = skewed_counts(np.bincount(labels), images)
    return np.sort(np.concatenate([order[labels[order] == one][:count] for one, count in enumerate(counts)]))


def _make_test(folder: Path, train: Path, source: Cifar10n) -> None:
    with np.load(source.folder() / TEST_NPZ) as data:
        rows = [(at, int(label), int(label)) for at, label in enumerate(data["clean"])]
    _write_images(folder / "raw", source.folder() / TEST_NPZ, rows)
    words = ("--size", 0, "--no-report", "--split", "val", "--classes-from", train)
    _ingest("build-shards", folder / "raw" / "list.csv", folder / "test", *words)
    shutil.rmtree(folder / "raw")


def _make_demo(folder: Path) -> None:
    raw, common = folder / "raw", ("--size", _DEMO_SIZE_PX, "--no-report")
    _ingest("sample-data", raw, "--images", _DEMO_IMAGES)
    _ingest("build-shards", raw, folder / "train", *common)
    _ingest("build-shards", raw, folder / "test", *common, "--split", "val", "--classes-from", folder / "train")
    shutil.copy(raw / "truth.csv", folder / "truth.csv")
    shutil.rmtree(raw)


def _write_images(folder: Path, npz: Path, rows: list[tuple[int, int, int]]) -> None:
    """Image files and `list.csv` with path and label; rows of (number of the image, label, true label)."""
    (folder / "images").mkdir(parents=True)
    with np.load(npz) as data, (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        jpeg, offsets = data["jpeg"], data["offsets"]
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for at, label, _ in rows:
            (folder / _path(at)).write_bytes(jpeg[offsets[at] : offsets[at + 1]].tobytes())
            table.writerow([_path(at), label])


def _path(at: int) -> str:
    return f"images/{at:06d}.jpg"


def _ingest(*words: Any) -> None:
    """A command of wv-ingest; what it says is shown only where it fails."""
    command = [sys.executable, "-m", "wv_ingest.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode:
        said = last_line(done.stderr or done.stdout, f"ended with {done.returncode}")
        raise click.ClickException(f"wv-ingest {words[0]} {os.fspath(words[1])}: {said}")
