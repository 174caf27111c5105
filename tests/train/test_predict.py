"""`wv-predict`: the run's opinion of files, from the pixels that evaluation would show; or why there is none."""

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from wv_loader import Loader
from wv_shards import Dataset
from wv_train import cli_predict
from wv_train.evaluate import log_probabilities
from wv_train.predict import find_images, predict
from wv_train.trained import load_trained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(val_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 20 images of the validation set as files, named by ordinal, in two folders."""
    out = tmp_path_factory.mktemp("images")
    with Dataset.open(val_dataset) as dataset:
        for ordinal in range(20):
            path = out / ("b" if ordinal < 7 else "a/deep") / f"{ordinal:02d}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dataset.read(ordinal))
    (out / "b" / "notes.txt").write_text("no image, and not meant as one")
    return out


def run_predict(run: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli_predict.command, ["--run", str(run), "--device", "cpu", *map(str, arguments)])


def rows_of(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_predictions_are_those_of_the_pixels_that_the_loader_shows(
    two_runs: tuple[Path, Path], val_dataset: Path, folder: Path
) -> None:
    """Of the run with a crop of its own; the batch size makes no difference but for rounding."""
    trained = load_trained(two_runs[1], checkpoint="last", weights="auto", device=CPU)
    recipe = trained.recipe
    options: dict[str, Any] = {"size_px": recipe.size_px, "augment": recipe.augment, "engine": "pillow", "threads": 1}
    with Loader(val_dataset, batch_size=20, train=False, rank=0, world_size=1, **options) as loader, torch.no_grad():
        batch = next(iter(loader))
        expected = log_probabilities(trained.model, batch, batch.valid).exp()  # (20, K)
    paths = sorted(find_images([folder]), key=lambda path: path.name)
    for batch_size in (1, 6, 64):
        found = list(predict(trained, paths, top=3, batch_size=batch_size, threads=2))
        assert [prediction.path for prediction in found] == paths
        values = torch.tensor([prediction.probabilities for prediction in found])
        assert torch.allclose(values, expected.topk(3).values, rtol=1e-4)
        ids = torch.tensor([prediction.class_ids for prediction in found])
        assert torch.allclose(expected.gather(1, ids), values, rtol=1e-4)


def test_a_folder_is_searched_to_the_bottom_in_order_for_images_only(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in find_images([folder])]
    assert found == [f"a/deep/{i:02d}.JPG" for i in range(7, 20)] + [f"b/{i:02d}.JPG" for i in range(7)]
    named = folder / "b" / "notes.txt"
    assert find_images([named, folder / "b"])[:2] == [named, folder / "b" / "00.JPG"]


def test_each_image_has_a_line_of_json_with_names(two_runs: tuple[Path, Path], folder: Path) -> None:
    done = run_predict(two_runs[0], folder, "--json")
    assert done.exit_code == 0, done.output
    rows = rows_of(done)
    assert len(rows) == 20
    for row in rows:
        probabilities = [one["probability"] for one in row["predictions"]]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(one["name"] == f"class {one['class_id']}" for one in row["predictions"])
    all_six = rows_of(run_predict(two_runs[0], folder, "--json", "--top", 99))
    assert sum(one["probability"] for one in all_six[0]["predictions"]) == pytest.approx(1, abs=1e-5)


def test_the_table_names_each_image_once_and_its_classes(two_runs: tuple[Path, Path], folder: Path) -> None:
    done = run_predict(two_runs[0], folder / "b" / "00.JPG", "--top", 2)
    first, second = done.stdout.splitlines()
    assert first.startswith(str(folder / "b" / "00.JPG"))
    assert second.startswith(" ")
    assert all("%" in line and "class " in line for line in (first, second))


def test_unreadable_files_are_named_and_counted_and_fail_only_if_there_is_nothing_else(
    two_runs: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    draw_jpeg: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "half.jpg").write_bytes(draw_jpeg(1)[:200])
    bad = [tmp_path / "text.jpg", tmp_path / "half.jpg", tmp_path / "missing.jpg"]
    good = folder / "b" / "01.JPG"
    done = run_predict(two_runs[0], *bad[:2], good, bad[2], "--json")
    assert done.exit_code == 0, done.output
    rows = rows_of(done)
    assert [Path(row["path"]) for row in rows] == [*bad[:2], good, bad[2]]
    assert ["error" in row for row in rows] == [True, True, False, True]
    assert rows[3]["error"] == "No such file or directory"
    assert done.stderr == "3 of 4 files could not be read as images\n"
    table = run_predict(two_runs[0], *bad, good)
    assert table.exit_code == 0
    assert f"{bad[0]}: not an image, or damaged\n" in table.stderr
    for images, message in (
        (bad, "none of 3 files could be read as an image"),
        ([tmp_path / "empty"], f"{tmp_path / 'empty'}: expected images, found none"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["wv-predict", "--run", str(two_runs[0]), *map(str, images)])
        with pytest.raises(SystemExit) as exit_:
            cli_predict.main()
        assert exit_.value.code == 1
        assert capsys.readouterr().err.splitlines()[-1] == f"wv-predict: {message}"


def test_odd_and_hostile_files_are_answered_in_a_word_each(two_runs: tuple[Path, Path], test_data: Path) -> None:
    with open(test_data / "torture" / "expected.csv", encoding="utf-8", newline="") as table:
        expected = {row["file"]: row["expect"] for row in csv.DictReader(table)}
    files = [test_data / "torture" / "files" / name for name in expected]
    done = run_predict(two_runs[0], *files, "--json")
    assert done.exit_code == 0, done.output
    answers = {Path(row["path"]).name: "predictions" in row for row in rows_of(done)}
    assert answers.keys() == expected.keys()
    assert [name for name, expect in expected.items() if expect == "ok" and not answers[name]] == []
    assert sum(not answer for answer in answers.values()) > 10
    assert done.stderr.count("\n") == 1


def test_names_that_are_no_text_are_printed_and_survive_as_json(
    two_runs: tuple[Path, Path], folder: Path, tmp_path: Path
) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xe9.jpg"
    with open(path, "wb") as file:
        file.write((folder / "b" / "00.JPG").read_bytes())
    done = run_predict(two_runs[0], tmp_path, "--json")
    assert done.exit_code == 0, done.output
    assert os.fsencode(rows_of(done)[0]["path"]) == path
    assert "\N{REPLACEMENT CHARACTER}" in run_predict(two_runs[0], tmp_path).stdout
