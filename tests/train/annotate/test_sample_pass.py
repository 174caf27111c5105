"""A look at every sample: the model's own numbers of the loader's own pixels, whenever the work was interrupted."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from wv_loader import Batch, Loader
from wv_shards import Dataset, NotADatasetError, Overlay
from wv_train.annotate.cli import command, main
from wv_train.annotate.features import features_look
from wv_train.annotate.sample_pass import Look, PassConfig, look_at_samples
from wv_train.annotate.teacher import TeacherOptions, teacher_look
from wv_train.models import features, normalization
from wv_train.trained import Trained, load_trained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(two_runs: tuple[Path, Path]) -> Trained:
    """Of the run with a size and a crop of its own."""
    return load_trained(two_runs[1], checkpoint="last", weights="auto", device=CPU)


def config_of(shards: Path, out: Path, **changes: Any) -> PassConfig:
    options = {"engine": "pillow", "loader_threads": 1, "bad_budget": None, "commit_s": 0.0}
    return PassConfig(shards=shards, out=out, **{**options, **changes})


def by_hand(trained: Trained, shards: Path, see: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """What `see` makes of every sample's normalised pixels, by ordinal; in the batches of the recipe."""
    recipe = trained.recipe
    options: dict[str, Any] = {"engine": "pillow", "threads": 1, "rank": 0, "world_size": 1}
    rows = []
    with (
        Loader(shards, batch_size=16, size_px=recipe.size_px, augment=recipe.augment, train=False, **options) as loader,
        torch.no_grad(),
    ):
        for batch in loader:
            seen = see(batch.normalized(*normalization(trained.model)))
            rows += [seen[batch.ordinals >= 0]]
    return torch.cat(rows).numpy()


def load(out: Path, shards: Path, kind: str) -> Overlay:
    with Dataset.open(shards) as dataset:
        return Overlay.load(out, manifest_digest=dataset.manifest.digest, kind=kind, mapped=True)


def test_features_are_the_models_own_of_the_pixels_that_evaluation_shows(
    trained: Trained, val_dataset: Path, tmp_path: Path
) -> None:
    """To the bit; D is what the head takes. In other batches they differ by rounding at most."""
    expected = by_hand(trained, val_dataset, lambda images: features(trained.model, images))
    done = look_at_samples(trained, features_look(trained), config_of(val_dataset, tmp_path / "features"))
    found = load(tmp_path / "features", val_dataset, "features")
    assert found.array.dtype == np.float16
    assert found.array.shape == (60, 64)
    assert np.array_equal(found.array, expected.astype(np.float16))
    assert (done.samples, done.bad, done.excluded) == (60, 0, 0)
    json.loads((tmp_path / "features.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    neutral = np.zeros(2, dtype=np.float16)
    neutral[...] = found.neutral  # as `Overlay.load_onto` does
    assert np.isnan(neutral).all()
    assert found.info["step"] == trained.step
    other = config_of(val_dataset, tmp_path / "other", batch_size=7)
    look_at_samples(trained, features_look(trained), other)
    assert np.allclose(load(tmp_path / "other", val_dataset, "features").array, expected, rtol=2e-3, atol=1e-3)


def test_a_teacher_says_the_most_probable_classes_under_its_temperature(
    trained: Trained, val_dataset: Path, tmp_path: Path
) -> None:
    logits = by_hand(trained, val_dataset, trained.model)
    look = teacher_look(trained, TeacherOptions(top_k=3, temperature=2.5))
    look_at_samples(trained, look, config_of(val_dataset, tmp_path / "teacher"))
    found = load(tmp_path / "teacher", val_dataset, "teacher")
    softmax = np.exp(logits / 2.5) / np.exp(logits / 2.5).sum(axis=1, keepdims=True)
    order = np.argsort(-softmax, axis=1)[:, :3]
    assert np.array_equal(found.array["class_id"], order)
    assert np.allclose(found.array["probability"], np.take_along_axis(softmax, order, axis=1), atol=1e-3)
    assert found.neutral == {"class_id": -1}
    assert (found.info["temperature"], found.info["top_k"], found.info["classes"]) == (2.5, 3, 6)
    assert teacher_look(trained, TeacherOptions(top_k=50)).options["top_k"] == 6


def interrupted(look: Look, after: int) -> Look:
    """The same, but for a Ctrl-C in batch `after`."""
    batches = iter(range(1000))

    def rows(batch: Batch) -> Any:
        if next(batches) == after:
            raise KeyboardInterrupt
        return look.rows(batch)

    return replace(look, rows=rows)


@pytest.mark.parametrize("kind", ["features", "teacher"])
def test_interrupted_at_any_batch_it_ends_with_the_same_bytes_and_nobody_reads_it_before(
    trained: Trained, val_dataset: Path, tmp_path: Path, kind: str
) -> None:
    look = features_look(trained) if kind == "features" else teacher_look(trained, TeacherOptions())
    whole, pieces = config_of(val_dataset, tmp_path / "whole"), config_of(val_dataset, tmp_path / "pieces")
    look_at_samples(trained, look, whole)
    for done in range(3):  # each time one batch further
        with pytest.raises(KeyboardInterrupt):
            look_at_samples(trained, interrupted(look, 1), pieces)
        with pytest.raises(NotADatasetError):
            load(pieces.out, val_dataset, kind)
        assert pieces.out.with_suffix(".npy.part").exists(), done
    seen: list[int] = []
    last = look_at_samples(trained, look, pieces, seen.append)
    assert (last.resumed_at, last.anew) == (48, None)
    assert seen[0] == 48
    assert sum(seen) == 60
    for suffix in (".npy", ".json"):
        assert pieces.out.with_suffix(suffix).read_bytes() == whole.out.with_suffix(suffix).read_bytes()
    again = look_at_samples(trained, interrupted(look, 0), pieces)  # no batch is asked for
    assert again.finished_before


def test_other_weights_begin_anew_and_say_so(trained: Trained, val_dataset: Path, tmp_path: Path) -> None:
    look, config = features_look(trained), config_of(val_dataset, tmp_path / "features")
    with pytest.raises(KeyboardInterrupt):
        look_at_samples(trained, interrupted(look, 2), config)
    weight = next(trained.model.parameters())
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        done = look_at_samples(trained, features_look(trained), config)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert done.resumed_at == 0
    assert done.anew is not None
    assert done.anew.startswith("weights_digest was ")
    assert not look_at_samples(trained, look, config).finished_before  # nor are those weights' rows these weights'


def test_samples_that_are_bad_or_excluded_get_nan_and_are_counted(
    trained: Trained, draw_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """Also at the very end, and where the work was interrupted between them."""
    shards = draw_dataset(tmp_path / "shards", [10] * 6, seed=7)
    with Dataset.open(shards) as dataset:
        excluded = np.isin(np.arange(60), [0, 16, 17, 30, 58, 59])
        Overlay(kind="exclude", array=excluded, manifest_digest=dataset.manifest.digest).save(shards / "exclude")
        for ordinal in (5, 40):
            with dataset.shard_path(int(dataset.shard_of(ordinal))).open("r+b") as file:
                file.seek(int(dataset.index[ordinal]["offset"]) + 20)
                file.write(b"\0\0\0\0")
    config, look = config_of(shards, tmp_path / "features"), features_look(trained)
    with pytest.raises(KeyboardInterrupt):
        look_at_samples(trained, interrupted(look, 2), config)
    done = look_at_samples(trained, look, config)
    assert (done.resumed_at > 0, done.bad, done.excluded) == (True, 2, 6)
    found = load(config.out, shards, "features")
    missing = np.flatnonzero(np.isnan(found.array).all(axis=1)).tolist()
    assert missing == sorted([5, 40, *np.flatnonzero(excluded)])
    assert np.isfinite(np.delete(found.array, missing, axis=0)).all()
    teacher = replace(config, out=tmp_path / "teacher")
    look_at_samples(trained, teacher_look(trained, TeacherOptions()), teacher)
    classes = load(teacher.out, shards, "teacher").array["class_id"]
    assert np.flatnonzero((classes == -1).all(axis=1)).tolist() == missing


def test_from_a_run_to_its_clusters_and_tiers_on_the_command_line(
    two_runs: tuple[Path, Path], val_dataset: Path, tmp_path: Path
) -> None:
    def run(*words: object) -> str:
        done = CliRunner().invoke(command, list(map(str, words)), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    base = tmp_path / "features"
    look = (two_runs[0], "--shards", val_dataset, "--device", "cpu", "--loader-threads", 1)
    assert run("features", *look, "--out", base) == f"{base}: features of 60 samples\n"
    assert run("features", *look, "--out", base).startswith(f"{base}: is there already")
    assert run("teacher", *look, "--out", tmp_path / "teacher") == f"{tmp_path / 'teacher'}: teacher of 60 samples\n"
    assert run("clusters", base, "--clusters", 5).startswith(f"{tmp_path / 'clusters'}: 5 clusters of ")
    assert run("curriculum", base).startswith(f"{tmp_path / 'tiers'}: ")
    names = {path.name for path in tmp_path.iterdir()}
    kinds = ("features", "teacher", "clusters", "tiers")
    assert names == {f"{kind}.{suffix}" for kind in kinds for suffix in ("npy", "json")}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["features", "nowhere"], "wv-annotate: nowhere: expected a run of wv-train, found no run.json"),
        (
            ["clusters", "nowhere"],
            "wv-annotate: nowhere: expected the overlay features, found none",
        ),
        (["teacher", "x", "--temperature", "0"], "wv-annotate: temperature: expected a number above 0, found 0.0"),
        (
            ["curriculum", "x", "--exact-up-to", "5"],
            "wv-annotate: exact_up_to: expected at least as many as references",
        ),
        (
            ["clusters", "x", "--clusters", "5", "--per-class", "4"],
            "wv-annotate: --clusters and --per-class: expected one of them",
        ),
        (["nonsense"], "wv-annotate: No such command 'nonsense'."),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["wv-annotate", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
