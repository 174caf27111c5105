"""Batches in a DALI pipeline: what goes there, what joins it, and what is done where DALI refuses a file.

DALI throws a batch away for one file that it can't decode, and calls its pipeline broken then. So it gets only plain
JPEGs whose header agrees with the index; the rest joins the batch from the engine for the CPU. Where it fails all the
same, that engine takes the culprits from then on, and a new pipeline gets the others and the batches behind. So these
are what they are without a culprit, to the bit; where no culprit is found, that engine decodes the batch. Imports no
DALI, and reads nothing.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wv_loader.augment import Crops
from wv_loader.effects import apply_effects
from wv_loader.errors import LoaderError
from wv_loader.jpeg_header import plain_jpeg
from wv_loader.pipeline import Decoded
from wv_loader.read import Failure, Sample
from wv_loader.stage import MAX_CHUNK_SLOTS, Failures, Job
from wv_loader.stats import LoaderStats
from wv_loader.windows import windows_of

if TYPE_CHECKING:
    from wv_loader.decode_dali import DaliEngine, DaliPipeline

_MAX_PIXELS = 89_478_485
"""Larger images are not for DALI: where Pillow warns of a decompression bomb. DALI has no such limit of its own."""
_MOST_UNEXPLAINED = 3
"""Batches in a row that may fail without a file that is to blame."""
_BLANK_PX = 16


def _blank() -> bytes:
    """A picture for slots that DALI has nothing to show in."""
    file = BytesIO()
    Image.new("RGB", (_BLANK_PX, _BLANK_PX)).save(file, "JPEG")
    return file.getvalue()


_BLANK = _blank()


class DaliSupply:
    """What loops over a loader keep between them: a pipeline, and the files that DALI does not take."""

    def __init__(self, engine: "DaliEngine", open_pipeline: "Callable[[], DaliPipeline]") -> None:
        """Build nothing yet."""
        self.engine = engine
        self.refused: set[int] = set()
        """Ordinals that DALI failed on. Nothing that is shown depends on it, but for rounding."""
        self._open = open_pipeline
        self._pipeline: DaliPipeline | None = None
        self._process = os.getpid()

    def pipeline(self) -> "DaliPipeline":
        """The one that works, or a new one.

        Raises:
            LoaderError: DALI can't build it here.
        """
        self.check_process()
        if self._pipeline is None:
            self._pipeline = self._open()
        return self._pipeline

    def check_process(self) -> None:
        """Raise a LoaderError in a process that was forked off after the first loop began."""
        if self._process != os.getpid():
            raise LoaderError(
                f"engine {self.engine.name}: DALI does not live on in a forked process; make the Loader in the new "
                "process, or start it by spawn"
            )

    def close(self) -> None:
        """Let go of the pipeline; the next loop builds a new one."""
        self._pipeline = None


class Ticket:
    """A batch on its way through a `Flight`."""

    __slots__ = ("for_dali", "job", "rest", "result", "samples")

    def __init__(self, job: Job, samples: list[Sample]) -> None:
        self.job = job
        self.samples = samples
        self.result: Future[Decoded] = Future()
        self.for_dali: NDArray[np.bool_] = np.zeros(len(samples), dtype=np.bool_)
        self.rest: list[Future[_Rest]] = []


@dataclass(frozen=True, slots=True)
class _Rest:
    """Some slots of a batch, decoded by the engine for the CPU."""

    slots: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    failures: list[Failure | None]


class Flight:
    """Batches that are in a DALI pipeline, oldest first. For one thread."""

    def __init__(self, supply: DaliSupply, stats: LoaderStats, *, size_px: int, threads: int) -> None:
        self._supply = supply
        self._engine = supply.engine
        self._stats = stats
        self._size_px = size_px
        self._flying: deque[Ticket] = deque()
        self._unexplained = 0
        self._failed = False
        self._busy_since = 0.0
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="wv-decode")

    def __len__(self) -> int:
        return len(self._flying)

    def launch(self, ticket: Ticket) -> None:
        """Give a batch to DALI, and what DALI does not take to other threads."""
        if self._failed:
            ticket.result.set_exception(LoaderError("a batch before this one failed"))
            return
        if not self._flying:
            self._busy_since = self._stats.clock()
        try:
            self._route(ticket)
            try:
                self._submit(ticket)
            except RuntimeError:  # a batch before it has broken the pipeline, and was not taken yet
                self._land_all()
                self._supply.close()
                self._submit(ticket)
        except BaseException as error:
            self._land_all()
            self._fail(ticket, error)
        else:
            self._flying.append(ticket)

    def land(self) -> None:
        """Wait for the oldest batch, and hand it on."""
        ticket = self._flying.popleft()
        try:
            ticket.result.set_result(self._collect(ticket))
        except BaseException as error:
            self._fail(ticket, error)
        now = self._stats.clock()
        self._stats.add_decode(now - self._busy_since)
        self._busy_since = now

    def close(self) -> None:
        """Wait for what is under way, for nobody."""
        self._threads.shutdown(cancel_futures=True)
        try:
            for _ in self._flying:
                self._supply.pipeline().collect()
        except (RuntimeError, LoaderError):
            self._supply.close()
        self._flying.clear()

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        """End the loop with an error, which its consumer gets at this batch; it sees none behind it."""
        self._failed = True
        self._supply.close()  # the pipeline may hold half a batch, or not what is behind
        ticket.result.set_exception(error)
        self._flying.clear()

    def _land_all(self) -> None:
        while self._flying:
            self.land()

    def _route(self, ticket: Ticket) -> None:
        """Say which slots are DALI's, and have the others decoded."""
        job, refused = ticket.job, self._supply.refused
        widths, heights = job.widths.tolist(), job.heights.tolist()
        others = []
        for i, (sample, ordinal) in enumerate(zip(ticket.samples, job.ordinals.tolist(), strict=True)):
            if sample is None or isinstance(sample, Failure):
                continue
            size = (widths[i], heights[i])
            if plain_jpeg(sample) == size and size[0] * size[1] <= _MAX_PIXELS and ordinal not in refused:
                ticket.for_dali[i] = True
            else:
                others.append(i)
        ticket.rest = self._decode_rest(ticket, np.array(others, dtype=np.int64))

    def _decode_rest(self, ticket: Ticket, slots: NDArray[np.int64]) -> "list[Future[_Rest]]":
        chunks = [slots[start : start + MAX_CHUNK_SLOTS] for start in range(0, len(slots), MAX_CHUNK_SLOTS)]
        return [self._threads.submit(self._decode_chunk, ticket, chunk) for chunk in chunks]

    def _decode_chunk(self, ticket: Ticket, slots: NDArray[np.int64]) -> _Rest:
        job = ticket.job
        pixels = np.empty((len(slots), self._size_px, self._size_px, 3), dtype=np.uint8)
        files = [ticket.samples[slot] for slot in slots.tolist()]
        crops = Crops(boxes=job.crops.boxes[slots], flips=job.crops.flips[slots])
        return _Rest(
            slots, pixels, self._engine.cpu.decode(files, job.widths[slots], job.heights[slots], crops, pixels)
        )

    def _submit(self, ticket: Ticket) -> None:
        job, ours = ticket.job, ticket.for_dali
        files = [
            sample if mine and isinstance(sample, bytes | memoryview) else _BLANK
            for sample, mine in zip(ticket.samples, ours.tolist(), strict=True)
        ]
        boxes = np.where(ours[:, None], job.crops.boxes, (0.0, 0.0, _BLANK_PX, _BLANK_PX))
        windows = windows_of(
            np.where(ours, job.widths, _BLANK_PX),
            np.where(ours, job.heights, _BLANK_PX),
            Crops(boxes=boxes, flips=job.crops.flips),
            self._size_px,
            region=self._engine.region,
        )
        self._supply.pipeline().submit(files, windows)

    def _collect(self, ticket: Ticket) -> Decoded:
        images = self._images(ticket)
        failures: Failures = {i: sample for i, sample in enumerate(ticket.samples) if isinstance(sample, Failure)}
        empty = ~ticket.for_dali
        for chunk in ticket.rest:
            rest = chunk.result()
            empty[rest.slots] = False
            images[rest.slots] = torch.from_numpy(rest.pixels).to(images.device, non_blocking=True)
            failures.update(
                {slot: why for slot, why in zip(rest.slots.tolist(), rest.failures, strict=True) if why is not None}
            )
        if empty.any():
            images[np.flatnonzero(empty)] = 0
        if ticket.job.effects is not None:
            self._apply_effects(ticket.job, images.numpy(), failures)
        ready = None
        if images.is_cuda:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types here
            ready.record()
        return Decoded(images.permute(0, 3, 1, 2), failures, ready)

    def _images(self, ticket: Ticket) -> torch.Tensor:
        while True:
            try:
                images = self._supply.pipeline().collect()
            except RuntimeError as error:
                mended = self._mend(ticket, error)
                if mended is not None:
                    return mended
            else:
                self._unexplained = 0
                return images

    def _apply_effects(self, job: Job, pixels: NDArray[np.uint8], failures: Failures) -> None:
        shown = [ordinal >= 0 and i not in failures for i, ordinal in enumerate(job.ordinals.tolist())]

        def apply(slots: slice) -> None:
            assert job.effects is not None
            apply_effects(job.effects.slots(slots), pixels[slots], shown[slots])

        starts = range(0, len(shown), MAX_CHUNK_SLOTS)
        list(self._threads.map(apply, [slice(start, start + MAX_CHUNK_SLOTS) for start in starts]))

    def _mend(self, ticket: Ticket, error: Exception) -> torch.Tensor | None:
        """Find out why DALI failed on a batch, and begin anew with it and those behind it, without the culprits.

        Returns:
            None: the batch is to be collected again. Where there is no culprit it is not given to DALI again:
            (n, S, S, 3) uint8, of any content, as all slots are in `ticket.rest` now.
        """
        slots = np.flatnonzero(ticket.for_dali)
        again = self._decode_rest(ticket, slots)
        culprits = {
            slot
            for chunk in again
            for slot, why in zip(chunk.result().slots.tolist(), chunk.result().failures, strict=True)
            if why is not None
        }
        files = [ticket.samples[slot] for slot in slots.tolist()]
        seen = [file for file in files if isinstance(file, bytes | memoryview)]
        culprits |= {int(slots[i]) for i in self._engine.refused(seen)}
        self._supply.close()
        if culprits:
            self._supply.refused.update(ticket.job.ordinals[sorted(culprits)].tolist())
            for one in (ticket, *self._flying):
                self._withdraw(one)
                self._submit(one)
            return None
        self._unexplained += 1
        if self._unexplained >= _MOST_UNEXPLAINED:
            raise LoaderError(
                f"engine {self._engine.name}: DALI failed on {self._unexplained} batches in a row, none of which holds "
                f"a bad image; take engine 'turbo', or look at what it says: {dali_says(error)}"
            ) from error
        ticket.rest += again
        ticket.for_dali[:] = False
        for behind in self._flying:
            self._submit(behind)
        shape = (len(ticket.samples), self._size_px, self._size_px, 3)
        return torch.empty(shape, dtype=torch.uint8, device=self._engine.device)

    def _withdraw(self, ticket: Ticket) -> None:
        """Have the engine for the CPU decode what DALI has refused by now."""
        refused = np.isin(ticket.job.ordinals, list(self._supply.refused)) & ticket.for_dali
        ticket.rest += self._decode_rest(ticket, np.flatnonzero(refused))
        ticket.for_dali &= ~refused


def dali_says(error: Exception) -> str:
    """What an error of DALI's says, without the graph's traceback around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "no longer valid" not in line]
    return told[-1] if told else type(error).__name__
