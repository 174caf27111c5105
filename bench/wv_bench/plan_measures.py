"""What `wv-bench plan` measures of a plan: exposures, mixing, meetings, reading. Every figure is defined here."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wv_loader.plan import EpochPlan, Plan
from wv_loader.read import MAX_GAP_BYTES
from wv_loader.runs import I64, chunks_of

BLOCKS = (1, 4, 16, 64, 256, 1024)
"""Lengths, in consecutive batches, over which class counts are compared with a draw's."""
_STRETCHES = 8
_TRACKED_SAMPLES = 2048
_CERTAIN = -1e9
"""Logarithm of a probability that is 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """Shows of each class over some epochs."""

    lengths: list[int]
    """Shows of each epoch."""
    target: NDArray[np.float64]
    """(K,) shows an epoch that τ and the cap on repeats ask for, mean of the epochs."""
    expected: NDArray[np.float64]
    """(K,) what is left of it by the cap on the rate of runs without a band."""
    achieved: NDArray[np.float64]
    """(K,) shows an epoch."""
    uncapped: NDArray[np.float64]
    """(K,) shows an epoch that τ alone asks for."""
    unseen_fraction: float
    """Of the samples not excluded, those that no epoch showed."""


def exposure(plan: Plan, epochs: int) -> Exposure:
    """Count the shows of every class in the epochs 0 … `epochs` − 1."""
    layout, classes = plan.layout, plan.layout.num_classes
    target, expected, achieved, uncapped = np.zeros((4, classes))
    seen = np.zeros(len(layout.labels), dtype=bool)
    lengths = []
    for number in range(epochs):
        shows = np.zeros(classes)
        for ordinals, _ in shown_in_chunks(plan, number, *plan.visits(number)):
            shows += np.bincount(layout.labels[ordinals], minlength=classes)
            seen[ordinals] = True
        achieved += shows
        lengths.append(int(shows.sum()))
        target += plan.target_exposure(number)
        expected += plan.expected_exposure(number)
        tau = plan.options.balance[min(number, len(plan.options.balance) - 1)]
        powers = np.where(plan.class_counts > 0, plan.class_counts.astype(np.float64) ** tau, 0)
        uncapped += powers / powers.sum() * plan.class_counts.sum()
    return Exposure(
        lengths=lengths,
        target=target / epochs,
        expected=expected / epochs,
        achieved=achieved / epochs,
        uncapped=uncapped / epochs,
        unseen_fraction=1 - int(seen.sum()) / int(plan.class_counts.sum()),
    )


def shown_in_chunks(plan: Plan, epoch: int, runs: I64, numbers: I64) -> Iterator[tuple[I64, I64]]:
    """What visits show, about a million samples at a time: (n,) ordinals, visit by visit; (n,) visit of each."""
    for start, stop in chunks_of(np.diff(plan.run_starts)[runs]):
        ordinals, visit = plan.shown(epoch, runs[start:stop], numbers[start:stop])
        yield ordinals, visit + start


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """How evenly batches hold the classes, against independent draws with the epoch's own shares of classes."""

    distinct_classes: float
    """In a batch, mean."""
    distinct_classes_ideal: float
    dispersion: dict[int, float]
    """By length m of a block of consecutive batches: Σ over blocks and classes of (shows − n·p)² / Σ n·p·(1 − p),
    n the block's shows, p the class's share of the epoch. 1 is an independent draw."""
    dispersion_shuffle: dict[int, float]
    """The same of a perfect shuffle of the epoch's L shows: 1 − n/L."""


def mixing(plan: Plan, epochs: int) -> Mixing:
    """Walk full batches of the epochs 0 … `epochs` − 1 until some 8,000 are seen; a long epoch in stretches."""
    classes, size = plan.layout.num_classes, plan.options.batch_size
    distinct: list[float] = []
    distinct_ideal: list[float] = []
    squares, drawn, shuffled = (dict.fromkeys(BLOCKS, 0.0) for _ in range(3))
    for number in range(epochs):
        epoch = plan.epoch(number)
        if len(distinct) >= _STRETCHES * BLOCKS[-1] or epoch.samples < size:
            break
        shows = np.zeros(classes)
        for ordinals, _ in shown_in_chunks(plan, epoch.epoch, epoch.visit_runs, epoch.visit_numbers):
            shows += np.bincount(plan.layout.labels[ordinals], minlength=classes)
        share = shows / epoch.samples
        spread = float((share * (1 - share)).sum())
        distinct_ideal.append(float((1 - (1 - share) ** size).sum()))
        for stretch in _stretches(epoch.samples // size):
            counts = _class_counts(epoch, stretch)
            distinct += (counts > 0).sum(axis=1).tolist()
            for length in BLOCKS:
                for first in range(0, len(stretch) - length + 1, length):
                    block = counts[first : first + length].sum(axis=0)
                    squares[length] += float(((block - length * size * share) ** 2).sum())
                    drawn[length] += length * size * spread
                    shuffled[length] += length * size * spread * (1 - length * size / epoch.samples)
    measured = [length for length in BLOCKS if drawn[length]]
    return Mixing(
        distinct_classes=float(np.mean(distinct or 0)),
        distinct_classes_ideal=float(np.mean(distinct_ideal or 0)),
        dispersion={m: squares[m] / drawn[m] for m in measured},
        dispersion_shuffle={m: shuffled[m] / drawn[m] for m in measured},
    )


def _stretches(batches: int) -> list[range]:
    """Ranges of up to 1,024 consecutive batches: all, or some spread over a long epoch."""
    longest = BLOCKS[-1]
    if batches <= _STRETCHES * longest:
        return [range(start, min(start + longest, batches)) for start in range(0, batches, longest)]
    starts = np.linspace(0, batches - longest, _STRETCHES).astype(int).tolist()
    return [range(start, start + longest) for start in starts]


def _class_counts(epoch: EpochPlan, batches: range) -> NDArray[np.int32]:
    """(len(batches), K) shows of each class in each batch."""
    layout, streams = epoch.plan.layout, range(epoch.plan.options.resolved_streams)
    counts = np.zeros((len(batches), layout.num_classes), dtype=np.int32)
    for row, number in enumerate(batches):
        counts[row] = np.bincount(layout.labels[epoch.batch(number, streams)], minlength=layout.num_classes)
    return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Meetings:
    """Pairs of samples that were in no batch together over some epochs, as a fraction of the pairs looked at.

    Ideal: an epoch's shows in an order at random. Two of them fall into one batch with probability p, the pairs within
    batches over all pairs, so samples with a and b shows are apart with probability (1 − p)^(a·b), about.
    """

    apart: float
    """Of all pairs of up to 2,048 samples drawn by lot, without those of one run."""
    apart_ideal: float
    apart_in_run: float | None
    """Of the pairs of one run among them and their neighbours; None where a run is one sample."""
    apart_in_run_ideal: float | None


def meetings(plan: Plan, epochs: int) -> Meetings:
    """Follow some samples through the epochs 0 … `epochs` − 1."""
    tracked, runs = _tracked(plan)
    met = np.zeros((len(tracked), len(tracked)), dtype=bool)
    log_apart = np.zeros(met.shape)
    for number in range(epochs):
        epoch = plan.epoch(number)
        who, batches = _batches_of(epoch, tracked, runs)
        shows = np.bincount(who, minlength=len(tracked)).astype(np.float64)
        together = _together(epoch.samples, plan.options.batch_size)
        log_apart += (np.log1p(-together) if together < 1 else _CERTAIN) * np.outer(shows, shows)
        order = np.argsort(batches, kind="stable")
        for batch in np.split(who[order], np.flatnonzero(np.diff(batches[order])) + 1):
            met[np.ix_(batch, batch)] = True
    upper = np.triu(np.ones(met.shape, dtype=bool), 1)
    same_run = runs[:, None] == runs[None, :]
    strangers, neighbours = upper & ~same_run, upper & same_run
    apart = np.exp(log_apart)
    some = bool(neighbours.any())
    return Meetings(
        apart=float(1 - met[strangers].mean()) if strangers.any() else 0.0,
        apart_ideal=float(apart[strangers].mean()) if strangers.any() else 0.0,
        apart_in_run=float(1 - met[neighbours].mean()) if some else None,
        apart_in_run_ideal=float(apart[neighbours].mean()) if some else None,
    )


def _together(shows: int, batch_size: int) -> float:
    """Probability that two shows of an epoch in random order are in one batch; the last batch may be short."""
    full, rest = divmod(shows, batch_size)
    within = full * batch_size * (batch_size - 1) + rest * (rest - 1)
    return within / (shows * (shows - 1)) if shows > 1 else 1.0


def _tracked(plan: Plan) -> tuple[I64, I64]:
    """Some samples that are not excluded, three in four by lot and one in four the next of its run; and their runs."""
    included = np.arange(len(plan.layout.labels))
    if plan.layout.excluded is not None:
        included = included[~plan.layout.excluded]
    tracked = included
    if len(included) > _TRACKED_SAMPLES:
        lot = np.random.default_rng(0).choice(included, 3 * _TRACKED_SAMPLES // 4, replace=False)
        places = np.minimum(np.searchsorted(included, lot[: _TRACKED_SAMPLES // 4]) + 1, len(included) - 1)
        tracked = np.unique(np.concatenate([lot, included[places]]))
    return tracked, np.searchsorted(plan.run_starts, tracked, side="right") - 1


def _batches_of(epoch: EpochPlan, tracked: I64, runs: I64) -> tuple[I64, I64]:
    """Every show of the tracked samples in an epoch: (n,) which of them; (n,) its batch."""
    options = epoch.plan.options
    wanted = np.zeros(len(epoch.plan.runs), dtype=bool)
    wanted[runs] = True
    windows = {}
    for visit in np.flatnonzero(wanted[epoch.visit_runs]).tolist():
        place, end = int(epoch.line[visit]), int(epoch.line[visit + 1])
        while place < end:
            stream = int(np.searchsorted(epoch.stream_starts, place, side="right")) - 1
            start = int(epoch.stream_starts[stream])
            samples, first, number = epoch.window_of(stream, place - start)
            windows[stream, number] = samples, first
            place = start + first + len(samples)
    who, batches = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for samples, first in windows.values():
        found = np.minimum(np.searchsorted(tracked, samples), len(tracked) - 1)
        at = np.flatnonzero(tracked[found] == samples)
        who.append(found[at])
        batches.append((first + at) * options.resolved_streams // options.batch_size)
    return np.concatenate(who), np.concatenate(batches)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Bytes that an epoch reads from the shards, over the bytes of the images that it shows."""

    merged: float
    """Shown samples of a visit, with the gaps between them that the reader takes along: at most this, for it reads a
    window in parts, whose samples are seldom neighbours."""
    whole_visits: float
    """Every visit from its run's first byte to its last."""
    used_over_unique: float
    """Bytes of the images shown, repeats and all, over those of all images that are not excluded."""
    mean_bytes: float
    """Of a shown image."""


def reading(epoch: EpochPlan, offsets: I64) -> Reading:
    """Add up an epoch's reads.

    Args:
        epoch: of any length.
        offsets: (N,) first byte of each image within its shard.
    """
    layout, plan = epoch.plan.layout, epoch.plan
    used = gaps = 0
    for ordinals, visit in shown_in_chunks(plan, epoch.epoch, epoch.visit_runs, epoch.visit_numbers):
        sizes = layout.sizes[ordinals].astype(np.int64)
        used += int(sizes.sum())
        gap = offsets[ordinals[1:]] - offsets[ordinals[:-1]] - sizes[:-1]
        gaps += int(gap[(gap <= MAX_GAP_BYTES) & (visit[1:] == visit[:-1])].sum())
    lasts = plan.run_starts[1:] - 1
    spans = offsets[lasts] + layout.sizes[lasts] - offsets[plan.run_starts[:-1]]
    unique = int(layout.sizes[slice(None) if layout.excluded is None else ~layout.excluded].sum(dtype=np.int64))
    return Reading(
        merged=(used + gaps) / used,
        whole_visits=int(spans[epoch.visit_runs].sum()) / used,
        used_over_unique=used / unique,
        mean_bytes=used / epoch.samples,
    )


def buffered_bytes(epoch: EpochPlan, mean_bytes: float, world_size: int) -> int:
    """Bytes of the windows that a rank has open: V/W · window · mean size, windows not longer than a stream."""
    streams = epoch.plan.options.resolved_streams
    window = min(epoch.plan.options.window, epoch.samples / streams)
    return round(streams / world_size * window * mean_bytes)
