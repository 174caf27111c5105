"""Laws 1 and 2: every row has one outcome, and the bytes do not depend on workers, kills or the machine's mood."""

import gc
import os
import shutil
import subprocess
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from wv_ingest.build import BuildResult
from wv_ingest.build_options import BuildOptions
from wv_ingest.errors import BuildError, BuildMismatchError, SourceError
from wv_ingest.keys import key_of
from wv_ingest.sources import SourceOptions, read_source
from wv_shards import Dataset, Manifest, OutputExistsError, band_of, key_hash, verify

Build = Callable[..., BuildResult]
FolderBytes = Callable[[Path], dict[str, bytes]]
Draw = Callable[..., bytes]
Leave = Callable[[Path, Path], None]
BuildCommand = Callable[..., list[str]]


def test_every_row_is_packed_once_or_rejected_once(webvision: Path, reference: Path) -> None:
    source = read_source(webvision, SourceOptions())
    rows = Counter(
        zip([p.decode() for p in source.rows.column("path").to_pylist()], source.labels.tolist(), strict=True)
    )
    samples = pq.read_table(reference / "samples.parquet").to_pylist()
    rejects = pq.read_table(reference / "rejects.parquet").to_pylist()
    outcomes = Counter((row["path"], row["label"]) for row in [*samples, *rejects])
    assert outcomes == rows
    manifest = Manifest.load(reference)
    assert manifest.rows == len(samples) + len(rejects) == 264
    assert manifest.rejects == {"empty": 9, "not-an-image": 9, "truncated": 8}
    assert manifest.rejects == Counter(row["reason"] for row in rejects)
    order = {path: i for i, (path, _) in enumerate(rows)}
    assert [row["path"] for row in rejects] == sorted((row["path"] for row in rejects), key=order.__getitem__)
    assert not verify(reference)


def test_shards_hold_one_band_in_hashed_order_and_classes_are_counted(webvision: Path, reference: Path) -> None:
    manifest = Manifest.load(reference)
    assert [c.rows for c in manifest.classes] == [150, 70, 31, 0, 9, 4]
    assert [c.band for c in manifest.classes] == [band_of(n) for n in (150, 70, 31, 0, 9, 4)]
    assert manifest.classes[3].samples == 0
    with Dataset.open(reference) as dataset:
        table = dataset.samples_table(["key", "path", "label"]).to_pydict()
        assert table["key"] == [key_of(path.encode()) for path in table["path"]]
        starts = dataset.shard_starts.tolist()
        assert np.bincount(dataset.index["label"], minlength=6).tolist() == [c.samples for c in manifest.classes]
    for shard, start, stop in zip(manifest.shards, starts, starts[1:], strict=False):
        assert {manifest.classes[label].band for label in table["label"][start:stop]} == {shard.band}
        hashes = [key_hash(key, manifest.seed) for key in table["key"][start:stop]]
        assert hashes == sorted(hashes)


def test_three_workers_write_the_same_bytes_as_one(
    webvision: Path, reference: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes
) -> None:
    build_small(webvision, tmp_path / "out", workers=3)
    assert folder_bytes(tmp_path / "out") == folder_bytes(reference)


def test_nothing_of_the_machine_is_in_the_output(
    webvision: Path, reference: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes
) -> None:
    """The same tree in another place gives the same bytes."""
    shutil.copytree(webvision, tmp_path / "moved")
    build_small(tmp_path / "moved", tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == folder_bytes(reference)


def test_repeated_rows_are_rejected_and_the_first_one_counts(
    tmp_path: Path, encode: Draw, write_list: Callable[..., Path], build_small: Build
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(encode(ord(name)))
    rows = [("a.jpg", 0), ("b.jpg", 1), ("a.jpg", 1), ("b.jpg", 1), ("c.jpg", 0), ("a.jpg", 0)]
    manifest = build_small(write_list(tmp_path / "list.csv", rows), tmp_path / "out").manifest
    assert (manifest.rows, manifest.samples, manifest.rejects) == (6, 3, {"repeated-row": 3})
    assert [c.rows for c in manifest.classes] == [3, 3]
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [(r["path"], r["label"], r["detail"]) for r in rejects] == [
        ("a.jpg", 1, "other-label"),
        ("b.jpg", 1, "same-label"),
        ("a.jpg", 0, "same-label"),
    ]


def test_files_that_are_not_files_are_rejected_without_hanging(
    tmp_path: Path, encode: Draw, write_list: Callable[..., Path], build_small: Build
) -> None:
    (tmp_path / "good.jpg").write_bytes(encode(1))
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    (tmp_path / "large.jpg").write_bytes(b"")
    os.truncate(tmp_path / "large.jpg", 10**11)
    names = ["good.jpg", "folder.jpg", "pipe.jpg", "loop.jpg", "large.jpg", "absent.jpg", "good.jpg/x.jpg", "n" * 300]
    source = write_list(tmp_path / "list.csv", [(name, 0) for name in names])
    build_small(source, tmp_path / "out", max_reject_fraction=1.0)
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pydict()
    assert dict(zip(rejects["path"], zip(rejects["reason"], rejects["detail"], strict=True), strict=True)) == {
        "folder.jpg": ("unreadable", "not-a-file"),
        "pipe.jpg": ("unreadable", "not-a-file"),
        "loop.jpg": ("unreadable", "ELOOP"),
        "large.jpg": ("too-many-bytes", str(10**11)),
        "absent.jpg": ("missing", ""),
        "good.jpg/x.jpg": ("missing", ""),
        "n" * 300: ("unreadable", "ENAMETOOLONG"),
    }


def test_names_of_any_bytes_are_packed(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    folder = tmp_path / "raw" / "class"
    folder.mkdir(parents=True)
    names = [
        b"-dash.jpg",
        b"two.dots.in.jpg",
        b"no_extension",
        b"\xe4.jpg",
        "写真.jpg".encode(),
        b"a b\n.jpg",
        b"a" * 250,
    ]
    for i, name in enumerate(names):
        (Path(os.fsdecode(bytes(folder))) / os.fsdecode(name)).write_bytes(encode(i))
    manifest = build_small(tmp_path / "raw", tmp_path / "out").manifest
    assert manifest.samples == len(names)
    assert not verify(tmp_path / "out")


def test_other_options_or_another_source_are_refused_by_name(
    webvision: Path,
    tmp_path: Path,
    build_small: Build,
    draw_webvision: Callable[..., Path],
    folder_bytes: FolderBytes,
    leave_unfinished: Leave,
) -> None:
    out = tmp_path / "out"
    leave_unfinished(webvision, out)
    unfinished = folder_bytes(out)
    changed = draw_webvision(tmp_path / "raw", [20, 20])
    for source, options, message in (
        (webvision, {"size_px": 17}, r"unfinished build with size 16, now it is 17"),
        (webvision, {"seed": 3}, r"unfinished build with seed 0, now it is 3"),
        (webvision, {"shard_mb": 3}, r"shard_mb 64, now it is 3"),
        (webvision, {"split": "val"}, r"split train, now it is val"),
        (changed, {}, r"other rows or classes than the source has now"),
    ):
        with pytest.raises(BuildMismatchError, match=message):
            build_small(source, out, **options)
    assert folder_bytes(out) == unfinished
    build_small(webvision, out)
    finished = folder_bytes(out)
    with pytest.raises(BuildMismatchError, match=r"finished data set with size 16, now it is 17; build into a new"):
        build_small(webvision, out, size_px=17)
    assert build_small(webvision, out).complete_before
    assert folder_bytes(out) == finished


def test_another_decoder_is_refused(
    webvision: Path, tmp_path: Path, build_small: Build, monkeypatch: pytest.MonkeyPatch, leave_unfinished: Leave
) -> None:
    out = tmp_path / "out"
    leave_unfinished(webvision, out)
    monkeypatch.setattr("wv_ingest.build.codecs", lambda: {"decoder": "Other 1.0", "encoder": "Other 1.0"})
    with pytest.raises(BuildMismatchError, match=r"decoder Pillow.* now it is Other 1.0"):
        build_small(webvision, out)


def test_a_folder_that_holds_something_else_is_left_alone(webvision: Path, tmp_path: Path, build_small: Build) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("…")
    (tmp_path / "file").touch()
    for name in ("thesis", "file"):
        with pytest.raises(OutputExistsError, match=name):
            build_small(webvision, tmp_path / name)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "raw" / "cat").mkdir(parents=True)
    (tmp_path / "raw" / "cat" / "1.jpg").touch()
    with pytest.raises(SourceError, match="lies inside the source"):
        build_small(tmp_path / "raw", tmp_path / "raw" / "shards")
    assert not (tmp_path / "raw" / "shards").exists()
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputExistsError, match="link: is a link that leads nowhere"):
        build_small(webvision, tmp_path / "link")


def test_no_build_lies_in_a_folder_that_is_walked_for_images(
    reference: Path, tmp_path: Path, build_small: Build, webvision: Path, folder_bytes: FolderBytes
) -> None:
    """Its own files would be counted as images that no list names."""
    raw = shutil.copytree(webvision, tmp_path / "raw")
    (tmp_path / "link").symlink_to(raw / "google" / "q0001")
    for out, split in (
        (raw / "google" / "q0001" / "out", "train"),
        (raw / "flickr" / "new" / "out", "train"),
        (tmp_path / "link" / "out", "train"),
        (raw / "val_images_256" / "out", "val"),
    ):
        with pytest.raises(SourceError, match=r"lies inside .*, where its files would count as images that no list"):
            build_small(raw, out, split=split)
        assert not out.exists()
    build_small(raw, raw / "shards")  # beside them nothing is walked
    assert folder_bytes(raw / "shards") == folder_bytes(reference)
    shutil.copytree(reference, raw / "google" / "before")  # what is there goes on
    assert build_small(raw, raw / "google" / "before").complete_before


def test_too_many_rejects_stop_the_build_and_a_higher_limit_lets_it_go_on(
    webvision: Path, reference: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes
) -> None:
    out = tmp_path / "out"
    with pytest.raises(BuildError, match=r"of 264 rows rejected so far, more than --max-reject-fraction 0.05 \(empty"):
        build_small(webvision, out, max_reject_fraction=0.05)
    assert not (out / "manifest.json").exists()
    build_small(webvision, out)
    assert folder_bytes(out) == folder_bytes(reference)


def test_no_readable_image_is_an_error_and_the_folder_can_be_used_for_the_right_source(
    tmp_path: Path, webvision: Path, write_list: Callable[..., Path], build_small: Build
) -> None:
    source = write_list(tmp_path / "list.csv", [(f"absent{i}.jpg", 0) for i in range(5)])
    with pytest.raises(BuildError, match=r"no readable image in 5 rows \(missing 5\)"):
        build_small(source, tmp_path / "out", max_reject_fraction=1.0)
    assert not (tmp_path / "out").exists()
    assert build_small(webvision, tmp_path / "out").manifest.rows == 264


def test_webdataset_and_tar_read_what_was_packed(reference: Path) -> None:
    manifest = Manifest.load(reference)
    tars = [str(reference / f"{shard.name}.tar") for shard in manifest.shards]
    pipeline = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves its files to the garbage collector
        samples = list(pipeline.to_tuple("jpg", "cls", "json", "__key__"))
        gc.collect()
    with Dataset.open(reference) as dataset:
        table = dataset.samples_table().to_pylist()
        assert len(samples) == len(table)
        for (image, label, facts, key), row in zip(samples, table, strict=True):
            assert image.size == (row["width"], row["height"])
            assert min(image.size) == 16
            assert (label, key) == (row["label"], row["key"])
            assert facts == {"path": row["path"], "source": row["source"], "query": row["query"]}
    listed = subprocess.run(["tar", "tf", tars[0]], check=True, capture_output=True, text=True).stdout.split()
    with tarfile.open(tars[0]) as tar:
        assert listed == tar.getnames()
    assert len(listed) == 3 * manifest.shards[0].samples


def test_real_photos_and_torture_go_through_a_build(
    test_data: Path, tmp_path: Path, write_list: Callable[..., Path], build_small: Build
) -> None:
    """Size 0: sound photos keep their bytes; what a torture file becomes does not depend on its neighbours."""
    photos = sorted((test_data / "photos").iterdir())
    torture = sorted((test_data / "torture" / "files").iterdir())
    rows = [(str(path), i % 7) for i, path in enumerate([*photos, *torture])]
    manifest = build_small(
        write_list(tmp_path / "list.csv", rows),
        tmp_path / "out",
        size_px=0,
        workers=2,
        shard_mb=8,
        max_reject_fraction=1.0,
    ).manifest
    assert manifest.rows == len(rows)
    assert 400 + 38 <= manifest.samples <= 400 + 38 + 30
    assert all(shard.bytes < 12_000_000 for shard in manifest.shards)
    assert not verify(tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [{"seed": -1}, {"shard_mb": 0}, {"workers": 0}, {"max_reject_fraction": 1.1}, {"max_reject_fraction": -1}],
)
def test_impossible_build_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        BuildOptions(**options)


def test_a_place_below_a_file_is_refused_in_words(webvision: Path, tmp_path: Path, build_small: Build) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match="what is above it is no folder"):
        build_small(webvision, tmp_path / "file" / "out")
