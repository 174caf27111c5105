"""Ensembles: weights as they are written, fitted where nothing better exists, on one half and never on the other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from wv_loader import Loader
from wv_shards import Dataset
from wv_train.cli_eval import command
from wv_train.crops import crop_positions
from wv_train.ensemble import fit_weights, in_fitting_half, mixture, normalized, parse_member
from wv_train.evaluate import log_probabilities
from wv_train.trained import load_trained


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("runs/a", "runs/a", None),
        ("runs/a:0.6", "runs/a", 0.6),
        ("runs/a:b", "runs/a:b", None),
        ("runs/12:30:2", "runs/12:30", 2.0),
        (":0.5", ":0.5", None),
        ("0.5", "0.5", None),
        ("a:0", "a", 0.0),
    ],
)
def test_the_weight_is_what_comes_after_the_last_colon_if_it_is_a_number(
    text: str, path: str, weight: float | None
) -> None:
    assert parse_member(text) == (Path(path), weight)


@pytest.mark.parametrize("text", ["a:-1", "a:nan", "a:inf"])
def test_a_weight_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a weight of 0 or more"):
        parse_member(text)


def test_weights_are_made_to_sum_to_one_and_are_all_given_or_none() -> None:
    assert normalized([3.0, 1.0]).tolist() == [0.75, 0.25]  # type: ignore[union-attr]
    assert normalized([None, None]) is None
    with pytest.raises(ValueError, match="every run or for none, found 1 for 2"):
        normalized([1.0, None])
    with pytest.raises(ValueError, match="found only 0"):
        normalized([0.0, 0.0])


def test_a_mixture_is_the_weighted_mean_of_the_softmaxes() -> None:
    logs = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0)).log_softmax(dim=2)
    weights = np.array([0.2, 0.0, 0.8])
    expected = (torch.tensor([0.2, 0.0, 0.8])[:, None, None] * logs.exp()).sum(dim=0)
    assert torch.allclose(mixture(logs, weights).exp(), expected)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 80))
def test_no_other_weights_are_more_likely_than_the_fitted_by_more_than_the_gap(seed: int, members: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    logs = np.log(rng.beta(0.5, 1.5, (n, members)).clip(1e-12))
    fitted = fit_weights(logs)
    assert fitted.weights.sum() == pytest.approx(1)
    assert (fitted.weights >= 0).all()
    assert 0 <= fitted.gap + 1e-12 <= 2e-5
    others = rng.dirichlet(np.full(members, 0.5), 200)
    likelihoods = np.log(np.exp(logs) @ others.T).mean(axis=0)
    assert likelihoods.max() <= fitted.mean_log_likelihood + fitted.gap + 1e-9


def test_fitted_weights_are_those_that_drew_the_labels() -> None:
    """Labels are drawn from 0.7 · one member + 0.3 · another; a third says nothing."""
    rng = np.random.default_rng(0)
    n, classes = 60_000, 5
    members = rng.dirichlet(np.full(classes, 0.3), (3, n))  # (M, n, K)
    members[2] = 1 / classes
    mixed = 0.7 * members[0] + 0.3 * members[1]
    labels = (mixed.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=classes - 1)
    logs = np.log(members[:, np.arange(n), labels].T.clip(1e-300))
    assert fit_weights(logs).weights == pytest.approx([0.7, 0.3, 0.0], abs=0.02)


def test_labels_that_no_softmax_believes_underflow_nothing() -> None:
    logs = np.array([[-1e4, -2e4], [-1.0, -3.0], [-800.0, 0.0]])
    fitted = fit_weights(logs)
    assert np.isfinite(fitted.mean_log_likelihood)
    assert fitted.weights == pytest.approx([2 / 3, 1 / 3], abs=0.1)


def test_halves_are_alike_in_size_and_the_same_for_every_build() -> None:
    keys = [f"c{i % 50:03d}-{i:06d}" for i in range(20_000)]
    half = in_fitting_half(keys)
    assert abs(half.mean() - 0.5) < 0.02
    order = np.random.default_rng(0).permutation(len(keys))
    assert np.array_equal(in_fitting_half([keys[i] for i in order]), half[order])


def run_eval(*arguments: object) -> dict[str, object]:
    done = CliRunner().invoke(command, [*map(str, arguments), "--device", "cpu", "--loader-threads", "1"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    path = Path(arguments[arguments.index("--json") + 1])  # type: ignore[arg-type]
    return dict(json.loads(path.read_text()))


def options_of(one: click.Command) -> list[str]:
    return [option for parameter in one.params for option in parameter.opts if option.startswith("--")]


def softmaxes(run: Path, shards: Path, position: tuple[float, float] = (0.5, 0.5)) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) of a run and (N,) labels, the plain way: everything in memory."""
    trained = load_trained(run, checkpoint="last", weights="auto", device=torch.device("cpu"))
    recipe, rows, labels = trained.recipe, [], []
    options = {"batch_size": 16, "size_px": recipe.size_px, "train": False, "augment": recipe.augment, "threads": 1}
    where = {"rank": 0, "world_size": 1, "crop_position": position}
    with Loader(shards, **options, **where) as loader, torch.no_grad():  # type: ignore[arg-type]
        for batch in loader:
            rows.append(log_probabilities(trained.model, batch, batch.valid).double().exp().numpy())
            labels.append(batch.labels[batch.valid].numpy())
    return np.concatenate(rows), np.concatenate(labels)


def test_crops_are_numbers_of_their_own_and_their_average_is_of_the_mean_softmax(
    two_runs: tuple[Path, Path], val_dataset: Path, tmp_path: Path
) -> None:
    run = two_runs[1]
    result = run_eval("--run", run, "--crops", "3", "--shards", val_dataset, "--json", tmp_path / "c.json")
    crops: Any = result["crops"]
    each = [softmaxes(run, val_dataset, position) for position in crop_positions(3)]
    labels = each[0][1]
    assert [row["top1"] for row in crops["positions"]] == [(one.argmax(axis=1) == labels).mean() for one, _ in each]
    mean = np.mean([one for one, _ in each], axis=0)
    assert crops["averaged"]["top1"] == (mean.argmax(axis=1) == labels).mean()
    assert crops["averaged"]["loss"] == pytest.approx(-np.log(mean[np.arange(60), labels]).mean(), rel=1e-5)
    centre = -np.log(each[0][0][np.arange(60), labels]).mean()
    assert result["loss"] == pytest.approx(centre, rel=1e-5)
    assert abs(centre - crops["averaged"]["loss"]) > 1e-4


def test_an_ensemble_of_two_sizes_is_the_weighted_mean_sample_by_sample(
    two_runs: tuple[Path, Path], val_dataset: Path, tmp_path: Path
) -> None:
    a, b = two_runs
    arguments = ("--ensemble", f"{a}:3", "--ensemble", f"{b}:1", "--shards", val_dataset, "--json", tmp_path / "e.json")
    result = run_eval(*arguments)
    (first, labels), (second, _) = softmaxes(a, val_dataset), softmaxes(b, val_dataset)
    mixed = 0.75 * first + 0.25 * second
    assert result["kind"] == "ensemble"
    assert result["samples"] == 60
    assert result["top1"] == (mixed.argmax(axis=1) == labels).mean()
    assert result["loss"] == pytest.approx(-np.log(mixed[np.arange(60), labels]).mean(), rel=1e-5)
    members = result["members"]
    assert isinstance(members, list)
    for member, run, one in zip(members, two_runs, (first, second), strict=True):
        assert member["run"] == str(run)
        assert member["top1"] == (one.argmax(axis=1) == labels).mean()
    assert [member["weight"] for member in members] == [0.75, 0.25]
    assert [member["size_px"] for member in members] == [16, 20]
    assert result["weights_from"] == "given"
    assert result["fit"] is None


def test_weights_are_fitted_on_one_half_and_everything_is_tested_on_the_other(
    two_runs: tuple[Path, Path], val_dataset: Path, tmp_path: Path
) -> None:
    a, b = two_runs
    arguments = ("--ensemble", a, "--ensemble", b, "--fit-weights", "--shards", val_dataset)
    result = run_eval(*arguments, "--json", tmp_path / "fit.json", "--batch-size", "7")
    (first, labels), (second, _) = softmaxes(a, val_dataset), softmaxes(b, val_dataset)
    with Dataset.open(val_dataset) as dataset:
        half = in_fitting_half(dataset.keys(range(60)))
    at = np.arange(60)
    fitted = fit_weights(np.log(np.stack([first[at, labels], second[at, labels]], axis=1)[half]))
    mixtures = {row["weights_from"]: row for row in result["mixtures"]}  # type: ignore[attr-defined]
    assert list(mixtures) == ["fitted", "equal"]
    assert mixtures["fitted"]["weights"] == pytest.approx(fitted.weights, abs=1e-3)
    assert result["fit"]["samples"] == half.sum()  # type: ignore[index]
    for name, weights in (("fitted", fitted.weights), ("equal", np.array([0.5, 0.5]))):
        mixed = (weights[0] * first + weights[1] * second)[~half]
        assert mixtures[name]["samples"] == (~half).sum()
        assert mixtures[name]["top1"] == (mixed.argmax(axis=1) == labels[~half]).mean()
        assert mixtures[name]["loss"] == pytest.approx(-np.log(mixed[at[: len(mixed)], labels[~half]]).mean(), rel=1e-3)
    for member, one in zip(result["members"], (first, second), strict=True):  # type: ignore[call-overload]
        assert member["top1"] == (one[~half].argmax(axis=1) == labels[~half]).mean()
    assert result["top1"] == mixtures["fitted"]["top1"]
    assert result["weights_from"] == "fitted"


def test_every_field_of_a_result_is_on_the_page(two_runs: tuple[Path, Path], val_dataset: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    a, b = two_runs
    shards = ("--shards", val_dataset, "--json", tmp_path / "result.json")
    single = run_eval("--run", a, "--crops", "2", *shards)
    ensemble = run_eval("--ensemble", a, "--ensemble", b, "--fit-weights", "--crops", "2", *shards)
    names = {*single, *ensemble, *single["crops"], *ensemble["fit"]}  # type: ignore[misc]
    for rows in (single["calibration"], single["most_confused"], ensemble["mixtures"], ensemble["members"]):
        names |= {name for name in rows[0] if not name.endswith("_name")}  # type: ignore[index]
    assert sorted(name for name in names if f"`{name}`" not in page and name not in ("label", "prediction")) == []
    missing = [option for option in options_of(command) if f"{option}" not in page]
    assert set(missing) <= {"--batch-size", "--loader-threads", "--device", "--version"}


def test_runs_of_other_classes_are_refused_by_name(
    two_runs: tuple[Path, Path],
    val_dataset: Path,
    tmp_path: Path,
    draw_dataset: Callable[..., Path],
) -> None:
    run = tmp_path / "renamed"
    (run / "checkpoints").mkdir(parents=True)
    info = json.loads((two_runs[0] / "run.json").read_text())
    info["classes"][2] = "something else"
    (run / "run.json").write_text(json.dumps(info))
    state = torch.load(two_runs[0] / "checkpoints" / "last.pt", weights_only=True)
    state["classes"][2] = "something else"
    torch.save(state, run / "checkpoints" / "last.pt")
    arguments = ["--ensemble", str(two_runs[1]), "--ensemble", str(run), "--shards", str(val_dataset)]
    done = CliRunner().invoke(command, [*arguments, "--device", "cpu"])
    assert str(done.exception) == (
        f"{run}: other classes than {two_runs[1]}: class 2 is 'something else' in the one, 'class 2' in the other"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --run RUN or --ensemble"),
        (["--run", "a", "--ensemble", "b"], "either --run RUN or --ensemble"),
        (["--ensemble", "a"], "two runs or more, found a alone"),
        (["--run", "a", "--fit-weights"], "--fit-weights: expected an ensemble"),
        (["--ensemble", "a", "--ensemble", "b", "--checkpoint", "x.pt"], "--checkpoint: expected last or best"),
        (["--ensemble", "a:1", "--ensemble", "b"], "a weight for every run or for none"),
        (["--run", "a", "--many-over", "5", "--few-under", "9"], "many_over: expected at least 8"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(command, [*arguments, "--shards", "val"])
    assert done.exit_code == 2
    assert message in done.output
