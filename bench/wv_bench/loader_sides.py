"""What `wv-bench loader` and `wv-bench loader-sweep` share: our contestants, their cores, the machine with its GPU."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from wv_bench.loader_inputs import Inputs
from wv_bench.loader_run import Contestant
from wv_bench.measure import machine
from wv_bench.nvml import Gpu, NvmlError
from wv_bench.options import Device
from wv_loader import ENGINES


@contextmanager
def some_cores(cores: int | None, *, most: int | None = None) -> Iterator[int]:
    """Hold this process and all that it starts to some of its cores: how many. None: all of them, or the `most`.

    Raises:
        click.UsageError: there are not as many.
    """
    allowed = os.sched_getaffinity(0)
    count = cores or min(len(allowed), most or len(allowed))
    if count > len(allowed):
        raise click.UsageError(f"--cores {count}: this process may use {len(allowed)}")
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield count
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def work_folder(work: Path | None) -> Iterator[Path]:
    """A folder for images and logs: `work`, which is made and kept, or a temporary one."""
    kept = work if work is not None else Path(tempfile.mkdtemp(prefix="wv-bench-"))
    try:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
    finally:
        if work is None:
            shutil.rmtree(kept, ignore_errors=True)


def engines_on(device: str) -> list[str]:
    """Engines whose batches can be on a type of device."""
    return [engine for engine in ENGINES if engine != "auto" and (engine != "dali-gpu" or device == "cuda")]


def gpu_of(device: Device) -> tuple[Gpu | None, list[str]]:
    """What watches the GPU, if it is one and can be watched; and lines that say why not."""
    if device.type == "cpu":
        return None, []
    try:
        return Gpu.open(str(device)), []
    except NvmlError as error:
        return None, [f"no figures of the GPU: {error}"]


def machine_on(device: Device, gpu: Gpu | None) -> dict[str, Any]:
    """What a figure depends on, with the GPU where there is one."""
    dali = ("nvidia-dali-cuda130",) if find_spec("nvidia.dali") else ()
    about = machine(("torch", "torchvision", "numpy", *dali)) | {"load": round(os.getloadavg()[0], 2)}
    if device.type == "cuda":
        import torch

        facts = {} if gpu is None else gpu.facts()
        about["gpu"] = {"name": torch.cuda.get_device_name(str(device)), "cuda": str(torch.version.cuda), **facts}
    return about


def ours(
    name: str,
    shards: Path,
    inputs: Inputs,
    setup: dict[str, Any],
    *,
    engine: str,
    kind: str = "ours",
    what: str = "loader",
    dali: dict[str, Any] | None = None,
) -> Contestant:
    """A process of loader_ours.py. `what` it does, see there; `dali`: options of DaliOptions."""
    task = {"what": what, "engine": engine, "dali": dali or {}}
    return Contestant(
        name=name,
        kind=kind,
        dtype="" if kind == "reading" else "uint8",
        command=(sys.executable, "-m", "wv_bench.loader_ours"),
        setup={**setup, **inputs.as_setup(), "work": str(inputs.root), "dtype": "uint8", "shards": str(shards), **task},
        environment=dict(os.environ),
        engine=engine,
    )
