"""DESIGN's laws 3, 4 and 5 over random data sets and options; the plan needs no images."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from wv_loader.plan import EpochPlan, Plan, PlanOptions, SequentialPlan
from wv_loader.rates import ONE
from wv_loader.runs import Layout
from wv_shards import band_of


@dataclass(frozen=True)
class Case:
    layout: Layout
    options: PlanOptions


def banded_layout(class_sizes: list[int], shard_samples: int, rng: np.random.Generator) -> Layout:
    labels, starts, bands = [], [0], []
    for band in sorted({b for n in class_sizes if (b := band_of(n)) is not None}):
        members = np.concatenate([np.full(n, c) for c, n in enumerate(class_sizes) if band_of(n) == band])
        members = rng.permutation(members)
        for start in range(0, len(members), shard_samples):
            labels.append(members[start : start + shard_samples])
            starts.append(starts[-1] + len(labels[-1]))
            bands.append(band)
    joined = np.concatenate(labels).astype(np.int32)
    return Layout(
        labels=joined,
        sizes=rng.integers(1_000, 200_000, len(joined), dtype=np.uint32),
        shard_starts=np.array(starts, dtype=np.int64),
        shard_bands=np.array(bands, dtype=np.int64),
        num_classes=len(class_sizes),
    )


@st.composite
def cases(draw: st.DrawFn, balances: st.SearchStrategy[tuple[float, ...]], bands: bool = True) -> Case:
    sizes = draw(st.lists(st.integers(0, 90), min_size=1, max_size=9).filter(any))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    layout = banded_layout(sizes, draw(st.integers(1, 40)), rng)
    if not bands:  # none, some or all shards without one
        foreign = rng.random(len(layout.shard_bands)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        layout = replace(layout, shard_bands=np.where(foreign, -1, layout.shard_bands))
    if draw(st.booleans()):
        excluded = rng.random(len(layout.labels)) < 0.3
        excluded[rng.integers(len(excluded))] = False
        layout = replace(layout, excluded=excluded)
    batch_size = draw(st.integers(1, 48))
    options = PlanOptions(
        batch_size=batch_size,
        seed=draw(st.integers(0, 2**63 - 1)),
        balance=draw(balances),
        max_repeat=draw(st.sampled_from([1.0, 2.5, 16.0])),
        streams=draw(st.sampled_from([None, *[v for v in range(1, batch_size + 1) if batch_size % v == 0]])),
        window=draw(st.integers(1, 64)),
        run_length=draw(st.sampled_from([None, 1, 3, 8, 64])),
    )
    return Case(layout, options)


TAU = st.sampled_from([0.0, 0.25, 0.5, 0.77, 1.0])
CONSTANT = TAU.map(lambda tau: (tau,))
TAUS = st.lists(TAU, min_size=1, max_size=5).map(tuple)
"""Schedules, constant ones among them."""
AS_COLLECTED = st.just((1.0,))


def walk(epoch: EpochPlan, ranks: int = 1) -> np.ndarray:
    """(batches, B) ordinals, joined over ranks."""
    streams = epoch.plan.options.resolved_streams
    share = streams // ranks
    return np.stack(
        [
            np.concatenate([epoch.batch(b, range(k * share, (k + 1) * share)) for k in range(ranks)])
            for b in range(epoch.batches)
        ]
    )


def shows_of(epoch: EpochPlan) -> np.ndarray:
    """(N,) shows of every sample in an epoch."""
    ordinals, _ = epoch.plan.shown(epoch.epoch, epoch.visit_runs, epoch.visit_numbers)
    return np.bincount(ordinals, minlength=len(epoch.plan.layout.labels)).astype(float)


def share_of(plan: Plan, epoch: int) -> np.ndarray:
    """(N,) shows of every sample that are its due in an epoch."""
    rates = np.repeat(plan.run_rates(epoch), np.diff(plan.run_starts))
    share = np.minimum(plan.class_rates(epoch)[plan.layout.labels], rates) / ONE
    return share if plan.layout.excluded is None else np.where(plan.layout.excluded, 0, share)


def included(layout: Layout) -> np.ndarray:
    everything = np.arange(len(layout.labels))
    return everything if layout.excluded is None else everything[~layout.excluded]


@given(cases(AS_COLLECTED, bands=False), st.integers(0, 5))
def test_as_collected_an_epoch_shows_every_included_sample_once(case: Case, number: int) -> None:
    epoch = Plan(case.layout, case.options).epoch(number)
    shown = walk(epoch).reshape(-1)
    assert np.array_equal(np.sort(shown[shown >= 0]), included(case.layout))
    assert epoch.batches == -(-len(included(case.layout)) // case.options.batch_size)


@given(cases(TAUS, bands=False), st.integers(0, 9))
def test_ranks_joined_give_the_same_batches_for_every_world_size(case: Case, number: int) -> None:
    alone = Plan(case.layout, case.options).epoch(number)
    streams = case.options.resolved_streams
    for ranks in (w for w in range(1, streams + 1) if streams % w == 0):
        share = streams // ranks
        # Every rank plans for itself, and none knows of the others: all must go on for equally long.
        plans = [Plan(case.layout, case.options).epoch(number) for _ in range(min(ranks, 3))]
        assert {plan.batches for plan in plans} == {alone.batches}
        for b in range(alone.batches):
            parts = [plans[k % len(plans)].batch(b, range(k * share, (k + 1) * share)) for k in range(ranks)]
            assert {len(part) for part in parts} == {case.options.batch_size // ranks}
            assert np.array_equal(np.concatenate(parts), alone.batch(b, range(streams)))


@given(cases(TAUS, bands=False), st.integers(0, 4), st.data())
def test_any_batch_is_the_same_asked_alone_as_in_order(case: Case, number: int, data: st.DataObject) -> None:
    plan = Plan(case.layout, case.options)
    epoch = plan.epoch(number)
    if not epoch.batches:
        return
    b = data.draw(st.integers(0, epoch.batches - 1))
    alone = plan.epoch(number).batch(b, range(case.options.resolved_streams))
    assert np.array_equal(alone, walk(epoch)[b])


@settings(max_examples=60)
@given(cases(CONSTANT, bands=False))
def test_every_sample_stays_within_two_shows_of_its_share_and_runs_within_one_visit(case: Case) -> None:
    plan = Plan(case.layout, case.options)
    rates, share = plan.run_rates(0) / ONE, share_of(plan, 0)
    visits, shows = np.zeros(len(rates)), np.zeros(len(share))
    for e in range(20):
        epoch = plan.epoch(e)
        visits += np.bincount(epoch.visit_runs, minlength=len(visits))
        shows += shows_of(epoch)
        assert (np.abs(visits - rates * (e + 1)) <= 1).all()
        assert (np.abs(shows - share * (e + 1)) < 2 + 1e-6).all()
    assert (shows[share * 20 >= 2] > 0).all()


@settings(max_examples=60)
@given(cases(TAUS, bands=False))
def test_under_a_schedule_runs_stay_within_one_visit_and_samples_within_two_shows_a_stretch(case: Case) -> None:
    plan = Plan(case.layout, case.options)
    visits, wanted_visits = np.zeros((2, len(plan.runs)))
    shows, wanted_shows = np.zeros((2, len(case.layout.labels)))
    for e in range(8):
        epoch = plan.epoch(e)
        visits += np.bincount(epoch.visit_runs, minlength=len(visits))
        wanted_visits += plan.run_rates(e) / ONE
        shows += shows_of(epoch)
        wanted_shows += share_of(plan, e)
        assert (np.abs(visits - wanted_visits) <= 1).all()
        stretches = min(e + 1, len(case.options.balance))
        assert (np.abs(shows - wanted_shows) < 2 * stretches + 1e-6).all()


@given(cases(TAUS, bands=False), st.lists(st.integers(0, 12), min_size=1, max_size=4))
def test_an_epoch_is_the_same_whatever_was_planned_before(case: Case, numbers: list[int]) -> None:
    used = Plan(case.layout, case.options)
    for number in numbers:
        fresh = Plan(case.layout, case.options).epoch(number)
        epoch = used.epoch(number)
        assert np.array_equal(epoch.visit_runs, fresh.visit_runs)
        assert np.array_equal(epoch.visit_numbers, fresh.visit_numbers)
        assert np.array_equal(epoch.visit_shows, fresh.visit_shows)


@given(cases(TAUS, bands=False), st.integers(0, 5))
def test_windows_are_what_a_stream_shows_next(case: Case, number: int) -> None:
    epoch = Plan(case.layout, case.options).epoch(number)
    streams, per_stream = case.options.resolved_streams, case.options.batch_size // case.options.resolved_streams
    for stream in range(streams):
        shown = np.concatenate(
            [np.empty(0), *(epoch.batch(b, range(stream, stream + 1)) for b in range(epoch.batches))]
        )
        length = int((shown >= 0).sum())
        position, last = 0, None
        while position < length:
            samples, first, window = epoch.window_of(stream, position)
            assert first == position
            assert last is None or window == last + 1
            assert 0 < len(samples) <= 1.5 * case.options.window + 1
            assert samples.tolist() == shown[position : position + len(samples)].tolist()
            position, last = position + len(samples), window
        with pytest.raises(IndexError, match=f"stream {stream} of epoch {number} has no position {length}"):
            epoch.window_of(stream, length)
        assert length <= epoch.batches * per_stream


def test_the_windows_of_the_streams_turn_one_after_the_other() -> None:
    layout = banded_layout([6400], 640, np.random.default_rng(0))
    epoch = Plan(layout, PlanOptions(batch_size=8, streams=8, window=80)).epoch(0)
    firsts = [epoch.window_of(stream, 400)[1] % 80 for stream in range(8)]
    assert firsts == [10 * stream for stream in range(8)]


@given(cases(TAUS), st.integers(0, 30))
def test_the_predicted_length_of_an_epoch_is_exact(case: Case, number: int) -> None:
    epoch = Plan(case.layout, case.options).epoch(number)
    shown = walk(epoch).reshape(-1) if epoch.batches else np.empty(0)
    assert (shown >= 0).sum() == epoch.samples == epoch.visit_shows.sum()


@given(cases(TAUS), st.integers(0, 3))
def test_only_the_last_batch_is_padded_and_evenly(case: Case, number: int) -> None:
    epoch = Plan(case.layout, case.options).epoch(number)
    if not epoch.batches:
        return
    batches = walk(epoch)
    assert (batches[:-1] >= 0).all()
    padded = (batches[-1].reshape(case.options.resolved_streams, -1) < 0).sum(axis=1)
    assert padded.max() - padded.min() <= 1


@given(cases(TAUS), st.integers(0, 5))
def test_excluded_samples_are_never_shown(case: Case, number: int) -> None:
    epoch = Plan(case.layout, case.options).epoch(number)
    if not epoch.batches:
        return
    shown = walk(epoch)
    assert set(shown[shown >= 0].tolist()) <= set(included(case.layout).tolist())


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_class_exposure_follows_tau(tau: float) -> None:
    sizes = [400, 390, 200, 120, 60, 30, 10]
    layout = banded_layout(sizes, 100, np.random.default_rng(0))
    plan = Plan(layout, PlanOptions(batch_size=32, balance=(tau,)))
    epochs = 60
    shows = Counter[int]()
    for e in range(epochs):
        epoch = plan.epoch(e)
        ordinals, _ = plan.shown(e, epoch.visit_runs, epoch.visit_numbers)
        shows.update(layout.labels[ordinals].tolist())
    weights = np.array(sizes, dtype=float) ** tau
    capped = weights / weights.sum() * sum(sizes) > 16 * np.array(sizes)
    wanted = np.array(sizes) * 16.0
    wanted[~capped] = (sum(sizes) - wanted[capped].sum()) * weights[~capped] / weights[~capped].sum()
    achieved = np.array([shows[c] / epochs for c in range(len(sizes))])
    assert np.allclose(achieved, wanted, rtol=0.02)
    assert np.allclose(plan.expected_exposure(0), wanted, rtol=1e-6)
    assert (tau == 0.0) == bool(capped.any())  # the cap is exercised by the smallest class


def test_balance_may_change_by_epoch() -> None:
    layout = banded_layout([300, 30], 50, np.random.default_rng(0))
    plan = Plan(layout, PlanOptions(batch_size=10, balance=(1.0, 0.0)))
    assert np.allclose(plan.expected_exposure(0), [300, 30])
    assert np.allclose(plan.expected_exposure(1), [165, 165])
    assert np.allclose(plan.expected_exposure(7), [165, 165])
    shown = walk(plan.epoch(5))
    counts = np.bincount(layout.labels[shown[shown >= 0]])
    assert np.allclose(counts, [165, 165], rtol=0.1)


def test_without_bands_the_rate_is_capped_and_the_loss_is_reported() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(640, dtype=np.int32)
    labels[::64] = 1  # one rare sample in every 64
    layout = Layout(
        labels=labels,
        sizes=rng.integers(1_000, 2_000, 640, dtype=np.uint32),
        shard_starts=np.array([0, 640]),
        shard_bands=np.array([-1]),
        num_classes=2,
    )
    plan = Plan(layout, PlanOptions(batch_size=16, balance=(0.0,), max_repeat=32.0, run_length=64))
    assert plan.target_exposure(0)[1] == pytest.approx(320, rel=1e-6)
    assert plan.expected_exposure(0)[1] < 0.2 * plan.target_exposure(0)[1]
    shows = sum(
        int((labels[plan.shown(e, p.visit_runs, p.visit_numbers)[0]] == 1).sum())
        for e in range(50)
        for p in [plan.epoch(e)]
    )
    assert shows / 50 == pytest.approx(plan.expected_exposure(0)[1], rel=0.02)


def test_seeds_and_epochs_differ_in_order() -> None:
    layout = banded_layout([200, 100], 50, np.random.default_rng(0))

    def order(seed: int, number: int) -> list[int]:
        return walk(Plan(layout, PlanOptions(batch_size=20, seed=seed)).epoch(number)).reshape(-1).tolist()

    assert len({tuple(order(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4


def test_the_plan_is_the_same_for_ever() -> None:
    """A change here is a new PLAN_VERSION: checkpoints of older plans must be refused."""
    layout = Layout(
        labels=np.array([c for c in range(40) for _ in range(1 + c)], dtype=np.int32),
        sizes=np.full(820, 1000, dtype=np.uint32),
        shard_starts=np.array([0, 300, 500, 820]),
        shard_bands=np.array([4, 6, 9]),
        num_classes=40,
    )
    digests = [
        xxhash.xxh3_64_hexdigest(
            walk(Plan(layout, PlanOptions(batch_size=48, seed=5, balance=(tau,))).epoch(3)).tobytes()
        )
        for tau in (0.0, 0.5, 1.0)
    ]
    assert digests == ["cce33d3f3cb0bae4", "eed3d52e2dbba05b", "45cf23802cea248a"]


@given(st.integers(1, 70), st.integers(1, 12), st.floats(0, 0.9))
def test_evaluation_shows_every_sample_once_on_any_number_of_ranks(samples: int, batch_size: int, gone: float) -> None:
    excluded = np.random.default_rng(samples).random(samples) < gone
    layout = Layout(
        labels=np.zeros(samples, dtype=np.int32),
        sizes=np.ones(samples, dtype=np.uint32),
        shard_starts=np.array([0, samples]),
        shard_bands=np.array([-1]),
        num_classes=1,
        excluded=excluded if excluded.any() else None,
    )
    plan = SequentialPlan(layout, batch_size)
    for ranks in (w for w in range(1, batch_size + 1) if batch_size % w == 0):
        share = batch_size // ranks
        slots = [range(k * share, (k + 1) * share) for k in range(ranks)]
        shown = np.concatenate([np.empty(0), *(plan.batch(b, s) for b in range(plan.batches) for s in slots)])
        assert shown[: plan.samples].tolist() == np.flatnonzero(~excluded).tolist()
        assert len(shown) == plan.batches * batch_size
        assert (shown[plan.samples :] == -1).all()
        assert len(shown) - plan.samples < batch_size
