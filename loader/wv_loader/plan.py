"""Which samples an epoch shows, in which order: a pure function of integers. No state, no clock, no rank, no I/O.

```
runs of a band ──rates──► visits ──time──► V streams, end to end = the line ──cut──► V equal streams
                                             a stream ──► windows, each shuffled ──► batches
```

Steps and words are DESIGN's ("The plan"). Rates and phases are fixed point with 32 fractional bits; every random
number is a splitmix64 hash of (seed, purpose, …). The plan speaks of ordinals; it knows neither tars nor pixels.
"""

import itertools
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wv_loader.rates import ONE, class_rates, divide
from wv_shards import combine

PLAN_VERSION = 1
MAX_RUN_SAMPLES = 256
MAX_RUN_BYTES = 10_000_000
MAX_DEFAULT_STREAMS = 64
UNBANDED_RATE_FACTOR = 4
"""In a run without a band, the rate is at most this many times the mean wanted repeats of its samples."""
_CHUNK_SAMPLES = 1 << 20

I64 = NDArray[np.int64]


class _Purpose(IntEnum):
    """Second part of every hash, so that no two decisions share their randomness."""

    RUN_ORDER = 1
    BAND_PHASE = 2
    SAMPLE_PHASE = 3
    VISIT_ORDER = 4
    VISIT_JITTER = 5
    WINDOW = 6


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
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        if not self.balance or not all(0.0 <= tau <= 1.0 for tau in self.balance):
            raise ValueError(f"balance must be between 0 and 1, got {self.balance}")
        if not 1.0 <= self.max_repeat <= 65536.0:
            raise ValueError(f"max_repeat must be between 1 and 65536, got {self.max_repeat}")
        if self.streams is not None and (self.streams < 1 or self.batch_size % self.streams):
            raise ValueError(f"streams must divide the batch size {self.batch_size}, got {self.streams}")
        if self.window < 1:
            raise ValueError(f"window must be 1 or more, got {self.window}")
        if self.run_length is not None and self.run_length < 1:
            raise ValueError(f"run_length must be 1 or more, got {self.run_length}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2^63 − 1, got {self.seed}")

    @property
    def resolved_streams(self) -> int:
        """V."""
        if self.streams is not None:
            return self.streams
        return max(v for v in range(1, MAX_DEFAULT_STREAMS + 1) if self.batch_size % v == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the samples stand, as far as the plan needs to know."""

    labels: NDArray[np.int32]
    """(N,) class id of each ordinal."""
    sizes: NDArray[np.uint32]
    """(N,) bytes of each sample."""
    shard_starts: I64
    """(S + 1,) first ordinal of each shard, then N."""
    shard_bands: I64
    """(S,) band of each shard, −1 where it has none."""
    num_classes: int
    excluded: NDArray[np.bool_] | None = None
    """(N,) samples not to be shown, or None."""


class Plan:
    """The plan of all epochs of one data set under one set of options."""

    def __init__(self, layout: Layout, options: PlanOptions) -> None:
        """Cut the shards into runs and give each its phase.

        Raises:
            ValueError: no sample is left to show.
        """
        self.layout = layout
        self.options = options
        shown = layout.labels if layout.excluded is None else layout.labels[~layout.excluded]
        self.class_counts: I64 = np.bincount(shown, minlength=layout.num_classes).astype(np.int64)
        """(K,) samples not excluded."""
        if not len(shown):
            raise ValueError("no sample is left to show: the data set is empty, or everything in it is excluded")
        longest = options.run_length or min(max(len(shown) // 4096, 1), MAX_RUN_SAMPLES)
        self.run_starts, self.run_bands = _cut_runs(layout, longest)
        """(R + 1,) first ordinal of each run, then N; (R,) its band, −1 for none."""
        self._run_phases = _run_phases(self.run_bands, options.seed)
        self._rates = lru_cache(maxsize=4)(self._rates_of)

    def class_rates(self, epoch: int) -> I64:
        """(K,) wanted repeats r_c in `epoch`, fixed point."""
        return self._rates(self._balance(epoch))[0]

    def run_rates(self, epoch: int) -> I64:
        """(R,) visits of each run in `epoch` on average, fixed point."""
        return self._rates(self._balance(epoch))[1]

    def expected_exposure(self, epoch: int) -> NDArray[np.float64]:
        """(K,) shows of each class in `epoch` on average: what τ asks for, less what the caps keep from it."""
        rates = self.class_rates(epoch)
        if (self.run_bands >= 0).all():
            return self.target_exposure(epoch)
        per_sample = np.minimum(rates[self.layout.labels], np.repeat(self.run_rates(epoch), np.diff(self.run_starts)))
        if self.layout.excluded is not None:
            per_sample = np.where(self.layout.excluded, 0, per_sample)
        shows = np.bincount(self.layout.labels, weights=per_sample / ONE, minlength=self.layout.num_classes)
        return shows.astype(np.float64)

    def target_exposure(self, epoch: int) -> NDArray[np.float64]:
        """(K,) shows of each class in `epoch` that τ and the cap on repeats ask for."""
        return np.asarray(self.class_rates(epoch) / ONE * self.class_counts, dtype=np.float64)

    def epoch(self, epoch: int) -> "EpochPlan":
        """Plan one epoch: its visits, their shows, and the line that they form."""
        before = self._visits_before(epoch)
        visits = self._visits_before(epoch + 1) - before
        runs = np.repeat(np.arange(len(visits)), visits)  # (M,)
        first = np.repeat(np.cumsum(visits) - visits, visits)
        nth = np.arange(len(runs)) - first  # of its run, within the epoch
        order = self._line_order(epoch, runs, nth, np.repeat(visits, visits))
        runs, numbers = runs[order], (before[runs] + nth)[order]
        shows = self._count_shows(epoch, runs, numbers)
        return EpochPlan(self, epoch, runs, numbers, shows)

    def shown(self, epoch: int, runs: I64, numbers: I64) -> tuple[I64, I64]:
        """Samples that visits show, after thinning and exclusions.

        Args:
            epoch: whose rates apply.
            runs: (M,) run of each visit.
            numbers: (M,) g: how many visits the run had before, in all epochs.

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
            phase = (combine(self.options.seed, _Purpose.SAMPLE_PHASE, ordinals[thinned]) >> np.uint64(32)).astype(
                np.int64
            )
            g = numbers[visit[thinned]]
            keep[thinned] = ((g + 1) * q + phase) >> 32 > (g * q + phase) >> 32
        if self.layout.excluded is not None:
            keep &= ~self.layout.excluded[ordinals]
        return ordinals[keep], visit[keep]

    def _balance(self, epoch: int) -> float:
        return self.options.balance[min(epoch, len(self.options.balance) - 1)]

    def _rates_of(self, balance: float) -> tuple[I64, I64]:
        rates = class_rates(self.class_counts.tolist(), balance, self.options.max_repeat)
        return rates, self._run_rates_of(rates)

    def _run_rates_of(self, rates: I64) -> I64:
        """The largest wanted repeats of the run's band; without a band, of the run, within 4 times its mean."""
        layout = self.layout
        result = np.zeros(len(self.run_bands), dtype=np.int64)
        per_sample = rates[layout.labels]
        largest = np.maximum.reduceat(per_sample, self.run_starts[:-1])
        for band in np.unique(self.run_bands):
            of_band = self.run_bands == band
            if band >= 0:
                result[of_band] = largest[of_band].max()
            else:
                lengths = np.diff(self.run_starts)
                means = np.add.reduceat(per_sample, self.run_starts[:-1]) // lengths
                result[of_band] = np.minimum(largest, UNBANDED_RATE_FACTOR * means)[of_band]
        return result

    def _visits_before(self, epoch: int) -> I64:
        """(R,) visits that each run had in the epochs before `epoch`: ⌊R(e) + u⌋."""
        balance = self.options.balance
        total = np.zeros(len(self.run_bands), dtype=np.int64)
        for e in range(min(epoch, len(balance) - 1)):
            total += self.run_rates(e)
        steady = epoch - (len(balance) - 1)
        if steady > 0:
            total += steady * self.run_rates(epoch)
        return (total + self._run_phases) >> 32

    def _line_order(self, epoch: int, runs: I64, nth: I64, of: I64) -> I64:
        """Order of an epoch's visits along the line: in time, dealt to V streams, stream after stream."""
        seed = self.options.seed
        # Where a run is visited m times, one visit falls into each m-th part of the epoch.
        drawn = combine(seed, _Purpose.VISIT_ORDER, epoch, runs, nth) >> np.uint64(32)
        rank_key = ((nth << 32) + drawn.astype(np.int64)) // of
        bands = self.run_bands[runs]
        by_band = np.lexsort((runs, rank_key, bands))
        _, inverse, sizes = np.unique(bands[by_band], return_inverse=True, return_counts=True)
        size = sizes[inverse]
        place = np.arange(len(runs)) - (np.cumsum(sizes) - sizes)[inverse]  # within the band
        jitter = combine(seed, _Purpose.VISIT_JITTER, epoch, runs[by_band], nth[by_band]) >> np.uint64(32)
        time = ((place << 32) + jitter.astype(np.int64)) // size
        in_time = by_band[np.argsort(time, kind="stable")]
        stream = np.arange(len(runs)) % self.options.resolved_streams
        return in_time[np.argsort(stream, kind="stable")]

    def _count_shows(self, epoch: int, runs: I64, numbers: I64) -> I64:
        lengths = self.run_starts[runs + 1] - self.run_starts[runs]
        if self.layout.excluded is None and (self.class_rates(epoch) == ONE).all():
            return lengths
        counts = np.zeros(len(runs), dtype=np.int64)
        chunk = np.cumsum(lengths) // _CHUNK_SAMPLES
        for start, stop in _slices(chunk):
            _, visit = self.shown(epoch, runs[start:stop], numbers[start:stop])
            counts[start:stop] = np.bincount(visit, minlength=stop - start)
        return counts


class EpochPlan:
    """One epoch, ready to be asked for any batch, by any thread."""

    def __init__(self, plan: Plan, epoch: int, runs: I64, numbers: I64, shows: I64) -> None:
        self.plan = plan
        self.epoch = epoch
        self.visit_runs = runs
        """(M,) run of each visit, in the line's order."""
        self.visit_numbers = numbers
        self.visit_shows = shows
        """(M,) samples that each visit shows."""
        self._line = np.zeros(len(runs) + 1, dtype=np.int64)
        np.cumsum(shows, out=self._line[1:])
        self.samples = int(self._line[-1])
        """L: shows of the epoch, padding not counted."""
        self.batches = -(-self.samples // plan.options.batch_size)
        self._held: list[tuple[tuple[I64, int, int], ...]] = [()] * plan.options.resolved_streams

    def batch(self, number: int, streams: range) -> I64:
        """Ordinals of a batch, for a range of streams.

        Args:
            number: b, 0 … batches − 1.
            streams: the streams wanted; a rank owns a contiguous range of 0 … V−1.

        Returns:
            (len(streams) · B/V,) int64, stream-major; −1 where the epoch has ended.
        """
        per_stream = self.plan.options.batch_size // self.plan.options.resolved_streams
        ordinals = np.full((len(streams), per_stream), -1, dtype=np.int64)
        for row, stream in enumerate(streams):
            start = number * per_stream
            stop = min(start + per_stream, self._stream_start(stream + 1) - self._stream_start(stream))
            while start < stop:
                samples, first, _ = self.window_of(stream, start)
                part = samples[start - first : stop - first]
                ordinals[row, start - number * per_stream :][: len(part)] = part
                start += len(part)
        return ordinals.reshape(-1)

    def window_of(self, stream: int, position: int) -> tuple[I64, int, int]:
        """The window of a stream that holds a position: the samples that are read and shuffled together.

        Args:
            stream: 0 … V−1.
            position: in the stream; batch b takes positions b·B/V … (b + 1)·B/V − 1.

        Returns:
            (n,) ordinals in the order in which they are shown; the position of the first; the window's number.

        Raises:
            IndexError: the stream has no such position.
        """
        for held in self._held[stream]:
            if held[1] <= position < held[1] + len(held[0]):
                return held
        if not 0 <= position < self._stream_start(stream + 1) - self._stream_start(stream):
            raise IndexError(f"stream {stream} of epoch {self.epoch} has no position {position}")
        number, first, last = self._window_at(stream, position)
        window = self._window_samples(stream, number, first, last), first, number
        # Two: the one in use, and the one that is read ahead or that the end of a batch has begun.
        self._held[stream] = (window, *self._held[stream][:1])
        return window

    def _stream_start(self, stream: int) -> int:
        """Place on the line where a stream begins; its end is the next one's beginning."""
        return stream * self.samples // self.plan.options.resolved_streams

    def _window_at(self, stream: int, position: int) -> tuple[int, int, int]:
        """Number, first position and end of the window of `stream` that holds `position`."""
        streams = self.plan.options.resolved_streams
        length = self._stream_start(stream + 1) - self._stream_start(stream)
        windows = max(1, round(length / self.plan.options.window))

        # Borders stand at (j + stream/V) windows, so that the streams turn one after the other.
        def border(j: int) -> int:
            return min(length, max(0, (j * streams + stream) * length // (windows * streams)))

        j = position * windows // max(length, 1)
        while border(j) > position:
            j -= 1
        while border(j + 1) <= position:
            j += 1
        return j, (0 if j < 0 else border(j)), border(j + 1)

    def _window_samples(self, stream: int, window: int, first: int, last: int) -> I64:
        """Ordinals of a window, shuffled."""
        start = self._stream_start(stream) + first
        stop = self._stream_start(stream) + last
        head = int(np.searchsorted(self._line, start, side="right")) - 1
        tail = int(np.searchsorted(self._line, stop, side="left"))
        ordinals, _ = self.plan.shown(self.epoch, self.visit_runs[head:tail], self.visit_numbers[head:tail])
        skipped = start - int(self._line[head])
        ordinals = ordinals[skipped : skipped + stop - start]
        places = np.arange(len(ordinals))
        drawn = combine(self.plan.options.seed, _Purpose.WINDOW, self.epoch, stream, window + 1, places)
        return ordinals[np.argsort(drawn, kind="stable")]


class SequentialPlan:
    """Evaluation: every sample that is not excluded once, by ordinal; the last batch is padded."""

    def __init__(self, layout: Layout, batch_size: int) -> None:
        everything = np.arange(len(layout.labels), dtype=np.int64)
        self._ordinals = everything if layout.excluded is None else everything[~layout.excluded]
        self._batch_size = batch_size
        self.samples = len(self._ordinals)
        self.batches = -(-self.samples // batch_size)

    def batch(self, number: int, slots: range) -> I64:
        """(len(slots),) ordinals of the slots of a batch; −1 behind the last sample."""
        ordinals = np.full(len(slots), -1, dtype=np.int64)
        part = self._ordinals[number * self._batch_size :][: self._batch_size][slots.start : slots.stop]
        ordinals[: len(part)] = part
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
        ordinals: I64 = self._ordinals[places[places < len(self._ordinals)]]
        return ordinals


def _cut_runs(layout: Layout, longest: int) -> tuple[I64, I64]:
    """Cut every shard into runs alike in length, of at most `longest` samples and about 10 MB."""
    ends = np.concatenate([[0], np.cumsum(layout.sizes, dtype=np.int64)])
    starts: list[I64] = []
    bands: list[I64] = []
    for shard in range(len(layout.shard_bands)):
        first, last = int(layout.shard_starts[shard]), int(layout.shard_starts[shard + 1])
        pieces = -(-(last - first) // longest)
        while pieces:
            cut = first + np.arange(pieces + 1, dtype=np.int64) * (last - first) // pieces
            if pieces == last - first or np.diff(ends[cut]).max() <= MAX_RUN_BYTES:
                starts.append(cut[:-1])
                bands.append(np.full(pieces, layout.shard_bands[shard], dtype=np.int64))
                break
            pieces = min(2 * pieces, last - first)
    starts.append(np.array([len(layout.labels)], dtype=np.int64))
    return np.concatenate(starts), np.concatenate(bands)


def _run_phases(bands: I64, seed: int) -> I64:
    """Phases u of the runs, fixed point in [0, 1): evenly spread within a band, in hashed order."""
    runs = np.arange(len(bands))
    drawn = combine(seed, _Purpose.RUN_ORDER, runs)
    order = np.lexsort((drawn, bands))
    names, sizes = np.unique(bands, return_counts=True)
    shift = (combine(seed, _Purpose.BAND_PHASE, names) >> np.uint64(32)).astype(np.int64)
    place = np.arange(len(bands)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    phases = np.empty(len(bands), dtype=np.int64)
    phases[order] = ((place << 32) + np.repeat(shift, sizes)) // np.repeat(sizes, sizes)
    return phases


def _slices(groups: I64) -> list[tuple[int, int]]:
    """Borders of the stretches of equal numbers in a sorted array."""
    borders = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
    return [(a, b) for a, b in itertools.pairwise(borders) if a < b]
