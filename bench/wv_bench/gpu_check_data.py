"""Data sets for `wv-bench gpu-check` where the user names none: as heavy to decode as photographs, as long as wanted.

Pictures of noise whose spectrum falls with the frequency, as that of photographs does; how fast was chosen for their
JPEGs to have as many bytes as web photographs: 103 KB at 500×375 pixels, 31 KB at a shorter side of 256. They are
packed by `wv-ingest`, then repeated by links to one tar: reading costs nothing, so storage is not tested.
"""

import io
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wv_bench.first_batch import make_set

_SIDES = ((500, 375), (375, 500), (500, 333))
"""Width and height in turn: usual ones of web photographs."""
_QUALITY = 96
_CONTRAST = 48.0
_FALL = 1.4
"""Power of the frequency that the amplitude falls with."""
_CLASSES = 1000
_IMAGES_PER_CLASS = 20

SETS = {"256 px": "256", "originals": "0"}
"""Name of a set, and `--size` of build-shards."""


def make_sets(folder: Path, *, samples: int, distinct: int) -> dict[str, Path]:
    """Sets of about `samples` samples each, of `distinct` different pictures; one that is there is not made again.

    Raises:
        click.ClickException: wv-ingest failed.
    """
    made = {}
    for name, size in SETS.items():
        out = folder / f"set-{size}-{samples}-{distinct}"
        if not (out / "manifest.json").exists():
            source = _pictures(folder / f"pictures-{distinct}", distinct)
            packed = folder / f"packed-{size}-{distinct}"
            if not (packed / "manifest.json").exists():
                _ingest("build-shards", str(source), str(packed), "--size", size)
            out.mkdir(exist_ok=True)
            for left in out.iterdir():  # of a run that was stopped
                left.unlink()
            make_set(packed, out, samples, max(2, min(_CLASSES, samples // _IMAGES_PER_CLASS)))
        made[name] = out
    return made


def draw(number: int) -> bytes:
    """Picture `number` as a JPEG file."""
    rng = np.random.default_rng(number)
    width, height = _SIDES[number % len(_SIDES)]
    damping = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) ** _FALL  # (H, W/2 + 1)
    damping[0, 0] = np.inf
    planes = [_plane(rng, damping, (height, width)) for _ in range(3)]
    luma, blue, red = planes[0] * _CONTRAST + 128, planes[1] * _CONTRAST / 4 + 128, planes[2] * _CONTRAST / 4 + 128
    pixels = np.clip(np.stack([luma, blue, red], axis=2), 0, 255).astype(np.uint8)  # (H, W, 3)
    file = io.BytesIO()
    Image.fromarray(pixels, "YCbCr").save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _plane(rng: np.random.Generator, damping: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """(H, W) of mean 0 and deviation 1; its amplitude falls with the frequency."""
    plane = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) / damping, s=shape)
    normal: NDArray[np.float64] = plane / plane.std()
    return normal


def _pictures(folder: Path, count: int) -> Path:
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        for number in range(count):
            path = unfinished / f"class{number % 10}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw(number))
        unfinished.rename(folder)
    return folder


def _ingest(*arguments: str) -> None:
    command = [sys.executable, "-m", "wv_ingest.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise click.ClickException(f"wv-ingest {arguments[0]} failed: {lines[-1]}")
