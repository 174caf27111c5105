"""`append`: what is new becomes new shards, every row of old and new lists keeps exactly one outcome."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from wv_ingest.append import AppendOptions, AppendResult, append
from wv_ingest.build import BuildResult
from wv_ingest.errors import BuildError, BuildMismatchError, SourceError
from wv_ingest.exclude import exclude_keys
from wv_ingest.progress import Progress
from wv_loader import Loader
from wv_shards import CorruptDataError, Dataset, Manifest, Overlay, verify

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]
WriteList = Callable[..., Path]
Ingest = Callable[..., subprocess.CompletedProcess[str]]


def grow(shards: Path, source: Path, **options: object) -> AppendResult:
    given: dict[str, Any] = {"workers": 1, "max_reject_fraction": 0.9, **options}
    with Progress(io.StringIO()) as progress:
        return append(shards, source, AppendOptions(**given), progress)


def outcomes(shards: Path) -> dict[str, list[tuple[object, ...]]]:
    """Of every path all its outcomes: label and content, or label and reason."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for row in pq.read_table(shards / "samples.parquet", columns=["path", "label", "content_hash"]).to_pylist():
        found.setdefault(row["path"], []).append((row["label"], row["content_hash"]))
    for row in pq.read_table(shards / "rejects.parquet").to_pylist():
        found.setdefault(row["path"], []).append((row["label"], row["reason"]))
    return {path: sorted(all_of, key=str) for path, all_of in found.items()}


def check_counts(shards: Path) -> None:
    """The manifest's counts are those of a recount of tars and tables."""
    assert verify(shards) == []
    manifest = Manifest.load(shards)
    labels: list[int] = []
    for shard in manifest.shards:
        with tarfile.open(shards / f"{shard.name}.tar") as tar:
            of_shard = [int(tar.extractfile(m).read()) for m in tar if m.name.endswith(".cls")]  # type: ignore[union-attr]
        labels += of_shard
        assert shard.band is None or {manifest.classes[label].band for label in of_shard} == {shard.band}
    packed = Counter(labels)
    rejects = pq.read_table(shards / "rejects.parquet").to_pylist()
    wanted = Counter(row["label"] for row in rejects if row["reason"] != "filtered")
    for info in manifest.classes:
        assert (info.samples, info.rows) == (packed[info.class_id], packed[info.class_id] + wanted[info.class_id])
    assert manifest.rows == len(labels) + len(rejects)
    origins = Counter(pq.read_table(shards / "samples.parquet", columns=["source"]).column("source").to_pylist())
    lost = Counter(row["path"].split("/")[0] for row in rejects if row["reason"] != "filtered")
    for name, origin in manifest.sources.items():
        assert (origin.samples, origin.rows) == (origins[name], origins[name] + lost[name])


def check_prefix(before: Path, after: Path) -> None:
    """What was there has kept its bytes and its ordinals; the old digest is known."""
    old, new = Manifest.load(before), Manifest.load(after)
    assert new.shards[: len(old.shards)] == old.shards
    for shard in old.shards:
        for suffix in (".tar", ".idx"):
            name = f"{shard.name}{suffix}"
            assert (after / name).read_bytes() == (before / name).read_bytes()
    with Dataset.open(before) as was, Dataset.open(after) as now:
        assert np.array_equal(now.index[: old.samples], was.index)
        assert now.samples_table().slice(0, old.samples).select(was.samples_table().column_names) == was.samples_table()
    assert [(e.digest, e.samples) for e in new.earlier][-1] == (old.digest, old.samples)


@pytest.fixture
def raw(webvision: Path, tmp_path: Path) -> Path:
    shutil.copytree(webvision, tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def shards(reference: Path, tmp_path: Path) -> Path:
    shutil.copytree(reference, tmp_path / "shards")
    return tmp_path / "shards"


def add_rows(
    raw: Path, encode: Draw, label: int, count: int, *, source: str = "google", seed: int = 10_000
) -> list[str]:
    """New images of a class at the end of a list, every fifth broken."""
    paths = [f"{source}/q{label + 1:04d}/new{seed + i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        (raw / path).parent.mkdir(exist_ok=True)
        (raw / path).write_bytes(encode(seed + i) if i % 5 else b"broken")
    with open(raw / "info" / f"train_filelist_{source}.txt", "a") as file:
        file.writelines(f"{path} {label}\n" for path in paths)
    return paths


def test_longer_lists_end_as_if_all_had_been_there_at_once(
    raw: Path, shards: Path, reference: Path, tmp_path: Path, encode: Draw, build_small: Build
) -> None:
    """Also a class that had no rows yet, a reject that now reads well, and one that stays what it was."""
    add_rows(raw, encode, 3, 12)
    add_rows(raw, encode, 0, 30, source="flickr", seed=20_000)
    mended = next(p for p, all_of in outcomes(shards).items() if all_of[0][1] == "empty")
    (raw / mended).write_bytes(encode(77))
    result = grow(shards, raw)
    assert result.changed
    assert result.packed_before == 238
    check_counts(shards)
    check_prefix(reference, shards)
    build_small(raw, tmp_path / "at_once")
    assert outcomes(shards) == outcomes(tmp_path / "at_once")
    whole = Manifest.load(tmp_path / "at_once")
    after = Manifest.load(shards)
    assert [(c.rows, c.samples) for c in after.classes] == [(c.rows, c.samples) for c in whole.classes]
    assert (after.rejects, after.sources, after.unlisted) == (whole.rejects, whole.sources, whole.unlisted)
    assert [c.band for c in after.classes] == [14, 12, 9, 7, 6, 4]
    names = [s.name for s in after.shards[len(Manifest.load(reference).shards) :]]
    assert names == ["b07-000000", "b14-000003"], "numbers go on within the band"
    assert Counter(row[0][1] == "empty" for row in outcomes(shards).values())[True] == 8


def test_nothing_new_changes_nothing(raw: Path, shards: Path, folder_bytes: FolderBytes, ingest: Ingest) -> None:
    before = folder_bytes(shards)
    done = ingest("append", shards, raw, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "nothing new in 238 rows that are packed" in done.stdout
    assert folder_bytes(shards) == before


def test_a_second_append_of_the_same_changes_nothing_and_the_first_build_is_refused(
    raw: Path, shards: Path, encode: Draw, folder_bytes: FolderBytes, build_small: Build
) -> None:
    add_rows(raw, encode, 1, 11)
    grow(shards, raw)
    before = folder_bytes(shards)
    assert not grow(shards, raw).changed
    assert folder_bytes(shards) == before
    with pytest.raises(BuildMismatchError, match="finished data set with images that were appended since"):
        build_small(raw, shards)


def test_rejects_that_change_their_reason_are_told_and_the_digest_stays(raw: Path, shards: Path) -> None:
    """No sample is new: overlays and runs still belong to this very data set."""
    before = Manifest.load(shards)
    gone = next(p for p, all_of in outcomes(shards).items() if all_of[0][1] == "empty")
    (raw / gone).write_bytes(b"no image, but no longer empty")
    result = grow(shards, raw)
    assert result.changed
    assert result.manifest.digest == before.digest
    assert result.manifest.earlier == ()
    assert result.manifest.rejects["empty"] == before.rejects["empty"] - 1
    check_counts(shards)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_do_not_depend_on_the_workers(
    raw: Path, shards: Path, tmp_path: Path, encode: Draw, folder_bytes: FolderBytes, workers: int
) -> None:
    for label in (0, 1, 2, 3, 4):
        add_rows(raw, encode, label, 40, seed=10_000 * label)
    shutil.copytree(shards, tmp_path / "other")
    grow(shards, raw, workers=workers)
    grow(tmp_path / "other", raw, workers=2)
    assert folder_bytes(tmp_path / "other") == folder_bytes(shards)


def test_new_images_may_come_in_a_tar_and_wait_for_their_lists(
    raw: Path, shards: Path, encode: Draw, tmp_path: Path
) -> None:
    """The lists name images that are missing first; later a tar brings them."""
    paths = add_rows(raw, encode, 2, 10)
    for path in paths:
        os.rename(raw / path, tmp_path / Path(path).name)
    grow(shards, raw)
    assert Manifest.load(shards).rejects["missing"] == 10
    with tarfile.open(raw / "google_more.tar", "w") as tar:
        for path in paths:
            tar.add(tmp_path / Path(path).name, arcname=path)
    grow(shards, raw)
    check_counts(shards)
    after = Manifest.load(shards)
    assert "missing" not in after.rejects
    assert [outcomes(shards)[path][0][0] for path in paths] == [2] * 10
    assert len(after.earlier) == 2
    assert after.options["appended"][0] == after.options["appended"][1] != after.options["source_rows"]


def test_metadata_that_comes_later_is_null_before(raw: Path, shards: Path, encode: Draw) -> None:
    for source in ("google", "flickr"):
        lines = (raw / "info" / f"train_filelist_{source}.txt").read_text().splitlines()
        (raw / "info" / f"train_meta_list_{source}.txt").write_text("google/none.json 1\n" * len(lines))
    add_rows(raw, encode, 1, 6)
    (raw / "google" / "q0002.json").write_text(json.dumps([{"title": f"title {i}"} for i in range(6)]))
    with open(raw / "info" / "train_meta_list_google.txt", "a") as file:
        file.writelines(f"google/q0002.json {i + 1}\n" for i in range(6))
    grow(shards, raw)
    check_counts(shards)
    titles = pq.read_table(shards / "samples.parquet", columns=["title"]).column("title").to_pylist()
    assert titles[:238] == [None] * 238
    assert sorted(filter(None, titles)) == [f"title {i}" for i in range(1, 5)]


def test_a_damaged_index_is_not_taken_over(raw: Path, shards: Path, encode: Draw, folder_bytes: FolderBytes) -> None:
    add_rows(raw, encode, 1, 6)
    data = bytearray((shards / "index.npy").read_bytes())
    data[300] ^= 1
    (shards / "index.npy").write_bytes(data)
    before = folder_bytes(shards)
    with pytest.raises(CorruptDataError, match=r"index.npy: is damaged"):
        grow(shards, raw)
    assert folder_bytes(shards) == before


def test_another_folder_brings_new_classes_and_known_ones_keep_their_ids(
    tmp_path: Path, encode: Draw, build_small: Build
) -> None:
    """Folder names make the ids once; later folders are matched by name, whatever their place in the order."""
    for number, path in enumerate(["b/1.jpg", "b/2.jpg", "d/1.jpg", "d/2.jpg", "d/3.jpg"]):
        (tmp_path / "first" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "first" / path).write_bytes(encode(number))
    build_small(tmp_path / "first", tmp_path / "shards")
    for number, path in enumerate(["a/1.jpg", "c/7.jpg", "c/8.jpg", "d/9.jpg"]):
        (tmp_path / "second" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "second" / path).write_bytes(encode(100 + number))
    grow(tmp_path / "shards", tmp_path / "second")
    check_counts(tmp_path / "shards")
    after = Manifest.load(tmp_path / "shards")
    assert [(c.name, c.samples) for c in after.classes] == [("b", 2), ("d", 4), ("a", 1), ("c", 2)]
    assert outcomes(tmp_path / "shards")["d/9.jpg"][0][0] == 1
    assert outcomes(tmp_path / "shards")["c/7.jpg"][0][0] == 3


def test_a_validation_set_takes_new_classes_from_its_training_set(
    tmp_path: Path, encode: Draw, build_small: Build
) -> None:
    for number, path in enumerate(["train/b/1.jpg", "train/c/2.jpg", "val/c/1.jpg"]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encode(number))
    build_small(tmp_path / "train", tmp_path / "t")
    build_small(tmp_path / "val", tmp_path / "v", split="val", classes_from=tmp_path / "t")
    for number, path in enumerate(["train/a/5.jpg", "val/a/5.jpg", "val/b/6.jpg"]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encode(10 + number))
    with pytest.raises(SourceError, match="folder 'a' is not a class of"):
        grow(tmp_path / "v", tmp_path / "val", classes_from=tmp_path / "t")
    grow(tmp_path / "t", tmp_path / "train")
    grow(tmp_path / "v", tmp_path / "val", classes_from=tmp_path / "t")
    for shards in ("t", "v"):
        assert [c.name for c in Manifest.load(tmp_path / shards).classes] == ["b", "c", "a"]
        assert outcomes(tmp_path / shards)["a/5.jpg"][0][0] == 2


def test_a_class_may_not_get_another_id(raw: Path, shards: Path, encode: Draw, folder_bytes: FolderBytes) -> None:
    before = folder_bytes(shards)
    add_rows(raw, encode, 0, 3)
    synsets = (raw / "info" / "synsets.txt").read_text().splitlines()
    (raw / "info" / "synsets.txt").write_text("\n".join([synsets[0], "n09 another", *synsets[1:]]) + "\n")
    with pytest.raises(SourceError, match=r"class 1 is 'n09 another', in .* it is 'n00010001 thing 1, entity 1'"):
        grow(shards, raw)
    assert folder_bytes(shards) == before
    (raw / "info" / "synsets.txt").write_text("\n".join([*synsets, "n09 another"]) + "\n")
    grow(shards, raw)
    assert [c.name for c in Manifest.load(shards).classes][-1] == "n09 another"


def test_a_part_of_the_source_stays_that_part(tmp_path: Path, raw: Path, encode: Draw, build_small: Build) -> None:
    """--only and --classes hold for what comes later; rows of others are counted as filtered, once."""
    chosen = {"only": "google", "class_ids": (2, 0)}
    shards = tmp_path / "shards"
    build_small(raw, shards, **{**chosen, "class_ids": (0, 2)})
    add_rows(raw, encode, 2, 10)
    add_rows(raw, encode, 1, 10, seed=20_000)
    add_rows(raw, encode, 0, 10, source="flickr", seed=30_000)
    grow(shards, raw)
    check_counts(shards)
    build_small(raw, tmp_path / "at_once", only="google", class_ids=(0, 2))
    assert outcomes(shards) == outcomes(tmp_path / "at_once")
    whole, after = Manifest.load(tmp_path / "at_once"), Manifest.load(shards)
    assert (after.rejects, after.sources) == (whole.rejects, whole.sources)
    assert [c.original_id for c in after.classes] == [0, 2]
    assert not grow(shards, raw).changed


def test_lists_may_have_other_columns_and_repeated_rows_count_once(
    tmp_path: Path, encode: Draw, write_list: WriteList, build_small: Build
) -> None:
    for i in range(30):
        (tmp_path / f"{i}.jpg").write_bytes(encode(i))
    first = [(f"{i}.jpg", i % 2) for i in range(10)] + [("3.jpg", 0), ("gone.jpg", 1), ("gone.jpg", 1)]
    build_small(write_list(tmp_path / "one.csv", first), tmp_path / "shards")
    more = [(1, f"{i}.jpg") for i in range(5, 20)] + [(0, "7.jpg"), (0, "15.jpg"), (4, "20.jpg")]
    result = grow(
        tmp_path / "shards",
        write_list(tmp_path / "two.csv", more, header=("class", "file")),
        path_column="file",
        label_column="class",
    )
    check_counts(tmp_path / "shards")
    found = outcomes(tmp_path / "shards")
    assert [len(found[f"{i}.jpg"]) for i in (3, 7, 15)] == [2, 1, 2]
    assert [label for label, _ in found["15.jpg"]] == [0, 1]
    assert found["7.jpg"][0][0] == 1, "packed under its first label"
    assert len(found["gone.jpg"]) == 2
    assert result.manifest.samples == 21
    assert [c.name for c in result.manifest.classes] == ["0", "1", "2", "3", "4"]


def test_webdataset_tars_are_appended_and_mend_what_they_brought(
    tmp_path: Path, encode: Draw, build_small: Build, ingest: Ingest
) -> None:
    for folder, start in (("one", 0), ("two", 100)):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / f"{folder}.tar", "w") as tar:
            for i in range(start, start + 8):
                for name, data in ((f"{i:04d}.jpg", encode(i)), (f"{i:04d}.cls", str(i % 3).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    shards = tmp_path / "shards"
    build_small(tmp_path / "one", shards, source_format="webdataset")
    result = grow(shards, tmp_path / "two")
    check_counts(shards)
    assert (result.manifest.samples, len(result.manifest.classes)) == (16, 3)
    assert not grow(shards, tmp_path / "two").changed
    new = shards / f"{result.manifest.shards[-1].name}.tar"
    sound = new.read_bytes()
    new.unlink()
    done = ingest("verify", shards, "--repair", tmp_path / "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert new.read_bytes() == sound


def test_exclusions_and_ledgers_hold_for_the_grown_data_set(raw: Path, shards: Path, encode: Draw) -> None:
    old = Manifest.load(shards)
    excluded = np.arange(old.samples) % 7 == 0
    Overlay(kind="exclude", array=excluded, manifest_digest=old.digest).save(shards / "exclude")
    add_rows(raw, encode, 4, 20)
    add_rows(raw, encode, 5, 20)
    grow(shards, raw)
    after = Manifest.load(shards)
    loader = Loader(shards, batch_size=16, size_px=8, balance=1.0)
    shown = np.concatenate([b.ordinals[b.valid].numpy() for b in loader])
    assert sorted(shown) == sorted(set(range(after.samples)) - set(np.flatnonzero(excluded)))
    even = Loader(shards, batch_size=16, size_px=8, balance=0.0, max_repeat=200)
    assert np.allclose(even.expected_exposure() / even.expected_exposure().mean(), [1, 1, 1, 0, 1, 1], rtol=0.25)


def test_copies_of_what_was_there_are_excluded_and_exclusions_by_key_stay(
    tmp_path: Path, encode: Draw, write_list: WriteList, build_small: Build
) -> None:
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encode(i, 64, 48))
    (tmp_path / "z.jpg").write_bytes(encode(2, 64, 48))
    shards = tmp_path / "shards"
    build_small(write_list(tmp_path / "one.csv", [(f"{i}.jpg", 0) for i in range(4)]), shards, size_px=0)
    keys = {key: i for i, key in enumerate(pq.read_table(shards / "samples.parquet").column("key").to_pylist())}
    asked = next(key for key in keys if key.startswith("1_jpg"))
    exclude_keys(shards, [asked])
    result = grow(shards, write_list(tmp_path / "two.csv", [("4.jpg", 0), ("z.jpg", 0), ("5.jpg", 0)]))
    assert result.manifest.duplicates is not None
    assert (result.manifest.duplicates.exact, result.manifest.duplicates.excluded) == (1, 1)
    assert verify(shards) == []
    rows = Overlay.load(shards / "exclude", manifest_digest=result.manifest.digest).array
    names = pq.read_table(shards / "samples.parquet").column("path").to_pylist()
    assert {name: int(row) for name, row in zip(names, rows, strict=True) if row} == {"1.jpg": 2, "z.jpg": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["codecs"].update(decoder="Pillow 1.0"), "was packed with .*Pillow 1.0.*, here are"),
        (lambda m: m["options"].pop("quality"), "names no option quality"),
        (lambda m: m["options"].update(colour="blue"), "was built with colour blue, now it is None"),
    ],
)
def test_other_codecs_and_unknown_options_are_refused(
    raw: Path, shards: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = json.loads((shards / "manifest.json").read_text())
    change(document)
    (shards / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BuildMismatchError, match=message):
        grow(shards, raw)


def test_too_many_rejects_of_all_rows_stop_an_append(raw: Path, shards: Path, folder_bytes: FolderBytes) -> None:
    before = folder_bytes(shards)
    with open(raw / "info" / "train_filelist_google.txt", "a") as file:
        file.writelines(f"google/q0001/none{i}.jpg 0\n" for i in range(100))
    with pytest.raises(BuildError, match=r"1\d\d of 364 rows rejected so far.*missing 100"):
        grow(shards, raw, max_reject_fraction=0.2)
    assert {n: b for n, b in folder_bytes(shards).items() if not n.startswith(".append")} == before
    grow(shards, raw, max_reject_fraction=0.5)
    assert Manifest.load(shards).rejects["missing"] == 100


def test_real_photos_append_to_real_photos(test_data: Path, tmp_path: Path, ingest: Ingest) -> None:
    """Half of the photos first, then all of them, by the command line."""
    photos = sorted((test_data / "photos").glob("*.JPEG"))[:60]
    raw = tmp_path / "raw"
    for photo in photos[::2]:
        folder = raw / photo.name.split("_")[0][-1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    shards = tmp_path / "shards"
    assert ingest("build-shards", raw, shards, "--size", 0).returncode == 0
    page = (shards / "report.html").read_text()
    for photo in photos[1::2]:
        folder = raw / photo.name.split("_")[0][-1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    shutil.copytree(shards, tmp_path / "before")
    done = ingest("append", shards, raw)
    assert done.returncode == 0, done.stderr
    assert "30 images appended" in done.stdout
    assert (shards / "report.html").read_text() != page, "the page is of what is there now"
    check_counts(shards)
    check_prefix(tmp_path / "before", shards)
