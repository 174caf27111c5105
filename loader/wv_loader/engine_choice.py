"""Which decode engine a name means on a device, and why; or what keeps it from working here, and what to do about it.

It makes no engine. DALI is imported by `decode_dali.py` alone, which `gather_facts` tries to import; torch only where
DALI is asked for, so that worker processes do without it.
"""

import ctypes
import re
import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import TYPE_CHECKING

from wv_loader.errors import EngineError

if TYPE_CHECKING:
    import torch

ENGINES = ("auto", "turbo", "pillow", "dali-cpu", "dali-gpu")
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""First driver branch that runs every minor version of a CUDA major version."""
_DALI_NAME = re.compile(r"nvidia-dali(?:-nightly|-weekly)?-cuda(\d+)\d")
_GET_TURBO = "install a C compiler, python3-dev and libjpeg-dev and run `make setup`"


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine to make."""

    name: str
    """One of ENGINES, not `auto`."""
    reason: str
    """Why `auto` took it, and what it passed over; "" where the engine was named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is installed and plugged in here, as far as an engine needs it. Versions of CUDA are (major, minor)."""

    turbo_built: bool
    dali: tuple[tuple[str, str], ...]
    """Names and versions of the DALI distributions that are installed; more than one share a folder."""
    dali_import_error: str | None
    """First line of what importing it said; None where it imports, or is not installed."""
    torch_cuda: tuple[int, int] | None
    """What torch is built for; None: without CUDA."""
    driver_cuda: tuple[int, int] | None
    """The newest that the driver supports; None: no driver."""
    devices: int
    """GPUs that torch can use."""
    devices_error: str
    """What torch said where it can use none; may be empty."""


def choose_engine(
    name: str,
    device: "torch.device | None",
    *,
    has_effects: bool = False,
    processes: int = 0,
    facts: Facts | None = None,
) -> Choice:
    """The engine to make for a name: `auto` is the fastest that works here, `dali-gpu` only for a CUDA device.

    Args:
        name: one of ENGINES.
        device: where the batches shall be; None: in main memory, and with `dali-gpu` on the current CUDA device.
        has_effects: images are changed after they were cropped (colour jitter, RandAugment, erasing).
        processes: worker processes, as of `Loader`.
        facts: None: those of this machine, looked up as far as the name needs them.

    Raises:
        EngineError: there is no such engine, or the one that was named can't work here.
    """
    if name not in ENGINES:
        raise EngineError(f"engine {name!r}: expected one of {', '.join(ENGINES)}")
    on_gpu = device is not None and device.type == "cuda"
    dali = name if name.startswith("dali") else "dali-gpu" if name == "auto" and on_gpu else None
    problem = _not_with(dali, has_effects, processes) if dali else None
    if facts is None:
        facts = gather_facts(dali=dali is not None and problem is None)
    if dali == "dali-gpu":
        problem = problem or _not_on(device, facts) or _no_gpu(facts, device) or _no_dali(facts) or _other_cuda(facts)
    elif dali:
        problem = problem or _no_dali(facts)
    if name == "turbo" and not facts.turbo_built:
        raise EngineError(f"engine 'turbo' is not built here: {_GET_TURBO}, or take engine 'pillow'")
    if name == dali and problem:
        raise EngineError(f"engine {name!r}: {problem}; engine 'auto' takes what works here")
    if name != "auto":
        return Choice(name, "")
    if dali and not problem:
        return Choice(dali, f"batches go to {device}, and DALI works there")
    passed_over = [f"no {dali}: {problem}"] if problem else []
    if facts.turbo_built:
        return Choice("turbo", "; ".join(passed_over) or "the fastest on a CPU")
    return Choice("pillow", "; ".join([*passed_over, f"no turbo: it is not built here ({_GET_TURBO})"]))


def missing_gpu(device: "torch.device | None" = None) -> str | None:
    """What keeps torch from working on a CUDA device here (None: on any), and in brackets what to do; None: nothing."""
    return _no_gpu(gather_facts(dali=True), device)


def usable_gpus() -> int:
    """GPUs that torch can use: it counts some also where the driver is too old for them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gather_facts(*, dali: bool) -> Facts:
    """The facts of this machine; those of DALI and of GPUs, which take a second, only with `dali`."""
    built = find_spec("wv_loader._turbo") is not None
    found = _distributions() if dali else ()
    devices, devices_error = _devices() if dali else (0, "")
    return Facts(
        turbo_built=built,
        dali=found,
        dali_import_error=_import_error() if found else None,
        torch_cuda=_torch_cuda() if dali else None,
        driver_cuda=_driver_cuda() if dali else None,
        devices=devices,
        devices_error=devices_error,
    )


# -- what keeps DALI from working: what was expected and found, and in brackets what to do about it -------------------


def _not_with(dali: str, has_effects: bool, processes: int) -> str | None:
    """What was asked for that the engine has no part in, wherever it runs."""
    if dali == "dali-gpu" and has_effects:
        return (
            "colour jitter, RandAugment and erasing are made on the CPU (leave them out, or make them in a transform)"
        )
    if processes:
        return f"it has no use for worker processes, found processes={processes} (leave it at 0)"
    return None


def _not_on(device: "torch.device | None", facts: Facts) -> str | None:
    if device is None or device.type == "cuda":
        return None
    what_then = _no_gpu(facts, None) or "there is one here (take device cuda, or engine 'dali-cpu')"
    return f"it decodes on a GPU, found device {device}; {what_then}"


def _no_gpu(facts: Facts, device: "torch.device | None") -> str | None:
    if facts.torch_cuda is None:
        return "torch is built without CUDA (install its build for CUDA, as `make setup` does)"
    oldest = _OLDEST_DRIVER.get(facts.torch_cuda[0])
    driver = f"driver {oldest} or newer" if oldest else "a newer driver"
    if facts.driver_cuda is None:
        return (
            f"no NVIDIA driver here, libcuda.so.1 is missing (install {driver}; "
            "into a container the host's comes with --gpus all)"
        )
    if facts.driver_cuda[0] < facts.torch_cuda[0]:
        return (
            f"the driver supports CUDA {_version(facts.driver_cuda)}, torch is built for CUDA "
            f"{_version(facts.torch_cuda)} (install {driver})"
        )
    if not facts.devices:
        said = f": {facts.devices_error}" if facts.devices_error else ""
        return f"torch finds no GPU{said} (look at nvidia-smi and at CUDA_VISIBLE_DEVICES)"
    if device is not None and (device.index or 0) >= facts.devices:
        last = f"cuda:0 to cuda:{facts.devices - 1}" if facts.devices > 1 else "cuda:0 only"
        return f"no device {device} here (expected {last})"
    return None


def _no_dali(facts: Facts) -> str | None:
    wanted = _fitting_dali(facts)
    if not facts.dali:
        return f"DALI is not installed (run `make setup EXTRAS=dev,dali`, or pip install {wanted})"
    if len(facts.dali) > 1:
        names = " ".join(name for name, _ in facts.dali)
        return f"several builds of DALI lie in one folder (pip uninstall {names}, then pip install {wanted})"
    if facts.dali_import_error is not None:
        name, version = facts.dali[0]
        again = f"pip install --force-reinstall --no-deps {name}=={version}"
        return f"DALI {version} is installed but does not import: {facts.dali_import_error} ({again})"
    return None


def _other_cuda(facts: Facts) -> str | None:
    """DALI shares a GPU with torch, so it must be built for the same major version of CUDA. After `_no_gpu`."""
    (name, _) = facts.dali[0]
    cuda = _dali_cuda(name)
    assert facts.torch_cuda is not None
    assert facts.driver_cuda is not None
    if cuda == facts.torch_cuda[0]:
        return None
    other = f"torch for CUDA {_version(facts.torch_cuda)}"
    if cuda > facts.driver_cuda[0]:
        other += f", and the driver supports CUDA {_version(facts.driver_cuda)}"
    return f"{name} is built for CUDA {cuda}, {other} (pip uninstall {name}, then pip install {_fitting_dali(facts)})"


def _fitting_dali(facts: Facts) -> str:
    """Name of the distribution for torch's CUDA; for the newest where torch has none."""
    return f"nvidia-dali-cuda{facts.torch_cuda[0] if facts.torch_cuda else max(_OLDEST_DRIVER)}0"


def _dali_cuda(name: str) -> int:
    """CUDA's major version that a DALI distribution is built for, by its name: nvidia-dali-cuda130."""
    match = _DALI_NAME.fullmatch(name)
    assert match is not None
    return int(match[1])


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# -- facts ----------------------------------------------------------------------------------------------------------


def _distributions() -> tuple[tuple[str, str], ...]:
    # A distribution whose metadata are broken has no name.
    found = {(str(one.metadata["Name"]).lower().replace("_", "-"), one.version) for one in distributions()}
    return tuple(sorted((name, version) for name, version in found if _DALI_NAME.fullmatch(name)))


def _import_error() -> str | None:
    try:
        import_module("wv_loader.decode_dali")
    except Exception as error:  # a library of another version raises what it likes
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _torch_cuda() -> tuple[int, int] | None:
    import torch

    if torch.version.cuda is None:
        return None
    major, minor = torch.version.cuda.split(".")[:2]
    return int(major), int(minor)


def _driver_cuda() -> tuple[int, int] | None:
    """By the driver's own library, which needs neither a GPU nor a running CUDA."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _devices() -> tuple[int, str]:
    """GPUs that torch can use; where it can use none, what it has to say."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if count := usable_gpus():
            return count, ""
    return 0, str(said[0].message).strip().splitlines()[0] if said else ""
