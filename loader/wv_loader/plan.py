"""Which samples an epoch shows, in which order: a pure function of integers. No state, no clock, no rank, no I/O.

```
runs of a band ──rates──► visits ──time──► V streams, end to end = the line ──cut──► V equal streams
                                             a stream ──► windows, each shuffled ──► batches
```

Steps and words are DESIGN's ("The plan"). Rates and phases are fixed point with 32 fractional bits; every random
number is a splitmix64 hash of (seed, purpose, …). The plan speaks of ordinals; it knows neither tars nor pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wv_loader.checks import number, refuse, several, whole, whole_or_none
from wv_loader.errors import OptionError
from wv_loader.rates import ONE, class_rates, divide
from wv_loader.runs import I64, Layout, Purpose, Runs, chunks_of
from wv_shards import combine, splitmix64

PLAN_VERSION = 1
MAX_DEFAULT_STREAMS = 64
MAX_REPEAT_LIMIT = 32768
"""Rates up to here fit the long division of fixed-point numbers."""
UNBANDED_RATE_FACTOR = 4
"""In a run without a band, the rate is at most this many times the mean wanted repeats of its samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """All that decides a plan, but for the data set and its exclusions."""

    batch_size: int
    """B, global: over all ranks."""
    seed: int = 0
    balance: tuple[float, ...] = (1.0,)
    """τ of epoch 0, 1, …; the last one goes on. 1 as collected, 0 every class alike."""
    max_repeat: float = 16.0
    """No class's samples are shown more often than this in an epoch, on average."""
    streams: int | None = None
    """V; None: the largest divisor of the batch size not above 64."""
    window: int = 1024
    """Samples of a stream that are shuffled together, about."""
    run_length: int | None = None
    """Samples of a run at most; None: N/4096, within 1 … 256."""

    def __post_init__(self) -> None:
        taus = several(self.balance)
        if not taus:
            raise refuse("balance", "a number from 0 to 1 for each epoch", self.balance)
        checked = {
            "batch_size": whole("batch_size", self.batch_size, 1),
            "seed": whole("seed", self.seed, 0, 2**63 - 1),
            "balance": tuple(number("balance", tau, 0.0, 1.0) for tau in taus),
            "max_repeat": number("max_repeat", self.max_repeat, 1.0, MAX_REPEAT_LIMIT),
            "streams": whole_or_none("streams", self.streams, 1),
            "window": whole("window", self.window, 1),
            "run_length": whole_or_none("run_length", self.run_length, 1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.streams is not None and self.batch_size % self.streams:
            raise OptionError(f"streams must divide the batch size {self.batch_size}, got {self.streams}")

    @property
    def last_epoch(self) -> int:
        """Up to here the visits of the epochs before can be counted."""
        return int(2**31 / self.max_repeat) - 2

    @property
    def resolved_streams(self) -> int:
        """V."""
        if self.streams is not None:
            return self.streams
        return default_streams(self.batch_size)


def default_streams(batch_size: int) -> int:
    """V, where it is not given."""
    return max(v for v in range(1, MAX_DEFAULT_STREAMS + 1) if batch_size % v == 0)


class Plan:
    """The plan of all epochs of one data set under one set of options."""

    def __init__(self, layout: Layout, options: PlanOptions) -> None:
        """Cut the shards into runs.

        Raises:
            ValueError: no sample is left to show.
        """
        self.layout = layout
        self.options = options
        self.runs = Runs(layout, length=options.run_length, seed=options.seed)
        self.run_starts = self.runs.starts
        """(R + 1,) first ordinal of each run, then N."""
        self.class_counts = self.runs.class_counts
        """(K,) samples not excluded."""
        self._rates = lru_cache(maxsize=8)(self._rates_of)
        self._rates_before = (0, np.zeros(len(self.runs), dtype=np.int64))

    def class_rates(self, epoch: int) -> I64:
        """(K,) wanted repeats r_c in `epoch`, fixed point."""
        return self._rates(self._balance(epoch))[0]

    def run_rates(self, epoch: int) -> I64:
        """(R,) visits of each run in `epoch` on average, fixed point."""
        return self._rates(self._balance(epoch))[1]

    def expected_exposure(self, epoch: int) -> NDArray[np.float64]:
        """(K,) shows of each class in `epoch` on average: what τ asks for, less what the caps keep from it."""
        rates = self.class_rates(epoch)
        if (self.runs.bands >= 0).all():
            return self.target_exposure(epoch)
        layout, run_rates = self.layout, self.run_rates(epoch)
        shows = np.zeros(layout.num_classes)
        for first, last in self.runs.chunks():
            samples = slice(self.run_starts[first], self.run_starts[last])
            labels = layout.labels[samples]
            lengths = np.diff(self.run_starts[first : last + 1])
            per_sample = np.minimum(rates[labels], np.repeat(run_rates[first:last], lengths)) / ONE
            if layout.excluded is not None:
                per_sample[layout.excluded[samples]] = 0
            shows += np.bincount(labels, weights=per_sample, minlength=layout.num_classes)
        return shows

    def target_exposure(self, epoch: int) -> NDArray[np.float64]:
        """(K,) shows of each class in `epoch` that τ and the cap on repeats ask for."""
        return np.asarray(self.class_rates(epoch) / ONE * self.class_counts, dtype=np.float64)

    def visits(self, epoch: int) -> tuple[I64, I64]:
        """Visits of an epoch, run by run, not yet in an order: (M,) the run; (M,) g, the visits that it had before."""
        before = self._visits_before(epoch)
        visits = self._visits_before(epoch + 1) - before
        runs = np.repeat(np.arange(len(visits)), visits)
        numbers = np.arange(len(runs)) + np.repeat(before - (np.cumsum(visits) - visits), visits)
        return runs, numbers

    def epoch(self, epoch: int, skip: NDArray[np.bool_] | None = None) -> "EpochPlan":
        """Plan one epoch: its visits, their shows, and the line that they form.

        skip: (N,) samples that this epoch leaves out. Rates and visits are those of an epoch that shows them, so that
        all others are shown as often as they would have been, and later epochs are what they were.
        """
        runs, numbers = self.visits(epoch)
        order = self._line_order(epoch, runs)
        runs, numbers = runs[order], numbers[order]
        return EpochPlan(self, epoch, runs, numbers, self._count_shows(epoch, runs, numbers, skip), skip)

    def shown(self, epoch: int, runs: I64, numbers: I64, skip: NDArray[np.bool_] | None = None) -> tuple[I64, I64]:
        """Samples that visits show, after thinning and exclusions.

        Args:
            epoch: whose rates apply.
            runs: (M,) run of each visit.
            numbers: (M,) g: how many visits the run had before, in all epochs.
            skip: (N,) samples that the epoch leaves out, see `epoch`.

        Returns:
            (n,) ordinals, visit by visit; (n,) the visit, 0 … M−1, that each belongs to.
        """
        starts, lengths = self.run_starts[runs], self.run_starts[runs + 1] - self.run_starts[runs]
        visit = np.repeat(np.arange(len(runs)), lengths)
        offset = np.arange(len(visit)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ordinals = starts[visit] + offset
        rates, run_rates = self._rates(self._balance(epoch))
        wanted = rates[self.layout.labels[ordinals]]
        rate = run_rates[runs][visit]
        keep = wanted >= rate
        thinned = np.flatnonzero(~keep)
        if len(thinned):
            q = divide(wanted[thinned], rate[thinned])
            phase = (combine(self.options.seed, Purpose.SAMPLE_PHASE, ordinals[thinned]) >> np.uint64(32)).astype(
                np.int64
            )
            g = numbers[visit[thinned]]
            keep[thinned] = ((g + 1) * q + phase) >> 32 > (g * q + phase) >> 32
        if self.layout.excluded is not None:
            keep &= ~self.layout.excluded[ordinals]
        if skip is not None:
            keep &= ~skip[ordinals]
        return ordinals[keep], visit[keep]

    def _balance(self, epoch: int) -> float:
        return self.options.balance[min(epoch, len(self.options.balance) - 1)]

    def _rates_of(self, balance: float) -> tuple[I64, I64]:
        rates = class_rates(self.class_counts.tolist(), balance, self.options.max_repeat)
        return rates, self._run_rates_of(rates)

    def _run_rates_of(self, rates: I64) -> I64:
        """The largest wanted repeats of the run's band; without a band, of the run, within 4 times its mean."""
        result = np.zeros(len(self.runs), dtype=np.int64)
        for band, classes in self.runs.classes_of_band.items():
            if band >= 0:
                result[self.runs.bands == band] = rates[classes].max(initial=0)
        if -1 not in self.runs.classes_of_band:
            return result
        for first, last in self.runs.chunks():
            starts = self.run_starts[first : last + 1]
            per_sample = rates[self.layout.labels[starts[0] : starts[-1]]]
            largest = np.maximum.reduceat(per_sample, starts[:-1] - starts[0])
            means = np.add.reduceat(per_sample, starts[:-1] - starts[0]) // np.diff(starts)
            unbanded = self.runs.bands[first:last] < 0
            result[first:last][unbanded] = np.minimum(largest, UNBANDED_RATE_FACTOR * means)[unbanded]
        return result

    def _visits_before(self, epoch: int) -> I64:
        """(R,) visits that each run had in the epochs before `epoch`: ⌊R(e) + u⌋."""
        scheduled = min(epoch, len(self.options.balance) - 1)
        reached, total = self._rates_before
        if reached > scheduled:
            reached, total = 0, np.zeros(len(self.runs), dtype=np.int64)
        for e in range(reached, scheduled):
            total = total + self.run_rates(e)
        self._rates_before = scheduled, total
        if epoch > scheduled:
            total = total + (epoch - scheduled) * self.run_rates(epoch)
        return (total + self.runs.phases) >> 32

    def _line_order(self, epoch: int, runs: I64) -> I64:
        """Order of an epoch's visits along the line: in time, dealt to V streams, stream after stream."""
        seed = self.options.seed
        nth = np.arange(len(runs)) - np.searchsorted(runs, runs)  # of its run, within the epoch
        of = np.bincount(runs)[runs]
        # Where a run is visited m times, one visit falls into each m-th part of the epoch.
        drawn = combine(seed, Purpose.VISIT_ORDER, epoch, runs, nth) >> np.uint64(32)
        rank_key = ((nth << 32) + drawn.astype(np.int64)) // of
        bands = self.runs.bands[runs]
        by_band = np.lexsort((runs, rank_key, bands))
        _, inverse, sizes = np.unique(bands[by_band], return_inverse=True, return_counts=True)
        size = sizes[inverse]
        place = np.arange(len(runs)) - (np.cumsum(sizes) - sizes)[inverse]  # within the band
        jitter = combine(seed, Purpose.VISIT_JITTER, epoch, runs[by_band], nth[by_band]) >> np.uint64(32)
        time = ((place << 32) + jitter.astype(np.int64)) // size
        in_time = by_band[np.argsort(time, kind="stable")]
        stream = np.arange(len(runs)) % self.options.resolved_streams
        return in_time[np.argsort(stream, kind="stable")]

    def _count_shows(self, epoch: int, runs: I64, numbers: I64, skip: NDArray[np.bool_] | None) -> I64:
        lengths = self.run_starts[runs + 1] - self.run_starts[runs]
        if self.layout.excluded is None and skip is None and (self.class_rates(epoch) == ONE).all():
            return lengths
        counts = np.zeros(len(runs), dtype=np.int64)
        for start, stop in chunks_of(lengths):
            _, visit = self.shown(epoch, runs[start:stop], numbers[start:stop], skip)
            counts[start:stop] = np.bincount(visit, minlength=stop - start)
        return counts


Window = tuple[I64, int, int]
"""(n,) ordinals in the order in which they are shown; the position of the first in its stream; the window's number."""


class EpochPlan:
    """One epoch, ready to be asked for any batch, by any thread."""

    def __init__(
        self, plan: Plan, epoch: int, runs: I64, numbers: I64, shows: I64, skip: NDArray[np.bool_] | None = None
    ) -> None:
        self.plan = plan
        self.epoch = epoch
        self.skip = skip
        """(N,) samples that are left out; None: none."""
        self.visit_runs = runs
        """(M,) run of each visit, in the line's order."""
        self.visit_numbers = numbers
        """(M,) g: how many visits the run had before, in all epochs."""
        self.visit_shows = shows
        """(M,) samples that each visit shows."""
        self.line = np.zeros(len(runs) + 1, dtype=np.int64)
        """(M + 1,) place of each visit's first show on the line, then L."""
        np.cumsum(shows, out=self.line[1:])
        self.samples = int(self.line[-1])
        """L: shows of the epoch, padding not counted."""
        self.batches = -(-self.samples // plan.options.batch_size)
        streams = plan.options.resolved_streams
        self.stream_starts = np.arange(streams + 1, dtype=np.int64) * self.samples // streams
        """(V + 1,) place of each stream's first show on the line, then L."""
        self._lengths: list[int] = np.diff(self.stream_starts).tolist()
        self._held: list[tuple[Window, ...]] = [()] * streams

    def left_out(self) -> I64:
        """(n,) ordinals of the shows that `skip` takes away: a sample as often as it would have been shown."""
        if self.skip is None:
            return np.zeros(0, dtype=np.int64)
        found = []
        for start, stop in chunks_of(np.diff(self.plan.run_starts)[self.visit_runs]):
            runs, numbers = self.visit_runs[start:stop], self.visit_numbers[start:stop]
            found.append(self.plan.shown(self.epoch, runs, numbers, ~self.skip)[0])
        return np.concatenate(found)

    def batch(self, number: int, streams: range) -> I64:
        """Ordinals of a batch, for a range of streams.

        Args:
            number: b, 0 … batches − 1.
            streams: the streams wanted; a rank owns a contiguous range of 0 … V−1.

        Returns:
            (len(streams) · B/V,) int64, stream-major; −1 where the epoch has ended.
        """
        per_stream = self.plan.options.batch_size // self.plan.options.resolved_streams
        begin, end = number * per_stream, (number + 1) * per_stream
        ordinals = np.full((len(streams), per_stream), -1, dtype=np.int64)
        wanted = [stream for stream in streams if begin < self._lengths[stream]]
        for stream, window in zip(wanted, self.windows_of(wanted, begin), strict=True):
            position, stop = begin, min(end, self._lengths[stream])
            while True:
                samples, first, _ = window
                part = samples[position - first : stop - first]
                ordinals[stream - streams.start, position - begin :][: len(part)] = part
                position += len(part)
                if position == stop:
                    break
                window = self.window_of(stream, position)
        return ordinals.reshape(-1)

    def window_of(self, stream: int, position: int) -> Window:
        """The window of a stream that holds a position: the samples that are read and shuffled together.

        Args:
            stream: 0 … V−1.
            position: in the stream; batch b takes positions b·B/V … (b + 1)·B/V − 1.

        Raises:
            IndexError: the stream has no such position.
        """
        return self.windows_of([stream], position)[0]

    def windows_of(self, streams: Sequence[int], position: int) -> list[Window]:
        """The windows that hold a position, of several streams: see `window_of`."""
        found: list[Window | None] = []
        for stream in streams:
            if not 0 <= position < self._lengths[stream]:
                raise IndexError(f"stream {stream} of epoch {self.epoch} has no position {position}")
            held = self._held[stream]
            found.append(next((w for w in held if w[1] <= position < w[1] + len(w[0])), None))
        missing = [stream for stream, window in zip(streams, found, strict=True) if window is None]
        opened = iter(self._open(missing, position) if missing else ())
        for i, window in enumerate(found):
            if window is None:
                found[i] = window = next(opened)
                # Two: the one in use, and the one that is read ahead or that the end of a batch has begun.
                self._held[streams[i]] = (window, *self._held[streams[i]][:1])
        return [window for window in found if window is not None]

    def _borders(self, stream: int, position: int) -> tuple[int, int, int]:
        """Number, first position and end of the window of `stream` that holds `position`."""
        streams, length = len(self._lengths), self._lengths[stream]
        windows = max(1, round(length / self.plan.options.window))

        # Borders stand at (j + stream/V) windows, so that the streams turn one after the other.
        def border(j: int) -> int:
            return min(length, max(0, (j * streams + stream) * length // (windows * streams)))

        j = position * windows // length
        while border(j) > position:
            j -= 1
        while border(j + 1) <= position:
            j += 1
        return j, (0 if j < 0 else border(j)), border(j + 1)

    def _open(self, streams: Sequence[int], position: int) -> list[Window]:
        """Look up and shuffle the windows that hold `position`, of several streams at once."""
        seed = self.plan.options.seed
        of = np.array(streams, dtype=np.int64)  # (w,)
        numbers, firsts, ends = np.array([self._borders(stream, position) for stream in streams]).T
        starts, stops = self.stream_starts[of] + firsts, self.stream_starts[of] + ends  # on the line
        heads = np.searchsorted(self.line, starts, side="right") - 1
        visits_each = np.searchsorted(self.line, stops, side="left") - heads
        window = np.repeat(np.arange(len(of)), visits_each)
        visits = np.arange(len(window)) - np.repeat(np.cumsum(visits_each) - visits_each - heads, visits_each)
        ordinals, visit = self.plan.shown(self.epoch, self.visit_runs[visits], self.visit_numbers[visits], self.skip)
        window = window[visit]
        # A visit at a border is listed with both windows; each takes its own part.
        before = np.concatenate([[0], np.cumsum(self.visit_shows[visits])[:-1]])
        places = self.line[visits][visit] + np.arange(len(visit)) - before[visit]
        inside = (places >= starts[window]) & (places < stops[window])
        ordinals, window, places = ordinals[inside], window[inside], places[inside] - starts[window[inside]]
        seeds = combine(seed, Purpose.WINDOW, self.epoch, of, numbers + 1)
        drawn = splitmix64(seeds[window] ^ places.astype(np.uint64))
        cuts = np.cumsum(ends - firsts)[:-1]
        parts = [
            part[np.argsort(key, kind="stable")]
            for part, key in zip(np.split(ordinals, cuts), np.split(drawn, cuts), strict=True)
        ]
        return list(zip(parts, firsts.tolist(), numbers.tolist(), strict=True))


class SequentialPlan:
    """Evaluation: every sample that is not excluded once, by ordinal; the last batch is padded."""

    def __init__(self, layout: Layout, batch_size: int) -> None:
        self._ordinals = None if layout.excluded is None else np.flatnonzero(~layout.excluded)
        self._batch_size = batch_size
        self.samples = len(layout.labels) if self._ordinals is None else len(self._ordinals)
        self.batches = -(-self.samples // batch_size)

    def batch(self, number: int, slots: range) -> I64:
        """(len(slots),) ordinals of the slots of a batch; −1 behind the last sample."""
        places = number * self._batch_size + np.arange(slots.start, slots.stop, dtype=np.int64)
        there = places < self.samples
        ordinals = np.full(len(slots), -1, dtype=np.int64)
        ordinals[there] = places[there] if self._ordinals is None else self._ordinals[places[there]]
        return ordinals

    def following(self, slots: range, position: int, count: int) -> I64:
        """(count,) ordinals that some slots show, batch after batch, from a position on; fewer behind the last sample.

        Args:
            slots: of every batch.
            position: n · len(slots) is the first slot of the range in batch n.
            count: how many.
        """
        positions = position + np.arange(count)
        places = positions // len(slots) * self._batch_size + slots.start + positions % len(slots)
        places = places[places < self.samples]
        return places if self._ordinals is None else self._ordinals[places]
