"""Which engine a name means, and what keeps one from working: on facts made up here, and on this machine's own."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wv_loader import EngineError
from wv_loader.engine_choice import ENGINES, Choice, Facts, choose_engine, gather_facts

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
DALI = (("nvidia-dali-cuda130", "2.4.0"),)
ALL = Facts(
    turbo_built=True,
    dali=DALI,
    dali_import_error=None,
    torch_cuda=(13, 0),
    driver_cuda=(13, 1),
    devices=2,
    devices_error="",
)
"""A machine on which everything works."""


@pytest.mark.parametrize("device", [None, CPU])
def test_on_a_cpu_auto_takes_turbo_and_pillow_where_it_is_not_built(device: torch.device | None) -> None:
    assert choose_engine("auto", device, facts=ALL) == Choice("turbo", "the fastest on a CPU")
    choice = choose_engine("auto", device, facts=replace(ALL, turbo_built=False))
    assert choice.name == "pillow"
    assert choice.reason.startswith("no turbo: it is not built here (install a C compiler")


def test_on_a_gpu_auto_takes_dali_where_it_works() -> None:
    assert choose_engine("auto", GPU, facts=ALL) == Choice("dali-gpu", "batches go to cuda:0, and DALI works there")


@pytest.mark.parametrize("name", ENGINES[1:])
def test_a_named_engine_that_works_is_taken_without_a_reason(name: str) -> None:
    assert choose_engine(name, None, facts=ALL) == Choice(name, "")


IMPOSSIBLE = [
    (
        {"dali": ()},
        "DALI is not installed (run `make setup EXTRAS=dev,dali`, or pip install nvidia-dali-cuda130)",
    ),
    (
        {"dali": (), "torch_cuda": (12, 8)},
        "DALI is not installed (run `make setup EXTRAS=dev,dali`, or pip install nvidia-dali-cuda120)",
    ),
    (
        {"dali": (("nvidia-dali-cuda120", "2.4.0"), *DALI)},
        "several builds of DALI lie in one folder (pip uninstall nvidia-dali-cuda120 nvidia-dali-cuda130, then "
        "pip install nvidia-dali-cuda130)",
    ),
    (
        {"dali_import_error": "libdali.so: cannot open shared object file"},
        "DALI 2.4.0 is installed but does not import: libdali.so: cannot open shared object file "
        "(pip install --force-reinstall --no-deps nvidia-dali-cuda130==2.4.0)",
    ),
    (
        {"dali": (("nvidia-dali-cuda120", "2.4.0"),)},
        "nvidia-dali-cuda120 is built for CUDA 12, torch for CUDA 13.0 (pip uninstall nvidia-dali-cuda120, then "
        "pip install nvidia-dali-cuda130)",
    ),
    (
        {"torch_cuda": (12, 6), "driver_cuda": (12, 8)},
        "nvidia-dali-cuda130 is built for CUDA 13, torch for CUDA 12.6, and the driver supports CUDA 12.8 "
        "(pip uninstall nvidia-dali-cuda130, then pip install nvidia-dali-cuda120)",
    ),
    (
        {"torch_cuda": None},
        "torch is built without CUDA (install its build for CUDA, as `make setup` does)",
    ),
    (
        {"driver_cuda": None, "devices": 0},
        "no NVIDIA driver here, libcuda.so.1 is missing (install driver 580 or newer; into a container the host's "
        "comes with --gpus all)",
    ),
    (
        {"driver_cuda": (12, 8), "devices": 0},
        "the driver supports CUDA 12.8, torch is built for CUDA 13.0 (install driver 580 or newer)",
    ),
    (
        {"torch_cuda": (14, 0), "driver_cuda": (13, 1), "devices": 0},
        "the driver supports CUDA 13.1, torch is built for CUDA 14.0 (install a newer driver)",
    ),
    ({"devices": 0}, "torch finds no GPU (look at nvidia-smi and at CUDA_VISIBLE_DEVICES)"),
    (
        {"devices": 0, "devices_error": "CUDA initialization: Error 803"},
        "torch finds no GPU: CUDA initialization: Error 803 (look at nvidia-smi and at CUDA_VISIBLE_DEVICES)",
    ),
]


@pytest.mark.parametrize(("other", "problem"), IMPOSSIBLE, ids=[problem[:40] for _, problem in IMPOSSIBLE])
def test_dali_on_a_gpu_that_cannot_be_is_refused_by_name_and_passed_over_by_auto(
    other: dict[str, object], problem: str
) -> None:
    facts = replace(ALL, **other)  # type: ignore[arg-type]  # any of the fields
    for device in (None, GPU):
        with pytest.raises(EngineError) as refused:
            choose_engine("dali-gpu", device, facts=facts)
        assert str(refused.value) == f"engine 'dali-gpu': {problem}; engine 'auto' takes what works here"
    assert choose_engine("auto", GPU, facts=facts) == Choice("turbo", f"no dali-gpu: {problem}")
    choice = choose_engine("auto", GPU, facts=replace(facts, turbo_built=False))
    assert choice.name == "pillow"
    assert choice.reason.startswith(f"no dali-gpu: {problem}; no turbo: it is not built here (")


@pytest.mark.parametrize(("devices", "expected"), [(1, "expected cuda:0 only"), (4, "expected cuda:0 to cuda:3")])
def test_a_gpu_that_is_not_there_is_named(devices: int, expected: str) -> None:
    with pytest.raises(EngineError, match=f"no device cuda:4 here \\({expected}\\)"):
        choose_engine("dali-gpu", torch.device("cuda", 4), facts=replace(ALL, devices=devices))


def test_dali_on_a_cpu_needs_dali_and_nothing_of_a_gpu() -> None:
    bare = replace(ALL, torch_cuda=None, driver_cuda=None, devices=0)
    assert choose_engine("dali-cpu", CPU, facts=bare).name == "dali-cpu"
    assert choose_engine("dali-cpu", GPU, facts=ALL).name == "dali-cpu"
    for missing in (replace(bare, dali=()), replace(bare, dali_import_error="no such symbol")):
        with pytest.raises(EngineError, match=r"^engine 'dali-cpu': DALI .*; engine 'auto' takes what works here$"):
            choose_engine("dali-cpu", CPU, facts=missing)


def test_decoding_on_a_gpu_is_refused_for_batches_on_a_cpu() -> None:
    with pytest.raises(EngineError, match=r"found device cpu; there is one here \(take device cuda"):
        choose_engine("dali-gpu", CPU, facts=ALL)
    with pytest.raises(EngineError, match=r"found device cpu; no NVIDIA driver here.*install driver 580"):
        choose_engine("dali-gpu", CPU, facts=replace(ALL, driver_cuda=None, devices=0))


def test_effects_keep_images_off_the_gpu() -> None:
    choice = choose_engine("auto", GPU, has_effects=True, facts=ALL)
    assert choice.name == "turbo"
    assert choice.reason.startswith("no dali-gpu: colour jitter, RandAugment and erasing are made on the CPU")
    with pytest.raises(EngineError, match="engine 'dali-gpu': colour jitter"):
        choose_engine("dali-gpu", GPU, has_effects=True, facts=ALL)
    assert choose_engine("dali-cpu", None, has_effects=True, facts=ALL).name == "dali-cpu"


def test_dali_takes_no_worker_processes() -> None:
    assert choose_engine("auto", GPU, processes=2, facts=ALL).name == "turbo"
    assert choose_engine("turbo", GPU, processes=2, facts=ALL).name == "turbo"
    for name in ("dali-cpu", "dali-gpu"):
        with pytest.raises(EngineError, match=f"engine '{name}': .*, found processes=2 \\(leave it at 0\\)"):
            choose_engine(name, None, processes=2, facts=ALL)


def test_the_gpu_page_explains_every_message_and_no_others() -> None:
    said = [problem for _, problem in IMPOSSIBLE]
    for options in ({"device": torch.device("cuda", 4)}, {"device": CPU}, {"has_effects": True}, {"processes": 2}):
        with pytest.raises(EngineError) as refused:
            choose_engine("dali-gpu", facts=ALL, **{"device": None, **options})  # type: ignore[arg-type]
        said.append(str(refused.value).removeprefix("engine 'dali-gpu': "))
    page = (Path(__file__).resolve().parents[2] / "docs" / "gpu.md").read_text()
    (table,) = re.findall(r"\| it says \| what to do \|\n.*\n((?:\|.*\n)+)", page)
    cells = [row.split("|")[1].strip() for row in table.splitlines()]
    patterns = [re.escape(cell).replace("…", ".*") for cell in cells]
    for pattern in patterns:
        assert any(re.match(pattern, problem) for problem in said), pattern
    kinds = [re.sub(r"\d+(\.\d+)?", r"\\d+(\\.\\d+)?", pattern) for pattern in patterns]
    for problem in said:
        assert any(re.match(kind, problem) for kind in kinds), problem


def test_what_is_not_an_engine_or_not_built_is_refused() -> None:
    with pytest.raises(EngineError, match="engine 'dali': expected one of auto, turbo, pillow, dali-cpu, dali-gpu"):
        choose_engine("dali", None, facts=ALL)
    with pytest.raises(EngineError, match="engine 'turbo' is not built here: install a C compiler"):
        choose_engine("turbo", None, facts=replace(ALL, turbo_built=False))


def test_the_facts_of_this_machine_are_those_of_torch() -> None:
    facts = gather_facts(dali=True)
    assert facts.devices == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert facts.torch_cuda == (torch.version.cuda and tuple(map(int, torch.version.cuda.split("."))))
    assert facts.driver_cuda is not None or not facts.devices
    if not facts.devices:
        with pytest.raises(EngineError, match=r"engine 'dali-gpu': (torch|no NVIDIA driver|the driver)"):
            choose_engine("dali-gpu", None)


@pytest.mark.usefixtures("dali")
def test_the_dali_that_is_installed_here_is_found() -> None:
    ((name, version),) = gather_facts(dali=True).dali
    assert name.startswith("nvidia-dali-cuda")
    assert version >= "2.4"
