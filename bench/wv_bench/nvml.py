"""What a GPU does while others work on it, by NVIDIA's management library (package nvidia-ml-py, extra [dali]).

Looks from outside, so that every contestant is seen alike. NVML averages its figures over a period of its own, up to a
second: over shorter epochs they are rough. It changes nothing on the GPU.
"""

import statistics
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

_SAMPLING_S = 0.05


class NvmlError(Exception):
    """There are no figures of the GPU; one line that says why and what helps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuUse:
    """Means over a time that was watched; a figure is None where the GPU does not tell it."""

    busy_fraction: float | None
    """Share of the time that a kernel ran."""
    jpeg_fraction: float | None
    """Of the JPEG engine."""
    decoder_fraction: float | None
    """Of the video decoder."""
    memory_mb: float | None
    """Peak: of the processes that were watched where the GPU tells it, else of the whole GPU."""


class Gpu:
    """A GPU as NVML knows it."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def open(cls, device: str) -> Self:
        """The GPU that torch calls `device`, as `cuda:0`.

        Raises:
            NvmlError: NVML can't be asked.
        """
        try:
            import pynvml  # of the extra [dali]
        except ModuleNotFoundError:
            raise NvmlError("the package nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
        import torch  # the commands that do without a GPU start without it

        # CUDA may count the GPUs otherwise than NVML does.
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        try:
            pynvml.nvmlInit()
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(name))
        except pynvml.NVMLError as error:
            raise NvmlError(f"NVML does not tell of GPU {uuid}: {error}") from None

    def facts(self) -> dict[str, str]:
        """Driver, and memory of the GPU in MB."""
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo)
        return {
            "driver": str(self._nvml.nvmlSystemGetDriverVersion()),
            "memory_mb": "unknown" if memory is None else f"{memory.total / 1e6:,.0f}",
        }

    @contextmanager
    def watch(self, pids: Callable[[], Collection[int]]) -> Iterator[list[GpuUse]]:
        """Sample while the body runs; the list that it is given then holds one value.

        pids: processes whose memory counts.
        """
        found: list[GpuUse] = []
        samples: list[tuple[float | None, ...]] = [self._sample(pids())]
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(_SAMPLING_S):
                samples.append(self._sample(pids()))

        thread = threading.Thread(target=sample, name="wv-bench-nvml")
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()
            samples.append(self._sample(pids()))
            busy, jpeg, decoder, memory = (
                [x for x in column if x is not None] for column in zip(*samples, strict=True)
            )
            found.append(
                GpuUse(
                    busy_fraction=_mean(busy),
                    jpeg_fraction=_mean(jpeg),
                    decoder_fraction=_mean(decoder),
                    memory_mb=max(memory, default=None),
                )
            )

    def _sample(self, pids: Collection[int]) -> tuple[float | None, ...]:
        nvml = self._nvml
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates)
        engines = (self._ask(nvml.nvmlDeviceGetJpgUtilization), self._ask(nvml.nvmlDeviceGetDecoderUtilization))
        return (
            None if rates is None else rates.gpu / 100,
            *(None if engine is None else engine[0] / 100 for engine in engines),  # and NVML's period, in µs
            self._memory_mb(pids),
        )

    def _memory_mb(self, pids: Collection[int]) -> float | None:
        running = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses) or []
        used = [process.usedGpuMemory for process in running if process.pid in pids]
        if used and None not in used:
            return float(sum(used)) / 1e6
        # In a container processes have other numbers, and some drivers tell no memory of a process.
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else memory.used / 1e6

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._handle)
        except self._nvml.NVMLError:
            return None  # this GPU has no such engine


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
