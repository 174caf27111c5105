"""What a peer of `wv-bench loader` and the benchmark say to each other, once for all of them.

A peer is a process that lives for the whole run. It is given its setup as JSON in its first argument, writes its own
format once, and then runs an epoch for every line on its standard input. Each answer is a line of JSON on its standard
output. What the loaders print goes to standard error.

This file and the peers beside it run in an environment of their own: they import nothing else of this project.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
FLIP = 0.5
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What every peer is given; each takes what it needs."""

    folder: str
    """The images as a folder of class folders."""
    tars: tuple[str, ...]
    """The same images as WebDataset tars, with DALI's index (.idx) beside each."""
    work: str
    """Where this peer may keep the images in its own format."""
    samples: int
    """Images in the folder, and in the tars."""
    size_px: int
    batch_size: int
    batches: int
    """Batches of an epoch, at most."""
    workers: int
    """Processes or threads that may decode."""
    dtype: str
    """`uint8`, or `float32`: normalised."""
    device: str = "cpu"
    """Where the batches go: torch's name of it."""

    @classmethod
    def parse(cls, text: str) -> "Setup":
        """From the JSON that the benchmark passes."""
        values: dict[str, Any] = json.loads(text)
        values["tars"] = tuple(values["tars"])
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


Epoch = Callable[[int], Iterable[int]]
"""Starts an epoch, given its number; yields the number of images of each batch when the batch is there. A loader that
never stops between epochs works on while others are measured: it takes what is ready then, and yields 0 to start the
clock."""


def serve(
    setup: Setup,
    packages: tuple[str, ...],
    open_loader: Callable[[Path | None], Epoch],
    *,
    write: tuple[str, Callable[[Path], None]] | None = None,
    finish: Callable[[], None] | None = None,
) -> None:
    """Answer the benchmark until it hangs up. With `prepare` as second argument only the peer's format is written.

    Args:
        setup: as given.
        packages: distributions whose versions are shown.
        open_loader: makes the loader, given the folder of its format; its time counts as part of the first epoch's
            time to the first batch.
        write: name of the format's folder, and what writes it.
        finish: waits for what a GPU was asked to do, at the end of every epoch.
    """
    answers = _private_stdout()
    data = None if write is None else Path(setup.work) / write[0]
    if write is not None and data is not None and not data.exists():
        unfinished = data.with_name(f"{data.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write[1](unfinished)
        unfinished.rename(data)
    _answer(answers, {"versions": {name: _version(name) for name in packages}, "data": str(data or "")})
    if sys.argv[2:] == ["prepare"]:
        return
    epoch: Epoch | None = None
    for line in sys.stdin:
        started = time.perf_counter()
        epoch = epoch or open_loader(data)
        first_s, samples, count = 0.0, 0, 0
        for images in epoch(int(line)):
            if not images:  # a loader that never stops has thrown away what it made while it was not asked
                started = time.perf_counter()
                continue
            first_s = first_s or time.perf_counter() - started
            samples += images
            count += 1
            if count == setup.batches:
                break
        if finish is not None:
            finish()
        seconds = time.perf_counter() - started
        _answer(answers, {"samples": samples, "seconds": seconds, "first_s": first_s})


def image_files(setup: Setup) -> Iterator[tuple[Path, int]]:
    """Every image of the folder with its label, class by class."""
    for label, folder in enumerate(sorted(Path(setup.folder).iterdir())):
        for path in sorted(folder.iterdir()):
            yield path, label


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    print(json.dumps(values), file=answers, flush=True)


def _private_stdout() -> TextIO:
    """The standard output for answers alone: whatever else is printed goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.set_inheritable(answers.fileno(), False)
    os.dup2(2, 1)
    return answers


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
