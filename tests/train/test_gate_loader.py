"""What a gated phase leaves unread: who, how long, how many of a class; and that a resumed run is still the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wv_shards import Overlay
from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig
from wv_train.errors import FieldError
from wv_train.gate import GateConfig
from wv_train.guard import ClassGuard
from wv_train.job import Job, run_job
from wv_train.ledger import Ledger
from wv_train.recipe import recipe_from_table
from wv_train.signals import Stopped
from wv_train.skipping import Skipping

SAMPLES, CLASSES = 600, 6
LABELS = (np.arange(SAMPLES) % CLASSES).astype(np.int32)
COUNTS = np.bincount(LABELS)
GATE = GateConfig(start=0.5, end=0.5, kind="label", skip_visits=2, min_kept_fraction=0.2)
ALL = np.arange(SAMPLES)


def visit(skipping: Skipping, ledger: Ledger, confidence: NDArray[np.float64], gate: GateConfig = GATE) -> None:
    """All samples are shown once more, with these confidences, under the threshold of `gate`."""
    keep = confidence >= gate.start
    top1, prediction = np.maximum(confidence, 0.5), np.zeros(SAMPLES, dtype=np.int64)
    ledger.update(ALL, label_conf=confidence, top1_conf=top1, prediction=prediction, kept=keep)
    skipping.note(ALL, confidence, keep, gate=gate, threshold=gate.start)


def mask_of(skipping: Skipping, ledger: Ledger, gate: GateConfig = GATE, epoch: int = 0) -> NDArray[np.bool_]:
    return skipping.choose(ledger, gate, threshold=gate.start, labels=LABELS, class_counts=COUNTS, phase=1, epoch=epoch)


def seen_twice(share_far: float, *, gate: GateConfig = GATE) -> tuple[Skipping, Ledger, NDArray[np.bool_]]:
    """Two visits, at which so many of each class are far under the gate; who they are."""
    skipping, ledger = Skipping(SAMPLES, seed=5), Ledger(SAMPLES)
    far = share_far * SAMPLES / CLASSES > ALL // CLASSES
    confidence = np.where(far, 0.1 + ALL / 1e5, 0.4)  # 0.4 is under the gate, not far
    for _ in range(2):
        visit(skipping, ledger, confidence, gate)
    return skipping, ledger, far


def test_only_what_was_far_under_the_gate_at_its_last_visits_is_left_out() -> None:
    skipping, ledger, far = seen_twice(0.5)
    mask = mask_of(skipping, ledger)
    assert mask.any()
    assert not mask[~far].any()
    confidence = np.where(far, 0.1, 0.4)
    confidence[far & (ALL % 2 == 0)] = 0.3  # one visit not far under it: the count begins anew
    visit(skipping, ledger, confidence)
    visit(skipping, ledger, np.where(far, 0.1, 0.4))
    mask = mask_of(skipping, ledger)
    assert mask[ALL % 2 == 1].any()
    assert not mask[ALL % 2 == 0].any()
    lower = GateConfig(start=0.1, kind="label", skip_visits=2)
    assert not mask_of(skipping, ledger, lower).any()  # the threshold has fallen: none is far under it now


def test_far_under_a_share_is_far_under_the_confidence_at_which_it_cuts() -> None:
    gate = GateConfig(start=0.5, unit="share", kind="label", skip_visits=2)
    skipping, ledger = Skipping(SAMPLES, seed=5), Ledger(SAMPLES)
    confidence = np.where(ALL < 200, 0.2, np.where(ALL < 400, 0.6, 0.8))  # a half is gated, so it cuts at 0.6
    for _ in range(2):
        visit(skipping, ledger, confidence, gate)
    mask = mask_of(skipping, ledger, gate)
    assert mask[:200].any()
    assert not mask[200:].any()


def test_what_the_model_has_not_seen_is_never_left_out() -> None:
    skipping, ledger = Skipping(SAMPLES, seed=5), Ledger(SAMPLES)
    assert not mask_of(skipping, ledger).any()
    gate = GateConfig(start=0.5, end=0.5, kind="label_past", skip_visits=2)
    unseen = ALL % 4 == 0
    ledger.rows["seen"] = np.where(unseen, 1, 2)
    for _ in range(3):  # verdicts by the past, without a look
        skipping.note(ALL, np.zeros(SAMPLES), np.zeros(SAMPLES, dtype=np.bool_), gate=gate, threshold=0.5)
    mask = mask_of(skipping, ledger, gate)
    assert mask.any()
    assert not mask[unseen].any()


@pytest.mark.parametrize("revisited", [0.0, 0.3])
def test_a_class_keeps_its_least_share_and_the_least_confident_go_first(revisited: float) -> None:
    gate = GateConfig(start=0.5, kind="label", skip_visits=2, min_kept_fraction=0.35, skip_revisit_fraction=revisited)
    skipping, ledger, _ = seen_twice(1.0, gate=gate)
    mask = mask_of(skipping, ledger, gate)
    gone = np.bincount(LABELS[mask], minlength=CLASSES)
    assert (gone <= 0.65 * COUNTS).all()
    if not revisited:
        assert (gone == 65).all()  # no more than needed either
        for class_id in range(CLASSES):  # confidence rises with the ordinal
            assert mask[class_id::CLASSES][:65].all()
    assert skipping.shown_share(LABELS, COUNTS) == pytest.approx(1 - gone / 100)


def test_an_epoch_shows_its_own_share_of_what_would_be_left_out() -> None:
    skipping, ledger, far = seen_twice(0.5)
    masks = np.stack([mask_of(skipping, ledger, epoch=epoch).copy() for epoch in range(40)])
    shown = ~masks[:, far]
    assert shown.mean() == pytest.approx(GATE.skip_revisit_fraction, abs=0.01)
    assert shown.any(axis=0).mean() > 0.95  # 1 − 0.9^40 = 0.985: not always the same
    assert (mask_of(skipping, ledger, epoch=7) == masks[7]).all()


def test_a_mask_follows_from_what_a_checkpoint_holds() -> None:
    skipping, ledger, _ = seen_twice(0.4)
    mask = mask_of(skipping, ledger).copy()
    restored, other = Skipping(SAMPLES, seed=5), Ledger(SAMPLES)
    restored.load_state(skipping.state())
    other.load_state(ledger.state())
    assert restored.mask is not None
    assert (restored.mask == mask).all()
    assert (mask_of(restored, other) == mask).all()


def test_what_is_skipped_is_a_part_of_the_share_that_is_gated() -> None:
    skipping, ledger, _ = seen_twice(0.4)
    gate = GateConfig(start=0.5, unit="share", kind="label", skip_visits=2)
    assert skipping.threshold(gate, 0.4) == 0.4
    mask = mask_of(skipping, ledger)
    row = skipping.opened(np.flatnonzero(mask), SAMPLES - int(mask.sum()), (~mask).astype(np.int8))
    skipped = int(mask.sum())
    assert (row["skipped"], row["skipped_wrong_fraction"]) == (skipped, 1.0)
    for asked in (0.5, skipped / SAMPLES):
        gated = skipping.threshold(gate, asked) * (SAMPLES - skipped)
        assert skipped + gated == pytest.approx(asked * SAMPLES)
    assert skipping.threshold(gate, 0.1) == 0.0  # more are skipped than shall be gated
    assert skipping.threshold(GATE, 0.4) == 0.4  # a confidence is what it is


def test_the_guard_counts_what_is_not_shown_as_not_kept() -> None:
    guard = ClassGuard(2)
    labels, keep = np.array([0, 1] * 200), np.array([True, True, False, False] * 100)
    guard.update(labels, np.full(400, 0.5), keep)
    assert guard.limits(0.3) is None
    guard.shown_share = np.array([1.0, 0.5])  # a quarter of class 1 is kept
    limits = guard.limits(0.3)
    assert limits is not None
    assert list(np.isfinite(limits)) == [False, True]


def test_skipping_without_a_guard_is_refused() -> None:
    with pytest.raises(FieldError, match="min_kept_fraction"):
        GateConfig(start=0.5, skip_visits=2, min_kept_fraction=0.0)


# -- whole runs -----------------------------------------------------------------------------------------------------


def run(table: dict[str, Any], shards: Path, out: Path, *, resume: bool = False) -> Path:
    data = DataConfig(shards=shards, loader_threads=1)
    run_job(Job(recipe=recipe_from_table(table), data=data, out=out, resume=resume, device="cpu", threads=1))
    return out


@pytest.fixture(scope="module")
def table(tiny_table: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Without a base phase: a gate by share, whose loader skips what was far under it at one visit, or at N."""

    def make(visits: int, steps: int = 30) -> dict[str, Any]:
        table = tiny_table("log_every_steps=8", "validate_every_epochs=0")
        gate = {"start": 0.5, "end": 0.4, "unit": "share", "skip_visits": visits, "skip_margin": 1.0}
        table["phases"] = [{"name": "gated", "steps": steps, "lr": 0.02, "balance": 0.6, "gate": gate}]
        return table

    return make


@pytest.fixture(scope="module")
def whole(table: Callable[..., dict[str, Any]], small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(table(1), small_dataset, tmp_path_factory.mktemp("whole") / "run")


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def skips(out: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(out) if row["kind"] == "skip"]


def test_skipped_visits_are_gated_and_not_seen_and_epochs_get_shorter(whole: Path) -> None:
    found = skips(whole)
    assert found[0]["skipped"] == 0
    assert all(row["skipped"] > 0 for row in found[1:])
    assert len(found) > 2  # of 30 steps, 15 in the first epoch
    ledger = np.load(whole / "ledger.npy")
    steps = [row for row in rows_of(whole) if row["kind"] == "train"]
    shown = steps[-1]["samples"]
    assert ledger["seen"].sum() == shown
    shows = np.diff([0, *(row["samples"] for row in steps)])
    kept = sum(round(row["kept_fraction"] * n) for row, n in zip(steps, shows, strict=True))
    gated = shown - kept + sum(row["skipped"] for row in found)
    assert int(ledger["gated"].sum()) == gated


def test_the_mask_lies_beside_the_run_as_an_overlay(whole: Path) -> None:
    checkpoint = Checkpoint.load(whole / "checkpoints" / "last.pt")
    overlay = Overlay.load(whole / "skipped", manifest_digest=checkpoint.manifest_digest, kind="exclude")
    last = skips(whole)[-1]
    assert overlay.array.sum() == last["skipped_samples"]
    assert (overlay.info["epoch"], overlay.info["step"]) == (last["epoch"], last["step"])


def test_stopped_within_an_epoch_that_skips_and_resumed_it_is_the_same_run(
    whole: Path,
    table: Callable[..., dict[str, Any]],
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[pytest.MonkeyPatch, int | None], None],
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_after(patched, 20)
        with pytest.raises(Stopped):
            run(table(1), small_dataset, out)
    stopped = Checkpoint.load(out / "checkpoints" / "last.pt")
    assert stopped.loader is not None
    assert stopped.position["epoch_step"] > 0
    assert "skip" in stopped.loader["plan"]
    run(table(1), small_dataset, out, resume=True)
    a, b = (Checkpoint.load(one / "checkpoints" / "last.pt") for one in (whole, out))
    assert all(torch.equal(value, b.model[name]) for name, value in a.model.items())
    assert torch.equal(a.ledger, b.ledger)
    assert skips(whole) == skips(out)
    assert (np.load(whole / "skipped.npy") == np.load(out / "skipped.npy")).all()


def test_a_gate_that_skips_nothing_trains_as_one_that_may_not(
    table: Callable[..., dict[str, Any]], small_dataset: Path, tmp_path: Path
) -> None:
    a, b = (
        Checkpoint.load(run(table(visits, 18), small_dataset, tmp_path / str(visits)) / "checkpoints" / "last.pt")
        for visits in (0, 255)
    )
    assert "skipping" not in a.trainer
    assert not (tmp_path / "0" / "skipped.npy").exists()
    assert all(torch.equal(value, b.model[name]) for name, value in a.model.items())
    assert torch.equal(a.ledger, b.ledger)
