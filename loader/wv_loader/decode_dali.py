"""DALI: one graph that decodes, crops, resizes and mirrors, on the CPU or with the decoder of a GPU.

The only file that imports DALI. It is given files and windows as arrays and draws nothing itself; which files it gets,
and what happens to those that it refuses, is decided in dali_flight.py.

```
files, windows ──► external_source ──► decoders.image_slice ──► resize, ROI ──► (n, S, S, 3) uint8, as torch tensor
 (our memory)                          cpu: libjpeg-turbo        antialiased
                                       mixed: nvJPEG, NVJPG engine
```

Against Pillow: decoding is the same to the bit on a CPU. The filter is not rounded between its passes, as Pillow's is
(0.16 levels on average), and at an image's edge it repeats pixels where Pillow's leaves off (up to 23 levels there).
"""

import ctypes
import os
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import nvidia.dali
import torch
from nvidia import nvimgcodec
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.tensors import TensorCPU
from torch.utils.dlpack import from_dlpack

from wv_loader.dali_flight import dali_says
from wv_loader.dali_options import DaliOptions
from wv_loader.engine import Engine
from wv_loader.errors import LoaderError
from wv_loader.windows import Windows

_SOURCES = {"start": types.INT32, "shape": types.INT32, "roi_start": types.FLOAT, "roi_end": types.FLOAT}


class DaliEngine:
    """Where DALI decodes, and the engine for what it does not take. It makes pipelines; it decodes nothing itself."""

    def __init__(self, device: torch.device | None, cpu: Engine, options: DaliOptions, reason: str = "") -> None:
        """Start nothing.

        Args:
            device: a CUDA device, or None for the CPU.
            cpu: takes what is no JPEG of the usual kind.
            options: of the pipelines.
            reason: see `Engine.reason`.
        """
        self.device = device
        self.cpu = cpu
        self.options = options
        self.reason = reason

    @property
    def name(self) -> str:
        """One of ENGINES."""
        return "dali-cpu" if self.device is None else "dali-gpu"

    @property
    def description(self) -> str:
        """Libraries and versions, for a person."""
        where = "on the CPU" if self.device is None else f"on {self.device}"
        return f"DALI {nvidia.dali.__version__} {where}, else {self.cpu.description}"

    @property
    def region(self) -> bool:
        """Whether parts of images are decoded."""
        return self.device is None if self.options.region is None else self.options.region

    def refused(self, files: Sequence[bytes | memoryview]) -> list[int]:
        """Which of some files nvImageCodec, the decoder in DALI, gives no image for; looked at one by one."""
        if self.device is None:
            only_cpu = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
            decoder = nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=only_cpu)
        else:
            decoder = nvimgcodec.Decoder(device_id=self.device.index)
        return [i for i, data in enumerate(files) if decoder.decode(bytes(data)) is None]


class DaliPipeline:
    """A pipeline that is fed batch by batch. Not thread-safe; not to be used by a process that was forked off."""

    def __init__(self, engine: DaliEngine, *, slots: int, size_px: int, threads: int, hint_px: tuple[int, int]) -> None:
        """Build it.

        Args:
            engine: where it decodes, and its options.
            slots: n, samples of a batch.
            size_px: S.
            threads: of the CPU that it may use.
            hint_px: width and height that most images do not exceed: memory of a GPU decoder that is allocated ahead.
        """
        self._device = engine.device
        self._region = region = engine.region
        on_gpu: dict[str, Any] | None = None
        if engine.device is not None:
            on_gpu = {"preallocate_width_hint": hint_px[0], "preallocate_height_hint": hint_px[1]}
            on_gpu["hw_decoder_load"] = engine.options.hw_decoder_load

        # A queue that is one deep: each run is scheduled by its own call. Dynamic execution lets several overlap, and
        # leaves outputs to whoever holds them.
        @pipeline_def(  # type: ignore[untyped-decorator] # ships no types
            batch_size=slots,
            num_threads=threads,
            device_id=None if engine.device is None else engine.device.index,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        def graph() -> Any:
            files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
            window = {
                name: fn.external_source(name=name, dtype=dtype, ndim=1, no_copy=True)
                for name, dtype in _SOURCES.items()
                if region or name.startswith("roi")
            }
            return crops_of(files, window, size_px, region=region, on_gpu=on_gpu)

        self._pipeline = graph()
        self._pipeline.build()
        _living.add(self)
        self._copied: deque[tuple[torch.cuda.Event, Any]] = deque()  # DALI's memory until it was copied

    def submit(self, files: Sequence[bytes | memoryview], windows: Windows) -> None:
        """Start a batch, behind those that are under way. The memory of the files is in use until it was collected.

        Raises:
            RuntimeError: DALI does not go on.
        """
        self._pipeline.feed_input("files", [TensorCPU(data) for data in files])
        for name in _SOURCES:
            if self._region or name.startswith("roi"):
                self._pipeline.feed_input(name, getattr(windows, name))
        self._pipeline.schedule_run()

    def collect(self) -> torch.Tensor:
        """Wait for the oldest batch.

        Returns:
            (n, S, S, 3) uint8, the caller's. On a CPU it is DALI's memory, which DALI leaves alone while the tensor
            lives. On a GPU it is a copy: DALI takes its memory back in the order of its own stream, and torch could
            still be reading it. The current stream waits for the decoder; this thread does not.

        Raises:
            RuntimeError: an image can't be decoded, or DALI does not go on.
        """
        if self._device is None:
            (images,) = self._pipeline.outputs()
            return from_dlpack(images.as_tensor())
        stream = torch.cuda.current_stream(self._device)
        (images,) = self._pipeline.outputs(cuda_stream=stream)
        copied = from_dlpack(images.as_tensor()).clone()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
        event.record(stream)
        while self._copied and self._copied[0][0].query():  # type: ignore[no-untyped-call]
            self._copied.popleft()
        self._copied.append((event, images))
        return copied


def crops_of(
    files: Any,
    windows: Mapping[str, Any],
    size_px: int,
    *,
    region: bool = True,
    relative: bool = False,
    on_gpu: Mapping[str, Any] | None = None,
) -> Any:
    """The operators of a graph.

    Args:
        files: node of encoded images.
        windows: nodes by the names of the fields of `Windows`; without `region` the two that begin with roi suffice.
        size_px: S.
        region: decode the windows; else whole images.
        relative: windows are shares of an image and, within a window, of it; else pixels.
        on_gpu: options of the GPU's decoder; None: decode on the CPU.

    Returns:
        Node of n images (S, S, 3) uint8.
    """
    decoding = {
        "device": "cpu" if on_gpu is None else "mixed",
        "output_type": types.RGB,
        "adjust_orientation": False,  # pictures that have to be turned do not come here
        "jpeg_fancy_upsampling": True,  # a GPU upsamples colours as libjpeg does
        **(on_gpu or {}),
    }
    if not region:
        images = fn.decoders.image(files, **decoding)
    elif relative:
        images = fn.decoders.image_slice(files, windows["start"], windows["shape"], axis_names="HW", **decoding)
    else:
        start, shape = windows["start"], windows["shape"]
        images = fn.decoders.image_slice(files, start=start, shape=shape, axis_names="HW", **decoding)
    return fn.resize(
        images,
        size=[size_px, size_px],
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        roi_relative=relative,
        roi_start=windows["roi_start"],
        roi_end=windows["roi_end"],
    )


def open_pipeline(
    engine: DaliEngine, *, slots: int, size_px: int, threads: int, hint_px: tuple[int, int]
) -> DaliPipeline:
    """A new pipeline; arguments as of `DaliPipeline`.

    Raises:
        LoaderError: DALI can't build it here.
    """
    try:
        return DaliPipeline(engine, slots=slots, size_px=size_px, threads=threads, hint_px=hint_px)
    except RuntimeError as error:
        raise LoaderError(f"engine {engine.name}: DALI builds no pipeline here: {dali_says(error)}") from error


_living: "weakref.WeakSet[DaliPipeline]" = weakref.WeakSet()


def _disown() -> None:
    """In a process that was forked off: leave the pipelines of the other alone.

    Ending one waits for its threads, which are not here: the process would hang when it exits. So none is ever let go,
    and DALI's list of what to end at the exit does not name them.
    """
    for ours in list(_living):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(ours))
        nvidia.dali.Pipeline._pipes.discard(weakref.ref(ours._pipeline))
    _living.clear()


os.register_at_fork(after_in_child=_disown)
