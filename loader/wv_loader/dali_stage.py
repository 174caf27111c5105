"""Reading by threads, decoding by DALI: jobs in, batches out. Knows no plan and no consumer, and imports no DALI.

```
dispatch thread ──► one thread: feeds a pipeline, takes what is done (dali_flight.py) ──► batches
 waits for files       │   ▲
                       ▼   │ at most `prefetch` batches
                      DALI pipeline            other threads: the engine for the CPU
                      plain JPEGs              what is no plain JPEG, and effects
```
"""

import atexit
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from wv_loader.buffers import Arenas
from wv_loader.dali_flight import DaliSupply, Flight, Ticket
from wv_loader.parts import Part
from wv_loader.pipeline import Decoded
from wv_loader.readahead import ReadAhead
from wv_loader.stage import Job
from wv_loader.stats import LoaderStats
from wv_shards import Dataset


class DaliStage:
    """One loop's threads. `read` and `decode` are each for one thread."""

    def __init__(
        self,
        dataset: Dataset,
        supply: DaliSupply,
        stats: LoaderStats,
        arenas: Arenas,
        *,
        row_slots: Sequence[int],
        size_px: int,
        threads: int,
    ) -> None:
        """Start threads.

        Args:
            dataset, stats, arenas: the loader's.
            supply: the loader's; no other loop uses it.
            row_slots: slots of a batch that each row fills.
            size_px: S.
            threads: of the CPU, for what DALI does not take.
        """
        supply.check_process()
        self._arenas = arenas
        self._stats = stats
        self._row_slots = row_slots
        self._read_ahead = ReadAhead(dataset, stats, len(row_slots), arenas)
        stats.threads["decode"] = 1  # busy while DALI has something to do
        self._flight = Flight(supply, stats, size_px=size_px, threads=threads)
        self._depth = supply.engine.options.prefetch
        self._device = supply.engine.device
        self._jobs: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wv-dali", daemon=True)
        self._thread.start()
        # Before DALI's own: it ends the pipelines at the exit of a program, also those that a thread is using.
        self._process = os.getpid()
        atexit.register(self._close_at_exit)

    def read(self, parts: Sequence[Part]) -> None:
        """Have samples read that later jobs will show; each row's in the order of their showing."""
        self._read_ahead.request(parts)

    def decode(self, job: Job) -> "Future[Decoded]":
        """Decode the next batch, as soon as its samples are read: waits for them.

        Args:
            job: its samples were asked for by `read`.
        """
        started = self._stats.clock()
        samples = self._read_ahead.take(self._row_slots, job.ordinals)
        self._stats.add_late(self._stats.clock() - started)
        ticket = Ticket(job, samples)
        self._jobs.put(ticket)
        return ticket.result

    def close(self) -> None:
        """Wake whoever waits in `decode`, wait for what DALI has begun, and end the threads."""
        self._read_ahead.close()
        self._jobs.put(None)
        self._thread.join()
        self._arenas.trim()
        atexit.unregister(self._close_at_exit)

    def _close_at_exit(self) -> None:
        if self._process == os.getpid():  # a process that was forked off has none of its threads
            self.close()

    def _run(self) -> None:
        stream = None if self._device is None else torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):  # of None does nothing
            try:
                while self._step():
                    pass
            finally:
                self._flight.close()

    def _step(self) -> bool:
        """Feed a batch, or take one; False: the loop was left."""
        if len(self._flight) < self._depth:
            try:
                ticket = self._jobs.get(block=not self._flight)
            except queue.Empty:
                pass
            else:
                if ticket is not None:
                    self._flight.launch(ticket)
                return ticket is not None
        self._flight.land()
        return True
