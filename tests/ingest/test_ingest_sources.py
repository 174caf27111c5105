"""Rows of all layouts, and what is wrong with them said in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wv_ingest.errors import SourceError
from wv_ingest.sources import Source, SourceOptions, detect, read_source
from wv_shards import NotADatasetError

WriteList = Callable[..., Path]


def rows_of(source: Source) -> list[tuple[bytes, int]]:
    return list(zip(source.rows.column("path").to_pylist(), source.labels.tolist(), strict=True))


def test_webvision_rows_come_from_its_lists(webvision: Path) -> None:
    source = read_source(webvision, SourceOptions())
    assert source.source_format == "webvision"
    rows = source.rows.to_pylist()
    assert rows[0] == {"path": b"google/q0001/img0000.jpg", "label": 0, "source": "google", "query": "q0001"}
    assert rows[-1]["path"] == b"flickr/q0006/img0003.jpg"
    assert source.class_rows().tolist() == [150, 70, 31, 0, 9, 4]
    assert source.class_names[1] == "n00010001 thing 1, entity 1"
    for row in rows:
        assert (webvision / row["path"].decode()).is_file()


def test_webvision_validation_images_lie_flat(webvision: Path) -> None:
    source = read_source(webvision, SourceOptions(split="val"))
    assert rows_of(source)[:2] == [(b"val_images_256/val000000.jpg", 0), (b"val_images_256/val000001.jpg", 1)]
    assert source.rows.column("source").unique().to_pylist() == [""]


def test_webvision_2_has_five_digits(tmp_path: Path, draw_webvision: Callable[..., Path]) -> None:
    source = read_source(draw_webvision(tmp_path / "raw", [2], digits=5), SourceOptions())
    assert source.rows.column("query").unique().to_pylist() == ["q00001"]


def test_the_real_file_list_is_read_whole(tmp_path: Path, test_data: Path) -> None:
    (tmp_path / "info").mkdir()
    lines = (test_data / "webvision1_train_classes_0-9.txt").read_bytes()
    (tmp_path / "info" / "train_filelist_all.txt").write_bytes(lines)
    source = read_source(tmp_path, SourceOptions())
    assert source.rows.num_rows == 25_744
    assert source.class_rows().min() == 1_372
    assert source.class_rows().max() == 4_187
    assert b"".join(b"%s %d\n" % row for row in rows_of(source)) == lines
    assert any("synsets" in text for text in source.warnings)


def test_half_of_webvision_is_read_with_a_warning(tmp_path: Path, draw_webvision: Callable[..., Path]) -> None:
    root = draw_webvision(tmp_path / "raw", [4, 4])
    (root / "info" / "train_filelist_google.txt").unlink()
    source = read_source(root, SourceOptions())
    assert source.rows.num_rows == 4
    assert any("train_filelist_flickr.txt" in text for text in source.warnings)


def test_a_third_list_that_says_something_else_is_warned_about(
    tmp_path: Path, draw_webvision: Callable[..., Path]
) -> None:
    info = draw_webvision(tmp_path / "raw", [4, 4]) / "info"
    both = "".join((info / f"train_filelist_{source}.txt").read_text() for source in ("google", "flickr"))
    (info / "train_filelist_all.txt").write_text(both + "\n")
    assert read_source(info.parent, SourceOptions()).warnings == ()
    (info / "train_filelist_all.txt").write_text(both + "google/q0001/more.jpg 0\n")
    (warning,) = read_source(info.parent, SourceOptions()).warnings
    assert "train_filelist_all.txt has 9 rows, the lists of google and flickr have 8" in warning


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("name", ["train_filelist_google.txt", "train_filelist_flickr.txt", "val_filelist.txt"])
def test_an_empty_list_is_named(tmp_path: Path, draw_webvision: Callable[..., Path], name: str, text: str) -> None:
    root = draw_webvision(tmp_path / "raw", [4, 4])
    (root / "info" / name).write_text(text)
    with pytest.raises(SourceError, match=rf"{name}: no rows in it"):
        read_source(root, SourceOptions(split="val" if name.startswith("val") else "train"))


def test_folders_are_classes_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    for name in ("b/1.jpg", "a10/x/deep.jpg", "a10/2.jpg", "a2/3.jpg", "Z/4.jpg", "ä/5.jpg", "empty/", ".hidden/6.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()
    (tmp_path / "README").touch()
    os.symlink(tmp_path / "b", tmp_path / "b" / "loop")
    source = read_source(tmp_path, SourceOptions())
    assert source.class_names == ("Z", "a10", "a2", "b", "empty", "ä")
    assert rows_of(source) == [
        (b"Z/4.jpg", 0),
        (b"a10/2.jpg", 1),
        (b"a10/x/deep.jpg", 1),
        (b"a2/3.jpg", 2),
        (b"b/1.jpg", 3),
        ("ä/5.jpg".encode(), 5),
    ]
    assert source.warnings == (
        "1 files beside the class folders belong to no class and are left out",
        "1 links to folders are not followed (b/loop); put real folders in their place",
    )


def test_links_to_folders_bring_no_image_twice(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "od", tmp_path / "elsewhere"
    for name in ("od/a/1.jpg", "od/b/deep/2.jpg", "elsewhere/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (root / "a" / "loop").symlink_to("..")
    (root / "a" / "more").symlink_to(elsewhere)
    (root / "a" / "linked.jpg").symlink_to(elsewhere / "3.jpg")
    for name, target in (("c", root / "a"), ("d", root / "b" / "deep"), ("e", tmp_path), ("f", elsewhere)):
        (root / name).symlink_to(target)
    (tmp_path / "way").symlink_to(root)
    for given in (root, tmp_path / "way"):
        source = read_source(given, SourceOptions())
        assert source.class_names == ("a", "b", "f")
        assert rows_of(source) == [(b"a/1.jpg", 0), (b"a/linked.jpg", 0), (b"b/deep/2.jpg", 1), (b"f/3.jpg", 2)]
        assert source.warnings == ("5 links to folders are not followed (c, d, e, …); put real folders in their place",)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("labels", [[3, 0, 1], ["dog", "cat", "Ant"]])
def test_lists_of_all_kinds_say_the_same(tmp_path: Path, suffix: str, labels: list[object]) -> None:
    path = tmp_path / f"list{suffix}"
    columns = {"file": ["x/a.jpg", "b c.jpg", "ü.jpg"], "extra": [0.5, 1.5, None], "class": labels}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        comma = "\t" if suffix == ".tsv" else ","
        lines = [comma.join(columns), *(comma.join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    source = read_source(path, SourceOptions(path_column="file", label_column="class"))
    assert source.root == tmp_path
    expected = [3, 0, 1] if labels[0] == 3 else [2, 1, 0]
    assert rows_of(source) == list(zip([b"x/a.jpg", b"b c.jpg", "ü.jpg".encode()], expected, strict=True))
    assert source.class_names == (("0", "1", "2", "3") if labels[0] == 3 else ("Ant", "cat", "dog"))


def test_a_list_uses_the_ids_of_a_training_set(tmp_path: Path, small_dataset: Path, write_list: WriteList) -> None:
    options = SourceOptions(classes_from=small_dataset)
    named = read_source(write_list(tmp_path / "a.csv", [("a.jpg", "class 4"), ("b.jpg", "class 1")]), options)
    assert named.labels.tolist() == [4, 1]
    numbered = read_source(write_list(tmp_path / "b.csv", [("a.jpg", 5)]), options)
    assert numbered.labels.tolist() == [5]
    assert named.class_names == numbered.class_names == tuple(f"class {i}" for i in range(6))


def test_the_layout_is_detected(tmp_path: Path, webvision: Path, write_list: WriteList) -> None:
    (tmp_path / "folders" / "cat").mkdir(parents=True)
    assert detect(webvision) == "webvision"
    assert detect(tmp_path / "folders") == "folders"
    assert detect(write_list(tmp_path / "list.CSV", [])) == "list"


def test_the_digest_knows_every_path_label_and_name(tmp_path: Path, write_list: WriteList) -> None:
    variants = (
        [("ab.jpg", 0), ("c.jpg", 1)],
        [("a.jpg", 0), ("bc.jpg", 1)],
        [("ab.jpg", 1), ("c.jpg", 0)],
        [("c.jpg", 1), ("ab.jpg", 0)],
        [("ab.jpg", "0"), ("c.jpg", "x")],
    )
    lists = [write_list(tmp_path / f"{i}.csv", rows) for i, rows in enumerate(variants)]
    digests = [read_source(path, SourceOptions()).digest() for path in lists]
    assert len(set(digests)) == len(variants)
    again = read_source(write_list(tmp_path / "elsewhere.csv", variants[0]), SourceOptions())
    assert again.digest() == digests[0]


def bad_webvision(change: Callable[[Path], object]) -> Callable[[Path, Callable[..., Path]], Path]:
    def make(folder: Path, draw: Callable[..., Path]) -> Path:
        root = draw(folder / "raw", [2, 2])
        change(root)
        return root

    return make


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda root: (root / "info" / "val_filelist.txt").unlink(), {"split": "val"}, r"no info/val_filelist.txt"),
        (lambda root: os.rename(root / "val_images_256", root / "v"), {"split": "val"}, r"none of the folders val_im"),
    ],
)
def test_what_a_validation_set_lacks_is_named(
    tmp_path: Path,
    draw_webvision: Callable[..., Path],
    change: Callable[[Path], object],
    options: dict[str, str],
    message: str,
) -> None:
    root = bad_webvision(change)(tmp_path, draw_webvision)
    with pytest.raises(SourceError, match=message):
        read_source(root, SourceOptions(**options))


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("a.jpg", 0), ("b.jpg", -3)], ("path", "label"), r"row 3: label -3 is outside 0 … 999999"),
        ([("a.jpg", 7_000_000)], ("path", "label"), r"row 2: label 7000000 is outside"),
        ([("a.jpg", 0), ("", 1)], ("path", "label"), r"row 3: no value in column 'path'"),
        ([("a.jpg", "")], ("path", "label"), r"row 2: no value in column 'label'"),
        ([("a.jpg", 0)], ("file", "label"), r"no column 'path' \(columns: file, label\); name it with --path-column"),
        ([("a.jpg", 0), ("b.jpg", 1, 2)], ("path", "label"), r"can't be read as csv: .*3"),
        ([], ("path", "label"), r"no rows in it"),
    ],
)
def test_wrong_lists_are_named_by_row(
    tmp_path: Path, write_list: WriteList, rows: list[tuple[object, ...]], header: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        read_source(write_list(tmp_path / "list.csv", rows, header), SourceOptions())


def test_classes_that_a_training_set_does_not_have_are_refused(
    tmp_path: Path, small_dataset: Path, write_list: WriteList, webvision: Path
) -> None:
    options = SourceOptions(classes_from=small_dataset)
    with pytest.raises(SourceError, match=r"row 3: label 'bird' is not a class of"):
        read_source(write_list(tmp_path / "a.csv", [("a.jpg", "class 1"), ("b.jpg", "bird")]), options)
    with pytest.raises(SourceError, match=r"row 2: label 6 is outside the 6 classes"):
        read_source(write_list(tmp_path / "b.csv", [("a.jpg", 6)]), options)
    (tmp_path / "folders" / "bird").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"folder 'bird' is not a class of"):
        read_source(tmp_path / "folders", options)
    with pytest.raises(SourceError, match=r"synsets.txt: other classes than in .* \(class 0 differs\)"):
        read_source(webvision, options)
    with pytest.raises(NotADatasetError):
        read_source(webvision, SourceOptions(classes_from=tmp_path))


def test_sources_that_are_none_say_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "splits" / "train").mkdir(parents=True)
    (tmp_path / "splits" / "val").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 or so")
    for name, message in (
        ("absent", r"no such file or folder"),
        ("image.jpg", r"not a list"),
        ("nothing", r"neither info/train_filelist"),
        ("splits", r"folders of splits \(train, val\)"),
        ("hollow", r"no rows in it"),
        ("empty.csv", r"the list is empty"),
        ("noise.parquet", r"can't be read as parquet"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            read_source(tmp_path / name, SourceOptions())
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="is a folder, expected a list"):
        read_source(tmp_path / "nothing", SourceOptions(source_format="list"))
    with pytest.raises(SourceError, match="is a file, expected a folder"):
        read_source(tmp_path / "image.jpg", SourceOptions(source_format="folders"))


def test_one_odd_label_among_ids_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\na.jpg,3\nb.jpg,4\nc.jpg,cat\n")
    source = read_source(tmp_path / "list.csv", SourceOptions())
    assert source.class_names == ("3", "4", "cat")
    assert source.warnings == ("labels are taken as names: 1 of 3 are not whole numbers, the first in row 4",)
    (tmp_path / "ids.csv").write_text("path,label\na.jpg,3\nb.jpg,4\n")
    assert read_source(tmp_path / "ids.csv", SourceOptions()).warnings == ()


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label,label\na.jpg,3,4\n")
    with pytest.raises(SourceError, match="column 'label' stands 2 times"):
        read_source(tmp_path / "list.csv", SourceOptions())
