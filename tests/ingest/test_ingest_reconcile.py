"""Which rows were asked for, and that packed + rejected + missing + repeated + filtered are the rows of the lists."""

import json
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wv_ingest.build import BuildResult
from wv_ingest.errors import BuildError, BuildMismatchError, SourceError
from wv_ingest.selection import parse_classes
from wv_ingest.sources import SourceOptions, read_source
from wv_shards import Manifest, band_of, verify

Build = Callable[..., BuildResult]
FolderBytes = Callable[[Path], dict[str, bytes]]
Ingest = Callable[..., subprocess.CompletedProcess[str]]


def rejects_of(out: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(out / "rejects.parquet").to_pylist()
    return rows


def test_classes_get_new_ids_and_the_manifest_keeps_the_old_ones(
    webvision: Path, tmp_path: Path, build_small: Build
) -> None:
    manifest = build_small(webvision, tmp_path / "out", class_ids=(1, 3, 5)).manifest
    assert [(c.class_id, c.original_id, c.rows) for c in manifest.classes] == [(0, 1, 70), (1, 3, 0), (2, 5, 4)]
    assert manifest.classes[0].name == "n00010001 thing 1, entity 1"
    assert manifest.options["classes"] == [1, 3, 5]
    assert manifest.rejects["filtered"] == 264 - 74
    labels = Counter(pq.read_table(tmp_path / "out" / "samples.parquet").column("label").to_pylist())
    assert labels == {0: manifest.classes[0].samples, 2: manifest.classes[2].samples}
    details = Counter(
        (row["label"], row["detail"]) for row in rejects_of(tmp_path / "out") if row["reason"] == "filtered"
    )
    assert details == {(-1, "class-0"): 150, (-1, "class-2"): 31, (-1, "class-4"): 9}
    assert not verify(tmp_path / "out")
    again = Manifest.load(tmp_path / "out")
    assert again == manifest


def test_the_rows_of_one_search_engine(webvision: Path, tmp_path: Path, build_small: Build) -> None:
    manifest = build_small(webvision, tmp_path / "out", only="google").manifest
    source = read_source(webvision, SourceOptions())
    of = Counter(source.rows.column("source").to_pylist())
    assert set(manifest.sources) == {"google"}
    assert manifest.sources["google"].rows == of["google"]
    assert manifest.sources["google"].samples == manifest.samples
    assert manifest.rejects["filtered"] == of["flickr"]
    assert manifest.rows == 264
    assert [c.band for c in manifest.classes] == [band_of(c.rows) for c in manifest.classes]
    assert sum(c.rows for c in manifest.classes) == of["google"]
    assert all(c.original_id is None for c in manifest.classes)
    order = {row["path"].decode(): i for i, row in enumerate(source.rows.to_pylist())}
    places = [order[str(row["path"])] for row in rejects_of(tmp_path / "out")]
    assert places == sorted(places)
    assert {row["detail"] for row in rejects_of(tmp_path / "out") if row["reason"] == "filtered"} == {"source"}


def test_the_account_adds_up_and_filtered_rows_are_no_rejects(
    webvision: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes
) -> None:
    """A tenth of the rows is broken: a limit below stops the build, however many rows are filtered, and it goes on."""
    out = tmp_path / "out"
    with pytest.raises(BuildError, match="of 74 rows rejected"):
        build_small(webvision, out, class_ids=(1, 5), max_reject_fraction=0.05)
    manifest = build_small(webvision, out, class_ids=(1, 5)).manifest
    assert manifest.samples + sum(manifest.rejects.values()) == manifest.rows == 264
    assert len(rejects_of(out)) == 264 - manifest.samples
    build_small(webvision, tmp_path / "whole", class_ids=(1, 5), workers=2)
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
    for options in ({"class_ids": (1,)}, {"class_ids": None}, {"class_ids": (1, 5), "only": "google"}):
        with pytest.raises(BuildMismatchError, match="holds a finished data set with"):
            build_small(webvision, out, **options)


def test_a_row_left_out_does_not_make_a_kept_one_repeated(
    tmp_path: Path, encode: Callable[..., bytes], write_list: Callable[..., Path], build_small: Build
) -> None:
    """The same file in two classes, of which one was asked for."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(encode(ord(name)))
    source = write_list(tmp_path / "list.csv", [("a.jpg", 0), ("a.jpg", 1), ("b.jpg", 1), ("b.jpg", 1)])
    manifest = build_small(source, tmp_path / "out", class_ids=(1,)).manifest
    assert (manifest.samples, manifest.rejects) == (2, {"filtered": 1, "repeated-row": 1})
    assert manifest.unlisted is None


def test_a_validation_set_of_some_classes_follows_its_training_set(
    webvision: Path, tmp_path: Path, build_small: Build
) -> None:
    build_small(webvision, tmp_path / "train", class_ids=(1, 3, 5))
    manifest = build_small(webvision, tmp_path / "val", split="val", classes_from=tmp_path / "train").manifest
    assert [(c.original_id, c.name, c.samples) for c in manifest.classes] == [
        (i, f"n{10_000 + i:08d} thing {i}, entity {i}", 2) for i in (1, 3, 5)
    ]
    assert manifest.rejects == {"filtered": 6}
    numbered = shutil.copytree(webvision, tmp_path / "numbered")
    (numbered / "info" / "synsets.txt").unlink()
    build_small(numbered, tmp_path / "train2", class_ids=(1, 5))
    manifest = build_small(numbered, tmp_path / "val2", split="val", classes_from=tmp_path / "train2").manifest
    assert [(c.name, c.original_id, c.samples) for c in manifest.classes] == [("1", 1, 2), ("5", 5, 2)]


@pytest.mark.parametrize(
    ("text", "ids"), [("0-3", (0, 1, 2, 3)), ("60,0-1", (0, 1, 60)), ("5", (5,)), ("1-2, 2-3", (1, 2, 3))]
)
def test_classes_are_ids_and_ranges(text: str, ids: tuple[int, ...]) -> None:
    assert parse_classes(text) == ids


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "0-", "1;2", "0-1000000"])
def test_other_texts_are_no_classes(text: str) -> None:
    with pytest.raises(ValueError, match="classes: "):
        parse_classes(text)


def test_what_is_not_there_can_not_be_chosen(
    webvision: Path, tmp_path: Path, write_list: Callable[..., Path], small_dataset: Path
) -> None:
    with pytest.raises(SourceError, match="no class 6; expected ids within 0 … 5"):
        read_source(webvision, SourceOptions(class_ids=(1, 6)))
    with pytest.raises(SourceError, match="no row is of the origin and the classes asked for"):
        read_source(webvision, SourceOptions(class_ids=(3,)))
    with pytest.raises(SourceError, match="--only google needs WebVision's lists, this is read as list"):
        read_source(write_list(tmp_path / "a.csv", [("a.jpg", 0)]), SourceOptions(only="google"))
    with pytest.raises(SourceError, match="none of the rows is of flickr"):
        read_source(webvision, SourceOptions(split="val", only="flickr"))
    with pytest.raises(ValueError, match="got both"):
        SourceOptions(class_ids=(1,), classes_from=small_dataset)


def test_unlisted_files_are_counted_unless_told_not_to(
    webvision: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes
) -> None:
    root = shutil.copytree(webvision, tmp_path / "raw")
    for i in range(7):
        (root / "flickr" / "q0001" / f"extra{i}.jpg").write_bytes(b"")
    (root / "google" / "new" / "deep").mkdir(parents=True)
    (root / "google" / "new" / "deep" / "x").write_bytes(b"")
    with tarfile.open(root / "google_more.tar", "w") as tar:
        tar.add(root / "google" / "new" / "deep" / "x", "google/q0009/in-a-tar.jpg")
        tar.add(root / "google" / "q0001" / "img0000.jpg", "google/q0001/img0000.jpg")
    unlisted = build_small(root, tmp_path / "with").manifest.unlisted
    assert unlisted is not None
    assert unlisted.files == 9
    assert unlisted.first == tuple(f"flickr/q0001/extra{i}.jpg" for i in range(5))
    assert build_small(root, tmp_path / "without", unlisted=False).manifest.unlisted is None
    one, other = folder_bytes(tmp_path / "with"), folder_bytes(tmp_path / "without")
    documents = [json.loads(files.pop("manifest.json")) for files in (one, other)]
    assert one == other
    assert [d.pop("unlisted") is None for d in documents] == [False, True]
    assert documents[0] == documents[1]


@pytest.mark.parametrize(
    ("choice", "extra", "tars"),
    [
        ({}, 1, False),
        ({}, 1, True),
        ({"only": "google"}, 0, False),
        ({"only": "google", "class_ids": (0, 1)}, 0, True),
        ({"class_ids": (2,)}, 0, False),
    ],
)
def test_metadata_lists_of_rows_left_out_are_not_unlisted(
    webvision: Path, tmp_path: Path, build_small: Build, choice: dict[str, object], extra: int, tars: bool
) -> None:
    root = tmp_path / "raw"
    shutil.copytree(webvision / "info", root / "info")
    for source in ("google", "flickr"):
        path = root / "info" / f"train_filelist_{source}.txt"
        rows = [line.split() for line in path.read_text().splitlines()][:10:2]
        rows += [[f"{source}/q0002/img0001.jpg", "1"], [f"{source}/q0003/img0002.jpg", "2"]]
        metas = [f"{name.rsplit('/', 1)[0]}.json 1\n" for name, _ in rows]
        rows += [[f"{source}/q0001/extra.jpg", "0"]] * extra
        path.write_text("".join(f"{name} {label}\n" for name, label in rows))
        (root / "info" / f"train_meta_list_{source}.txt").write_text("".join(metas))
        for name in {meta.split()[0] for meta in metas}:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("[{}]")
        for name, _ in rows:
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(webvision / "google/q0001/img0000.jpg", root / name)
        if tars:
            with tarfile.open(root / f"{source}.tar", "w") as tar:
                tar.add(root / source, source)
            shutil.rmtree(root / source)
    manifest = build_small(root, tmp_path / "out", **choice).manifest
    assert manifest.unlisted is not None
    assert (manifest.unlisted.files, manifest.unlisted.first) == (0, ())
    assert manifest.samples + sum(manifest.rejects.values()) == manifest.rows == 14 + 2 * extra


def test_metadata_lists_without_a_line_for_each_row_say_what_to_do(
    tmp_path: Path, draw_webvision: Callable[..., Path]
) -> None:
    info = draw_webvision(tmp_path / "raw", [4, 4]) / "info"
    for source in ("google", "flickr"):
        (info / f"train_meta_list_{source}.txt").write_text(f"{source}/q0001.json 1\n" * 3)
    source = read_source(info.parent, SourceOptions())
    assert source.warnings == (
        "metadata left out: its lists have 6 lines, the file lists 8; give each row its line in "
        "train_meta_list_google.txt and train_meta_list_flickr.txt, 'LIST.json NUMBER' or '-', and build into a new "
        "folder",
    )
    for name in ("google", "flickr"):
        (info / f"train_meta_list_{name}.txt").write_text(f"{name}/q0001.json 1\n" * 3 + "-\n")
    source = read_source(info.parent, SourceOptions())
    assert source.rows.column("meta_row").to_pylist() == [1, 1, 1, 0] * 2


def test_an_unfinished_build_refuses_other_tars(
    webvision: Path, tmp_path: Path, leave_unfinished: Callable[[Path, Path], None], build_small: Build
) -> None:
    root = shutil.copytree(webvision, tmp_path / "raw")
    leave_unfinished(root, tmp_path / "out")
    with tarfile.open(root / "a.tar", "w"):
        pass
    with pytest.raises(BuildMismatchError, match=r"from other tars than .* \(added, removed or of another size\)"):
        build_small(root, tmp_path / "out")
    (root / "a.tar").unlink()
    build_small(root, tmp_path / "out")


def test_the_command_line_prints_the_account(webvision: Path, tmp_path: Path, ingest: Ingest) -> None:
    out = tmp_path / "out"
    arguments = ("--size", 16, "--only", "google", "--classes", "0-1,5", "--max-reject-fraction", 0.5)
    done = ingest("build-shards", webvision, out, *arguments)
    assert done.returncode == 0, done.stderr
    shown = {}
    for line in done.stdout.splitlines():
        if line.count("│") == 3:
            _, name, value, _ = line.split("│")
            shown[name.strip()] = value.strip()
    manifest = Manifest.load(out)
    lines = ["images packed", "filtered", *(name for name in shown if name.startswith("rejected: "))]
    assert sum(int(shown[name]) for name in lines) == int(shown["rows of the source"]) == manifest.rows
    assert shown["google: rows / packed"] == f"{manifest.sources['google'].rows} / {manifest.samples}"
    assert shown["files that no list names"] == "0"
    wrong = ingest("build-shards", webvision, tmp_path / "x", "--classes", "b")
    assert wrong.returncode == 2
