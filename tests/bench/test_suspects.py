"""`wv-bench suspects`: folds, the bar, and what a network says of samples that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest

from wv_bench.methods_run import Cost
from wv_bench.suspects import Row, verdicts_of
from wv_bench.suspects_predict import main as predict
from wv_bench.suspects_stages import stratified_folds
from wv_shards import EXCLUDE, Manifest, Overlay
from wv_train.annotate.suspects_judged import Judged
from wv_train.data import DataConfig
from wv_train.job import Job, run_job
from wv_train.recipe import recipe_from_table


def row(way: str, auroc: float, cpu_s: float) -> Row:
    judged = Judged(samples=10, wrong=4, auroc=auroc, average_precision=0.5, precision_at_1=1.0, precision_at_10=1.0)
    return Row(data="worse", way=way, judged=judged, cost=Cost(wall_s=cpu_s, cpu_s=cpu_s))


def test_every_class_is_spread_evenly_over_the_folds() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 501)
    fold_of = stratified_folds(labels, 5, seed=3)
    assert np.ptp(np.bincount(fold_of, minlength=5)) <= 1
    for one in range(7):
        assert np.ptp(np.bincount(fold_of[labels == one], minlength=5)) <= 1
    assert (fold_of == stratified_folds(labels, 5, seed=3)).all()
    assert (fold_of != stratified_folds(labels, 5, seed=4)).any()


@pytest.mark.parametrize(
    ("auroc", "cpu_s", "verdict"), [(0.8, 9.0, "PASS"), (0.79, 9.0, "MISSED"), (0.9, 10.0, "MISSED")]
)
def test_the_bar_is_the_best_of_cleanlabs_scores_at_less_than_a_tenth_of_the_cost(
    auroc: float, cpu_s: float, verdict: str
) -> None:
    rows = [row("suspects, plain", auroc, cpu_s), row("cleanlab, a", 0.7, 100.0), row("cleanlab, b", 0.8, 100.0)]
    assert [one["verdict"] for one in verdicts_of(rows)] == [verdict]
    assert verdicts_of(rows[:1]) == []  # nothing to compare with


def test_a_fold_is_judged_by_a_run_that_did_not_see_it(small_dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(small_dataset)
    left_out = (np.arange(manifest.samples) % 3 == 0).astype(np.uint8)
    Overlay(kind=EXCLUDE, array=left_out, manifest_digest=manifest.digest).save(tmp_path / "left")
    table = {"model": "wv_resnet_16_32_64", "batch_size": 16, "size_px": 16}
    recipe = recipe_from_table({**table, "phases": [{"name": "all", "steps": 2, "lr": 0.05}]})
    data = DataConfig(shards=small_dataset, loader_threads=1, exclude=(tmp_path / "left",))
    run_job(Job(recipe=recipe, data=data, out=tmp_path / "run", device="cpu"))
    seen = Overlay.load(tmp_path / "run" / "ledger", manifest_digest=manifest.digest).array["seen"]
    assert not seen[left_out != 0].any()
    predict(tmp_path / "run", small_dataset, tmp_path / "left", tmp_path / "out.npy", 1)
    found = np.load(tmp_path / "out.npy")
    assert (np.isfinite(found).all(axis=1) == (left_out != 0)).all()
    assert np.allclose(found[left_out != 0].sum(axis=1), 1, atol=1e-5)
