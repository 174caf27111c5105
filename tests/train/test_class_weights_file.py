"""Class weights from a file: every class once, by name or id, and mistakes with their line."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_train.data import read_class_weights
from wv_train.errors import TrainError
from wv_train.losses import class_weights

CLASSES = ["cat", "dog", "tench, Tinca tinca", "7", "größe"]


def test_classes_go_by_name_or_id_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "weights.csv"
    file.write_text(
        '\ufeffclass,weight\r\n4, 2e-1\r\n\r\n"tench, Tinca tinca",3\r\ncat,0\r\n 1 ,1.5\r\n7,4\r\n', "utf-8"
    )
    weights = read_class_weights(file, CLASSES)
    assert weights.dtype == np.float64
    assert weights.tolist() == [0, 1.5, 3, 4, 0.2]


def test_a_name_that_looks_like_an_id_is_the_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.csv"
    file.write_text("class,weight\n1,5\n0,6\n")
    assert read_class_weights(file, ["1", "0"]).tolist() == [5, 6]


@given(st.permutations(range(len(CLASSES))), st.lists(st.floats(0.001, 1e6), min_size=5, max_size=5))
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], values: list[float]
) -> None:
    file = tmp_path_factory.mktemp("weights") / "weights.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["class", "weight"])
        writer.writerows([CLASSES[i], values[i]] for i in order)
    assert read_class_weights(file, CLASSES).tolist() == values
    exposure = np.array([10.0, 20.0, 0.0, 5.0, 65.0])
    scaled = class_weights("file", exposure, read_class_weights(file, CLASSES))
    assert (exposure * scaled).sum() == pytest.approx(exposure.sum(), rel=1e-5)
    assert scaled[2] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: expected the header class,weight, found nothing"),
        ("name,weight\n", ":1: expected the header class,weight, found name,weight"),
        ("class,weight\ncat,1\ndgo,1\n", ":3: 'dgo' is no class of the training data; did you mean dog"),
        ("class,weight\ncat,1\n9,1\n", ":3: '9' is no class of the training data; names and ids 0 to 4 are known"),
        ("class,weight\ncat,1\n\n0,1\n", ":4: class '0' stands in line 2 already"),
        ("class,weight\ncat,heavy\n", ":2: expected a weight of 0 or more, found 'heavy'"),
        ("class,weight\ncat,-1\n", ":2: expected a weight of 0 or more, found '-1'"),
        ("class,weight\ncat,inf\n", ":2: expected a weight of 0 or more, found 'inf'"),
        ("class,weight\ncat,1,2\n", ":2: expected a class and its weight, found 3 columns"),
        ("class,weight\ncat,1\n2,1\n7,1\n4,1\n", ": no weight for class 'dog': expected every class once"),
        ("class,weight\ncat,1\n", ": no weight for class 'dog' and 3 more: expected every class once"),
        ("class,weight\n0,0\n1,0\n2,0\n7,0\n4,0\n", ": all weights are 0"),
    ],
)
def test_mistakes_are_one_line_with_the_files_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.csv"
    file.write_text(text)
    with pytest.raises(TrainError) as caught:
        read_class_weights(file, CLASSES)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"class_weights_file .*absent\.csv: cannot be read: No such file"):
        read_class_weights(tmp_path / "absent.csv", CLASSES)
    (tmp_path / "latin.csv").write_bytes("class,weight\ngröße,1\n".encode("latin-1"))
    with pytest.raises(TrainError, match=r"latin\.csv: cannot be read: not a CSV in UTF-8"):
        read_class_weights(tmp_path / "latin.csv", CLASSES)
