"""`wv-bench loader` on a GPU, as far as it can be tried without one: its contestants, what NVML tells, its refusals."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from wv_bench import cli
from wv_bench.loader_chart import chart
from wv_bench.loader_inputs import prepare
from wv_bench.loader_report import document, print_table
from wv_bench.loader_run import Contestant, Row, measure_apart
from wv_bench.loader_sides import engines_on
from wv_bench.nvml import Gpu, GpuUse, NvmlError
from wv_bench.options import DeviceType


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [*map(str, arguments)])


class FakeNvmlError(Exception):
    pass


def fake_nvml(*, jpeg: bool = True, pids: tuple[int, ...] = (7, 8)) -> Any:
    """NVML of a GPU that is half busy, more so with every look; without `jpeg` it has no JPEG engine."""
    looks = iter(range(10, 100))

    def engine(_handle: object) -> list[int]:
        if not jpeg:
            raise FakeNvmlError("Not Supported")
        return [80, 167000]

    module: Any = ModuleType("pynvml")
    module.NVMLError = FakeNvmlError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    module.nvmlSystemGetDriverVersion = lambda: "590.1"
    module.nvmlDeviceGetUtilizationRates = lambda _: SimpleNamespace(gpu=next(looks), memory=0)
    module.nvmlDeviceGetJpgUtilization = engine
    module.nvmlDeviceGetDecoderUtilization = lambda _: [0, 167000]
    module.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=9_000_000_000, total=80_000_000_000)
    module.nvmlDeviceGetComputeRunningProcesses = lambda _: [
        SimpleNamespace(pid=pid, usedGpuMemory=1_000_000_000) for pid in pids
    ]
    return module


def test_nvml_is_asked_for_the_gpu_that_torch_means_and_watched_while_work_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = fake_nvml()
    asked: list[str] = []
    module.nvmlDeviceGetHandleByUUID = asked.append
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda name: SimpleNamespace(uuid={"cuda:3": "abc3"}[name])
    )
    gpu = Gpu.open("cuda:3")
    assert asked == ["GPU-abc3"]
    assert gpu.facts() == {"driver": "590.1", "memory_mb": "80,000"}
    with gpu.watch(lambda: {8}) as used:
        assert used == []
    (use,) = used
    assert use.busy_fraction is not None
    assert 0.10 <= use.busy_fraction <= 0.5
    assert (use.jpeg_fraction, use.decoder_fraction, use.memory_mb) == (0.8, 0.0, 1000.0)


def test_what_a_gpu_does_not_tell_is_no_zero() -> None:
    module = fake_nvml(jpeg=False, pids=())
    with Gpu(module, None).watch(lambda: {8}) as used:
        pass
    assert (used[0].jpeg_fraction, used[0].memory_mb) == (None, 9000.0)


def test_without_nvml_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NvmlError, match="pip install nvidia-ml-py"):
        Gpu.open("cuda:0")


def test_the_table_and_the_chart_show_the_gpu_where_it_was_watched(capsys: pytest.CaptureFixture[str]) -> None:
    who = Contestant(name="ours, x", kind="ours", dtype="uint8", command=(), setup={}, environment={}, engine="x")
    uses = [
        GpuUse(busy_fraction=busy, jpeg_fraction=0.25, decoder_fraction=None, memory_mb=1500 * busy)
        for busy in (0.5, 0.7)
    ]
    row = Row(contestant=who, rates=[10.0, 12.0], cpu_s_per_1000=[1.0] * 2, pss_mb=[1.0], first_batch_s=1.0, gpu=uses)
    about = {
        "processor": "cpu", "cores": 8, "load": 0, "python": "3", "versions": {}, "command": "wv-bench loader",
        "gpu": {"name": "H100", "driver": "590.1"},
    }  # fmt: skip
    result = document("title", [row], about, ["no figures of something"])
    assert result["rows"][0]["gpu"] == pytest.approx({"busy_fraction": 0.6, "jpeg_fraction": 0.25, "memory_mb": 1050.0})
    print_table(Console(width=100), result)
    text = capsys.readouterr().out
    page = chart(result)
    for shown in ("60%", "25%", "1,050", "no figures of something", "H100, driver 590.1"):
        assert shown in text
        assert shown in page
    assert json.loads(json.dumps(result)) == result


def test_torchvisions_decoder_is_a_contestant_that_shows_every_image(small_dataset: Path, tmp_path: Path) -> None:
    inputs = prepare(small_dataset, tmp_path / "work", 128)
    task = {"work": "", "size_px": 16, "batch_size": 32, "batches": 4, "workers": 2, "dtype": "uint8", "device": "cpu"}
    peer = Contestant(
        name="torchvision",
        kind="peer",
        dtype="uint8",
        command=(sys.executable, "-m", "wv_bench.peers.torchvision_cuda"),
        setup={**inputs.as_setup(), **task},
        environment=dict(os.environ),
    )
    counted: list[list[float]] = []
    (row,) = measure_apart(
        [peer],
        repeats=1,
        logs=tmp_path,
        timeout_s=60,
        after_round=lambda rows, _: counted.append(rows[0].rates),
        gpu=Gpu(fake_nvml(), None),
    )
    assert not row.problem
    assert len(counted[0]) == 1
    assert row.gpu[0].jpeg_fraction == pytest.approx(0.8)


def test_an_epoch_lasts_until_the_gpu_has_finished(tmp_path: Path) -> None:
    script = """
import sys, time
from wv_bench.peers.protocol import Setup, serve
def epoch(number):
    yield 2
serve(Setup.parse(sys.argv[1]), (), lambda data: epoch, finish=lambda: time.sleep(0.2))
"""
    setup = {
        "folder": "",
        "tars": [],
        "work": "",
        "samples": 2,
        "size_px": 8,
        "batch_size": 2,
        "batches": 1,
        "workers": 1,
    }
    peer = Contestant(
        name="slow GPU",
        kind="peer",
        dtype="uint8",
        command=(sys.executable, "-c", script),
        setup={**setup, "workers": 1, "dtype": "uint8", "device": "cuda:1"},
        environment=dict(os.environ),
    )
    (row,) = measure_apart([peer], repeats=2, logs=tmp_path, timeout_s=30, after_round=lambda *_: None)
    assert not row.problem
    assert len(row.rates) == 2
    assert max(row.rates) <= 2 / 0.2
    assert row.first_batch_s is not None
    assert row.first_batch_s < 0.2


def test_engines_that_need_a_gpu_take_part_only_there() -> None:
    assert {"turbo", "pillow"} <= set(engines_on("cpu")) <= set(engines_on("cuda"))
    assert "auto" not in engines_on("cuda")
    assert "dali-gpu" not in engines_on("cpu")


def test_dali_behind_our_reading_and_behind_its_own_are_contestants(
    small_dataset: Path, tmp_path: Path, dali: None
) -> None:
    result = run(
        "loader", small_dataset, "--size-px", 16, "--batch-size", 32, "--repeats", 1, "--cores", 1,
        "--only", "ours, dali-cpu", "--only", "DALI reader, our ops", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [(row["label"], row["status"], row["reason"]) for row in rows] == [
        ("ours, dali-cpu", "ok", ""),
        ("DALI reader, our ops, uint8", "ok", ""),
    ]
    assert rows[1]["ours_over_this"]["median"] == pytest.approx(rows[0]["rates"][0] / rows[1]["rates"][0])


@pytest.mark.parametrize("command", ["loader", "loader-sweep", "train"])
@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "(install "), ("cuda:x", "expected cpu, cuda or cuda:K"), ("gpu", "expected")]
)
def test_a_device_that_is_not_here_is_a_line(small_dataset: Path, command: str, device: str, message: str) -> None:
    if message == "(install " and torch.cuda.is_available():
        pytest.skip("CUDA is here")
    result = run(command, small_dataset, "--device", device)
    assert (result.exit_code, type(result.exception)) == (2, SystemExit), result.output
    error = result.output[result.output.index("Error: ") :]
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_loaders_compete_on_a_gpu(small_dataset: Path, tmp_path: Path, cuda: torch.device) -> None:
    result = run(
        "loader", small_dataset, "--device", str(cuda), "--size-px", 32, "--batch-size", 32, "--repeats", 1,
        "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = {row["label"]: row for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    for label in (*(f"ours, {engine}" for engine in engines_on("cuda")), "torchvision, GPU decode, uint8"):
        assert rows[label]["status"] == "ok", rows[label]["reason"]


@pytest.mark.parametrize("number", ["1", "128", "255", "256"])
def test_a_number_that_no_gpu_has_is_refused(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(click.BadParameter, match="1 CUDA devices are here, counted from 0"):
        DeviceType().convert(f"cuda:{number}", None, None)
