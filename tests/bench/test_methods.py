"""`wv-bench methods`: what decides a run, what a results folder says, how bars are judged. Nothing is trained here."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from wv_bench import cli
from wv_bench.methods_bars import Verdict, judge
from wv_bench.methods_data import REGIMES, skewed_counts
from wv_bench.methods_ensemble import ensembles_of
from wv_bench.methods_judge import on_training_images
from wv_bench.methods_page import page
from wv_bench.methods_plan import Contestant, Run, Setting, contestants_named, contestants_to_tune, grid, plan_runs
from wv_bench.methods_recipes import METHODS
from wv_bench.methods_results import paired, summarise
from wv_bench.methods_run import Workers
from wv_bench.methods_table import best_values
from wv_bench.methods_values import VALUES, Budget
from wv_train.recipe import recipe_from_table

WORSE = np.repeat(np.arange(10), [5309, 6053, 5342, 4673, 4040, 5668, 4203, 5273, 4629, 4810])
"""CIFAR-10N's noisy labels, sorted."""


def result(
    method: str, seed: int, top1: float, *, data: str = "worse", regime: str = "memorise", **more: Any
) -> dict[str, Any]:
    scores = {
        "top1": top1,
        "mean_class_top1": top1 - 0.01,
        "few_top1": 0.2,
        "memorised_fraction": 0.5,
        "train_true_top1": 0.6,
    }
    return {
        "set": data,
        "regime": regime,
        "method": method,
        "label": method,
        "seed": seed,
        "steps": 100,
        "model": scores,
        "ema": {**scores, "top1": top1 + 0.02},
        "gate": None,
        "kept_by_class": None,
        "cost": {"wall_s": 10.0 + seed, "cpu_s": None},
        "commit": "abc",
        **more,
    }


def plan(out: Path, *names: str, seeds: tuple[int, ...] = (0, 1), sets: tuple[str, ...] = ("worse",)) -> list[Run]:
    setting = Setting(out=out)
    return plan_runs(setting, sets, ("memorise", "short"), contestants_named(names), seeds, lambda _: WORSE)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_has_the_steps_of_its_budget_and_says_what_the_trainer_knows(method: Any) -> None:
    for budget in (Budget(images=5000, epochs=60), Budget(images=1237, epochs=7, batch_size=64, skewed=True)):
        for values in (VALUES, *grid(method.name)):
            recipe = recipe_from_table(tomllib.loads(method.recipe(budget, values)))
            assert sum(phase.steps or phase.max_steps or 0 for phase in recipe.phases) == budget.steps
            assert recipe.ema_decay > 0
            assert max(phase.lr for phase in recipe.phases) == pytest.approx(budget.lr)


def test_a_skewed_set_falls_by_a_hundred_along_an_exponential() -> None:
    available = np.bincount(WORSE)
    for images in (5000, 1_000_000):
        counts = skewed_counts(available, images)
        assert (counts <= available).all()
        ordered = np.sort(counts)[::-1]
        assert ordered / ordered[0] == pytest.approx(100 ** (-np.arange(10) / 9), abs=1 / ordered[0])
    assert skewed_counts(available, 5000).sum() == pytest.approx(5000, abs=10)
    assert (skewed_counts(available, 1_000_000) / available).max() > 0.999  # all that there are


def test_a_skewed_run_shows_as_many_images_as_a_balanced_one(tmp_path: Path) -> None:
    for run in plan(tmp_path, "ce", sets=("worse", "worse-skewed")):
        regime = REGIMES[run.regime.name]
        assert run.shows == pytest.approx(regime.images * regime.epochs, rel=0.03)


def test_seeds_come_outermost_and_a_base_before_who_needs_it(tmp_path: Path) -> None:
    runs = plan(tmp_path, "distill", "curriculumnet", "gate")
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    for at, run in enumerate(runs):
        assert run.base is None or run.base in runs[:at]
    assert len({run.folder for run in runs}) == len(runs) == 16  # ce, gate, curriculumnet, distill


def test_what_changes_a_result_changes_the_folder_and_nothing_else_does(tmp_path: Path) -> None:
    run = plan(tmp_path, "gate")[0]
    other = replace(run, contestant=Contestant(method=METHODS["gate"], values=replace(VALUES, base_fraction=0.5)))
    assert len({one.digest for one in (run, other, replace(run, seed=7), replace(run, regime=REGIMES["short"]))}) == 4
    held = replace(run, setting=replace(run.setting, holdout=0.1))
    assert held.digest != run.digest
    assert replace(run, setting=replace(run.setting, out=tmp_path / "elsewhere")).digest == run.digest


def test_what_is_done_is_not_done_again_and_a_failure_stops_no_other(tmp_path: Path) -> None:
    """A worker that finds only results has no process to start; runs without their base's result fail by name."""
    runs = plan(tmp_path, "ce", "distill", seeds=(0,))
    for run in runs:
        if run.contestant.method.name == "ce":
            run.result_file.parent.mkdir(parents=True)
            run.result_file.write_text("{}")
    said: list[str] = []
    workers = Workers(sets={}, machine={}, jobs=2, threads=1, say=said.append)  # no set: whatever starts fails
    workers.work(runs)
    assert said[0] == "2 of 6 runs are done already"
    assert set(workers.failed) == {run.result_file for run in runs if not run.result_file.exists()}
    assert sum("the run that it starts from failed" in why for why in workers.failed.values()) == 2


def test_differences_are_made_seed_by_seed_before_they_are_averaged() -> None:
    plain, gate = {0: 0.50, 1: 0.60, 2: 0.70}, {1: 0.66, 2: 0.78, 0: 0.60, 3: 0.1}  # seed 3 has no partner
    results = [result("ce", seed, value) for seed, value in plain.items()]
    results += [result("gate", seed, value) for seed, value in gate.items()]
    rows = {(row.label, row.weights): row for row in summarise(results)}
    row = rows["gate", "model"]
    differences = [0.10, 0.06, 0.08]
    assert row.over_ce is not None
    assert row.over_ce.mean == pytest.approx(np.mean(differences))
    assert row.over_ce.error == pytest.approx(np.std(differences, ddof=1) / 3**0.5)
    assert row.over_ce.seeds == 3
    mean = row.measures["top1"]
    assert mean is not None
    assert (mean.seeds, mean.mean) == (4, pytest.approx(np.mean(list(gate.values()))))
    assert row.wall_ratio is not None
    assert row.wall_ratio.mean == 1.0
    assert row.cpu_ratio is None  # an interrupted run's time is not known
    ema = rows["ce", "ema"].measures["top1"]
    assert ema is not None
    assert ema.mean == pytest.approx(0.62)
    assert paired({0: results[0]}, {1: results[1]}, "model", "top1") is None


def verdicts_of(results: list[dict[str, Any]]) -> list[Verdict]:
    """With `gate` as the best gate, and no ensembles."""
    return judge(results, [], best_gate="gate")


@pytest.mark.parametrize(
    ("over", "word"), [((0.07, 0.08, 0.075), "PASS"), ((0.0, 0.15, 0.08), "MISSED"), ((0.05, 0.051, 0.052), "MISSED")]
)
def test_the_headline_bar_wants_six_points_and_three_standard_errors(over: tuple[float, ...], word: str) -> None:
    results = [result("ce", seed, 0.5) for seed in range(3)]
    results += [result("gate", seed, 0.5 + more) for seed, more in enumerate(over)]
    verdicts = verdicts_of(results)
    assert verdicts[0].word == word
    assert verdicts[1].word == "missing"  # nothing was run with the short budget


def test_a_collapse_or_a_rival_or_a_gated_rare_class_misses_its_bar() -> None:
    short = {"regime": "short"}
    results = [result("ce", seed, 0.7, **short) for seed in range(3)]
    good = [result("gate", seed, 0.72, **short) for seed in range(3)]
    assert verdicts_of([*results, *good])[1].word == "PASS"
    assert "collapsed: seeds 2" in verdicts_of([*results, *good[:2], result("gate", 2, 0.2, **short)])[1].found
    rivals = [result(name, seed, 0.7, **short) for name in ("gce", "sce", "elr", "mixup") for seed in range(3)]
    best = [result("label_smoothing", seed, 0.73 + 0.01 * seed, **short) for seed in range(3)]
    words = {one.data: one for one in verdicts_of([*results, *good, *rivals, *best]) if "rival" in one.bar}
    assert words["worse short, model"].word == "MISSED"
    assert "over label_smoothing" in words["worse short, model"].found
    skew: dict[str, Any] = {"data": "worse-skewed"}
    names = {"ce": 0.4, "gate": 0.41, "balanced": 0.45}
    skewed = [result(name, seed, value, **skew) for name, value in names.items() for seed in range(3)]
    for rare, word in ((0.5, "PASS"), (0.1, "MISSED")):
        kept = [{"name": str(k), "samples": 10 + k, "kept_fraction": rare if k < 3 else 0.7} for k in range(10)]
        facts = {"gate": {"kept_fraction": 0.7, "kept_precision": None}, "kept_by_class": kept}
        both = [result("balanced_gate", seed, 0.47, **skew, **facts) for seed in range(3)]
        found = {one.bar.split(",")[0]: one.word for one in verdicts_of([*skewed, *both]) if "skewed" in one.data}
        assert found["sampling and class weights over neither"] == "PASS"
        assert found["gate and rebalancing better than either alone"] == word


def test_memorised_is_counted_over_wrong_labels_that_are_known() -> None:
    labels, true = np.array([0, 1, 2, 2, 1, 0]), np.array([0, 2, -1, 1, -2, 1])  # −1: no class, −2: not known
    found = on_training_images(np.array([0, 1, 2, 1, 1, -1]), labels, true)
    assert found["memorised_fraction"] == pytest.approx(2 / 3)  # ordinals 1, 2, 3; 5 was not seen
    assert found["train_true_top1"] == pytest.approx(2 / 3)  # ordinals 0, 1, 3


def test_ensembles_are_of_three_seeds_and_of_three_methods_where_all_are_done(tmp_path: Path) -> None:
    words = ("ce", "sce", "mixup_then_gate", "sce_then_gate", "balanced", "balanced_gate", "adjusted_gate")
    runs = plan(tmp_path, *words, seeds=(0, 1, 2), sets=("worse", "worse-skewed"))
    assert ensembles_of(runs, "sce_then_gate") == []
    missing = {("worse", "memorise", "sce", 0), ("worse-skewed", "memorise", "ce", 2), ("worse", "memorise", "ce", 1)}
    for run in runs:
        if run.regime.name == "memorise" and (run.data, "memorise", run.label, run.seed) not in missing:
            run.result_file.parent.mkdir(parents=True)
            run.result_file.write_text("{}")
    found = {
        (members[0].data, tuple((run.label, run.seed) for run in members))
        for members in ensembles_of(runs, "sce_then_gate")
    }
    assert found == {
        ("worse", tuple(("sce_then_gate", seed) for seed in range(3))),
        ("worse", tuple((label, 1) for label in ("sce", "mixup_then_gate", "sce_then_gate"))),
        ("worse-skewed", tuple(("sce_then_gate", seed) for seed in range(3))),
        ("worse-skewed", tuple(("balanced_gate", seed) for seed in range(3))),
        ("worse-skewed", tuple((label, 0) for label in ("balanced", "balanced_gate", "adjusted_gate"))),
    }


def test_a_results_folder_is_shown_and_tuned_values_stay_apart(test_data: Path, tmp_path: Path) -> None:
    for run in plan(tmp_path, "ce", "gate"):
        run.result_file.parent.mkdir(parents=True)
        made = result(run.label, run.seed, 0.5 + 0.05 * (run.label == "gate"), regime=run.regime.name)
        run.result_file.write_text(json.dumps(made))
    words = ["methods", str(tmp_path), "--data", str(test_data), "--sets", "worse", "--methods", "ce,gate"]
    shown = CliRunner().invoke(cli.main, [*words, "--show", "--bars", "--seeds", "0,1"])
    assert shown.exit_code == 0, shown.output
    assert "+5.0 ± 0.0" in shown.output
    assert len(json.loads((tmp_path / "methods.json").read_text())["rows"]) == 8
    assert "<svg" in (tmp_path / "methods.html").read_text()
    document = (tmp_path / "methods.md").read_text()
    assert "| gate | 55.0 ± 0.0 | +5.0 ± 0.0 |" in document
    assert "| MISSED | gate " not in document
    assert "| missing | sce_then_gate over cross-entropy |" in document
    assert "0 done" in CliRunner().invoke(cli.main, [*words, "--tune", "--dry-run"]).output


def test_labels_of_tuned_values_name_what_differs_and_the_page_takes_any(tmp_path: Path) -> None:
    labels = [one.label for one in contestants_to_tune(("gce",))("worse")]
    assert labels == ["gce", "gce gce_q=0.3", "gce gce_q=0.7"]
    tuned = [result("gce", 0, value, label=label) for label, value in zip(labels, (0.5, 0.6, 0.55), strict=True)]
    assert best_values(summarise(tuned))[0] == "worse memorise gce, model: best of 3: gce_q=0.3, 60.0"
    rows = summarise([result("<b>", 0, 0.5)])
    about = {"processor": "p", "cores": 1, "python": "3", "command": "c"}
    assert "<b>" not in page(rows, [], about)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--methods nothing", "expected core, all or some of ce,"),
        ("--seeds 2-x", "expected seeds as in 0-2 or 0,3,7"),
        ("--seeds 3-1", "expected seeds as in 0-2 or 0,3,7"),
        ("--show", "--show and --dry-run: expected one of them"),
        ("--published --sets demo", "leave out --sets"),
        ("--bars --best-gate ce", "'ce' is not one of 'gate',"),
        ("--tune --study gate", "expected one of them"),
        ("--bars --images 500", "--bars are for the regimes as they are"),
        ("--sets worse-skewed", "--data is missing"),
    ],
)
def test_a_mistake_is_a_line(tmp_path: Path, words: str, message: str) -> None:
    told = CliRunner().invoke(cli.main, ["methods", str(tmp_path / "out"), "--dry-run", *words.split()])
    assert told.exit_code == 2
    assert message in told.output.splitlines()[-1]


def test_every_contestant_is_explained_in_the_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text()
    assert [name for name, one in METHODS.items() if f"| `{name}` | {one.about} |" not in text] == []


def test_a_folder_that_is_not_there_has_no_results_to_show(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli.main, ["methods", str(tmp_path / "out"), "--show"])
    assert told.exit_code == 2
    assert "there are no results yet" in told.output


def test_a_model_that_nobody_knows_is_refused_before_anything_is_planned(tmp_path: Path) -> None:
    words = ["methods", str(tmp_path), "--sets", "demo", "--model", "resnet_18", "--dry-run"]
    told = CliRunner().invoke(cli.main, words)
    assert (told.exit_code, len(told.output.splitlines())) == (1, 1)
    assert "model resnet_18: neither one of wv-toolkit's nor of timm's" in told.output
