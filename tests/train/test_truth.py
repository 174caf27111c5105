"""The truth of a data set: joined by path, and refused in one line where it is not the data set's."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wv_shards import Dataset
from wv_train import cli
from wv_train.truth import NO_CLASS, UNKNOWN, TruthError, read_true_labels, read_truth


@pytest.fixture
def dataset(small_dataset: Path) -> Dataset:
    return Dataset.open(small_dataset)


def _rows(dataset: Dataset) -> list[tuple[str, int]]:
    paths = dataset.samples_table(["path"])["path"].to_pylist()
    return list(zip(paths, dataset.index["label"].tolist(), strict=True))


def test_a_truth_is_joined_by_path_whatever_its_order_and_columns(dataset: Dataset, tmp_path: Path) -> None:
    rows = _rows(dataset)
    lines = [
        f'note,{label},{(label + 1) % 6 if i % 3 == 0 else label},"{path}"' for i, (path, label) in enumerate(rows)
    ]
    lines[7] = f"note,{rows[7][1]},{NO_CLASS},{rows[7][0]}"
    del lines[11]
    lines = [*lines[::-1], "note,5,5,of/another/set.jpg"]
    (tmp_path / "t.csv").write_text("kind,label,true_label,path\n" + "\n".join(lines), encoding="utf-8-sig")
    right = read_truth(tmp_path / "t.csv", dataset)
    expected = np.where(np.arange(len(rows)) % 3 == 0, 0, 1)
    expected[7], expected[11] = 0, -1
    assert right.dtype == np.int8
    assert right.tolist() == expected.tolist()
    true_labels = read_true_labels(tmp_path / "t.csv", dataset)
    assert (true_labels[7], true_labels[11]) == (NO_CLASS, UNKNOWN)
    assert true_labels[0] == (rows[0][1] + 1) % 6


def test_of_a_data_set_that_has_grown_only_the_first_samples_are_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    rows = _rows(dataset)
    lines = [f"{path},{label if i < 100 else 77},{label}" for i, (path, label) in enumerate(rows)]
    (tmp_path / "t.csv").write_text("path,label,true_label\n" + "\n".join(lines))
    assert read_true_labels(tmp_path / "t.csv", dataset, samples=100).tolist() == [label for _, label in rows[:100]]
    with pytest.raises(TruthError, match="the label 77, the shards"):
        read_truth(tmp_path / "t.csv", dataset)


HEAD = b"path,label,true_label\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "expected a table with the truth: No such file"),
        (b"", "found no path"),
        (b"path,label\nx.jpg,0\n", "expected the columns path, label, true_label, found no true_label"),
        (HEAD + b"x.jpg,cat,dog\n", "expected a CSV with whole numbers .*'cat'"),
        (HEAD + b"x.jpg,,1\n", "expected a CSV with whole numbers"),
        (HEAD + b"x.jpg,1\n", "expected a CSV with whole numbers"),
        (HEAD + b"\xff\xfe,1,1\n", "expected a CSV with whole numbers"),
        (HEAD + b"x.jpg,0,0\nx.jpg,0,1\n", "found x.jpg more than once"),
        (HEAD + b"x.jpg,0,0\n", "names none of the 239 samples"),
    ],
)
def test_what_is_no_truth_of_these_samples_is_one_line(
    content: bytes | None, said: str, dataset: Dataset, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TruthError, match=said) as caught:
        read_truth(tmp_path / "t.csv", dataset)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).startswith(str(tmp_path / "t.csv"))


def test_a_true_label_that_is_no_class_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    path, label = _rows(dataset)[0]
    (tmp_path / "t.csv").write_text(f"path,label,true_label\n{path},{label},-2\n")
    with pytest.raises(TruthError, match="expected as true_label a class or -1 for none, found -2"):
        read_truth(tmp_path / "t.csv", dataset)


def test_a_run_refuses_a_bad_truth_before_it_writes_anything(
    write_recipe: Callable[..., Path],
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "t.csv").write_text("path,label\n")
    recipe = write_recipe(tmp_path / "tiny.toml")
    options = ["--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--truth", tmp_path / "t.csv"]
    monkeypatch.setattr("sys.argv", ["wv-train", *map(str, options), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    expected = f"wv-train: {tmp_path / 't.csv'}: expected the columns path, label, true_label, found no true_label\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "run").exists()


def test_a_run_measures_the_gate_against_the_truth_and_remembers_it(
    dataset: Dataset,
    write_recipe: Callable[..., Path],
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Labels of the largest class are wrong, those of the smallest are not known."""
    lines = [f"{path},{label},{NO_CLASS if label == 0 else label}" for path, label in _rows(dataset) if label != 5]
    (tmp_path / "t.csv").write_text("path,label,true_label\n" + "\n".join(lines))
    recipe = write_recipe(
        tmp_path / "tiny.toml", "phases.gated.steps=2", "phases.finetune.steps=1", "log_every_steps=1"
    )
    options = ["--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--truth", tmp_path / "t.csv"]
    monkeypatch.setattr("sys.argv", ["wv-train", *map(str, options), "--out", str(tmp_path / "run")])
    cli.main()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    base = [row for row in rows if row["kind"] == "train" and row["phase"] == "base"]
    assert all(row["kept_precision"] == row["shown_precision"] for row in base), "all are kept"
    mean = np.mean([row["shown_precision"] for row in base])
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    shown = np.array(info["exposures"]["base"][:5])
    assert mean == pytest.approx(shown[1:].sum() / shown.sum(), abs=0.05)
    assert info["truth"] == str(tmp_path / "t.csv")
    (tmp_path / "t.csv").unlink()
    monkeypatch.setattr("sys.argv", ["wv-train", "--resume", "--out", str(tmp_path / "run"), "--device", "cpu"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "t.csv: expected a table with the truth" in capsys.readouterr().err
