"""`merge`: the same images, counted once, in one data set; what does not fit is refused before anything is written."""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wv_ingest.append import AppendOptions, append
from wv_ingest.build import BuildResult
from wv_ingest.errors import BuildMismatchError, MergeError
from wv_ingest.merge import merge
from wv_ingest.progress import Progress
from wv_loader import Loader
from wv_shards import (
    CorruptDataError,
    Dataset,
    Manifest,
    OutputExistsError,
    Overlay,
    UnfinishedBuildError,
    band_of,
    table_checksums,
    verify,
)

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]
Ingest = Callable[..., subprocess.CompletedProcess[str]]


def join(out: Path, *folders: Path) -> Manifest:
    with Progress(io.StringIO()) as progress:
        return merge(out, folders, progress)


@pytest.fixture(scope="module")
def halves(webvision: Path, tmp_path_factory: pytest.TempPathFactory, build_halves: Callable[..., None]) -> list[Path]:
    """The rows of one search engine each. Read-only by agreement."""
    folder = tmp_path_factory.mktemp("halves")
    build_halves(webvision, folder)
    return [folder / "google", folder / "flickr"]


@pytest.fixture(scope="module")
def build_halves(ingest: Callable[..., "subprocess.CompletedProcess[str]"]) -> Callable[..., None]:
    def build(source: Path, folder: Path) -> None:
        for only in ("google", "flickr"):
            arguments = ["build-shards", source, folder / only, "--only", only, "--size", 16, "--workers", 1]
            assert ingest(*arguments, "--max-reject-fraction", 0.5).returncode == 0

    return build


def test_two_halves_hold_what_the_whole_holds(halves: list[Path], reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = join(out, *halves)
    assert verify(out) == []
    whole = Manifest.load(reference)
    assert [(c.name, c.samples, c.rows) for c in manifest.classes] == [
        (c.name, c.samples, c.rows) for c in whole.classes
    ]
    assert manifest.sources == whole.sources
    columns = ["key", "path", "label", "content_hash", "bytes"]
    by_key = [pq.read_table(d / "samples.parquet", columns=columns).sort_by("key") for d in (out, reference)]
    assert by_key[0] == by_key[1]
    assert (manifest.rejects, manifest.rows) == (whole.rejects, whole.rows), "what one left out the other has"
    assert manifest.options["size"] == 16
    assert [part["only"] for part in manifest.options["merged"]] == ["google", "flickr"]
    first = Manifest.load(halves[0])
    assert [(e.digest, e.samples) for e in manifest.earlier] == [(first.digest, first.samples)]
    with Dataset.open(out) as dataset, Dataset.open(halves[0]) as google, Dataset.open(halves[1]) as flickr:
        assert dataset.read(3) == google.read(3)
        assert dataset.read(first.samples + 3) == flickr.read(3)
        assert np.array_equal(dataset.index[: first.samples], google.index)


def test_tars_are_linked_or_copied_and_taken_names_go_on(
    halves: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_bytes: FolderBytes
) -> None:
    join(tmp_path / "linked", *halves)
    names = [s.name for s in Manifest.load(tmp_path / "linked").shards]
    assert len(set(names)) == len(names) == sum(len(Manifest.load(half).shards) for half in halves)
    assert all((tmp_path / "linked" / f"{name}.tar").stat().st_nlink >= 2 for name in names)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    join(tmp_path / "copied", *halves)
    assert folder_bytes(tmp_path / "copied") == folder_bytes(tmp_path / "linked")
    bad = tmp_path / "bad"
    shutil.copytree(halves[1], bad)
    tar = next(bad.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptDataError, match=f"{tar.name}: checksum .* the file changed"):
        join(tmp_path / "from_bad", halves[0], bad)


def test_sets_that_were_packed_in_another_way_are_merged_with_a_warning(
    halves: list[Path], webvision: Path, tmp_path: Path, build_small: Build
) -> None:
    build_small(webvision, tmp_path / "larger", only="flickr", size_px=17)
    said: list[str] = []
    for other in (tmp_path / "larger", halves[1]):
        stream = io.StringIO()
        with Progress(stream) as progress:
            merge(tmp_path / f"with-{other.name}", [halves[0], other], progress)
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        said.append("; ".join(line["message"] for line in lines if "differs" in line.get("message", "")))
    assert said[0].startswith(f"size differs: {halves[0]} was built with 16, {tmp_path / 'larger'} with 17; ")
    assert said[0].count("differs") == 1
    assert said[1] == "", "sources and seeds may differ"


def test_a_link_that_leads_nowhere_is_no_place_to_merge(halves: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputExistsError, match="link: is a link that leads nowhere"):
        join(tmp_path / "link", *halves)


def test_exclusions_of_all_sets_hold(halves: list[Path], tmp_path: Path) -> None:
    sets = [tmp_path / "a", tmp_path / "b"]
    for half, copy in zip(halves, sets, strict=True):
        shutil.copytree(half, copy)
    manifests = [Manifest.load(one) for one in sets]
    one = np.zeros(manifests[0].samples, dtype=bool)
    two = np.zeros(manifests[1].samples, dtype=np.uint8)
    one[5], two[7] = True, 2
    Overlay(kind="exclude", array=one, manifest_digest=manifests[0].digest).save(sets[0] / "exclude")
    Overlay(kind="exclude", array=two, manifest_digest=manifests[1].digest).save(sets[1] / "exclude")
    manifest = join(tmp_path / "out", *sets)
    rows = Overlay.load(tmp_path / "out" / "exclude", manifest_digest=manifest.digest, kind="exclude").array
    assert {int(i): int(rows[i]) for i in np.flatnonzero(rows)} == {5: 2, manifests[0].samples + 7: 2}


def test_copies_are_found_across_sets_by_the_rule_of_all(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    for name in ("a", "b"):
        for number in (1, 2, 3) if name == "a" else (3, 4):
            path = tmp_path / name / "cat" / f"{name}{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(number, 64, 48))
        build_small(tmp_path / name, tmp_path / f"s{name}", size_px=0)
    one = Manifest.load(tmp_path / "sa")
    assert one.duplicates is not None
    assert one.duplicates.excluded == 0
    manifest = join(tmp_path / "out", tmp_path / "sa", tmp_path / "sb")
    assert manifest.duplicates is not None
    assert (manifest.duplicates.exact, manifest.duplicates.excluded) == (1, 1)
    rows = Overlay.load(tmp_path / "out" / "exclude", manifest_digest=manifest.digest).array
    with Dataset.open(tmp_path / "out") as dataset:
        keys = dataset.samples_table(["key"]).column("key").to_pylist()
    assert [key.split("-")[0] for key, row in zip(keys, rows, strict=True) if row] == ["cat_b3_jpg"]
    bare = tmp_path / "bare"
    shutil.copytree(tmp_path / "sb", bare)
    replace(Manifest.load(bare), duplicates=None).save(bare)
    assert join(tmp_path / "unsearched", tmp_path / "sa", bare).duplicates is None


def test_rows_that_both_sets_left_out_stay_once(webvision: Path, tmp_path: Path, build_small: Build) -> None:
    """Classes 1 and 4 by search engine: rows of other classes are in neither half."""
    for only in ("google", "flickr"):
        build_small(webvision, tmp_path / only, only=only, class_ids=(1, 4))
    build_small(webvision, tmp_path / "whole", class_ids=(1, 4))
    manifest = join(tmp_path / "out", tmp_path / "google", tmp_path / "flickr")
    whole = Manifest.load(tmp_path / "whole")
    assert (manifest.rejects, manifest.rows) == (whole.rejects, whole.rows)
    assert [c.original_id for c in manifest.classes] == [1, 4]
    tables = [pq.read_table(tmp_path / d / "rejects.parquet").sort_by("path") for d in ("out", "whole")]
    assert tables[0].column("path") == tables[1].column("path")
    assert verify(tmp_path / "out") == []


def test_a_key_in_two_sets_is_named(halves: list[Path], reference: Path, tmp_path: Path, ingest: Ingest) -> None:
    done = ingest("merge", tmp_path / "out", halves[0], reference)
    assert done.returncode == 1
    with Dataset.open(halves[0]) as dataset:
        keys = dataset.samples_table(["key"]).column("key").to_pylist()
    assert f"{len(keys):,} keys stand in more than one of the sets: " in done.stderr
    assert any(key in done.stderr for key in keys)
    assert not (tmp_path / "out").exists()


def test_classes_must_agree_but_one_set_may_have_more(
    halves: list[Path], tmp_path: Path, webvision: Path, encode: Draw, build_small: Build
) -> None:
    for name, classes in (("a", ["cat", "dog"]), ("b", ["cat", "dog", "eel"]), ("c", ["cat", "cow"])):
        for number, label in enumerate(classes):
            path = tmp_path / name / label / f"{name}{number}.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(encode(hash((name, label)) % 1000))
        build_small(tmp_path / name, tmp_path / f"s{name}")
    manifest = join(tmp_path / "ab", tmp_path / "sa", tmp_path / "sb")
    assert [(c.name, c.samples) for c in manifest.classes] == [("cat", 2), ("dog", 2), ("eel", 1)]
    with pytest.raises(
        MergeError, match=r"class 1 is 'dog', in .*sc it is 'cow'|class 1 is 'cow', in .*sa it is 'dog'"
    ):
        join(tmp_path / "ac", tmp_path / "sa", tmp_path / "sc")
    build_small(webvision, tmp_path / "val", split="val", classes_from=halves[0])
    with pytest.raises(MergeError, match=r"is a val set, .* a train set"):
        join(tmp_path / "tv", halves[0], tmp_path / "val")
    assert not (tmp_path / "ac").exists()


def test_classes_in_different_bands_are_still_balanced_exactly(
    draw_dataset: Callable[..., Path], tmp_path: Path, ingest: Ingest
) -> None:
    """Shards keep their bands: what a class gets does not suffer, with tens of samples here and hundreds there."""
    draw_dataset(tmp_path / "a", [300, 20, 40, 5], shard_samples=32, seed=1)
    b = draw_dataset(tmp_path / "b", [10, 200, 40, 60], shard_samples=32, seed=2)
    rename_keys(b)
    done = ingest("merge", tmp_path / "out", tmp_path / "a", b)
    assert done.returncode == 0, done.stderr
    assert "3 classes are in other bands in other sets" in done.stderr
    manifest = Manifest.load(tmp_path / "out")
    assert [c.band for c in manifest.classes] == [band_of(n) for n in (300, 20, 40, 5)]
    assert [c.samples for c in manifest.classes] == [310, 220, 80, 65]
    loader = Loader(tmp_path / "out", batch_size=16, size_px=8, balance=0.0, max_repeat=16)
    assert np.allclose(loader.expected_exposure(), manifest.samples / 4, rtol=0.02)


def rename_keys(shards: Path) -> None:
    """Give the table of drawn samples other keys; the tars keep theirs, which no reader minds."""
    table = pq.read_table(shards / "samples.parquet")
    keys = pa.array([f"other-{key}" for key in table.column("key").to_pylist()])
    pq.write_table(table.set_column(0, "key", keys), shards / "samples.parquet")
    replace(Manifest.load(shards), tables=table_checksums(shards)).save(shards)


def test_a_damaged_table_is_not_merged(draw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """It would get a sound checksum there."""
    one, two = draw_dataset(tmp_path / "a", [5, 5], seed=1), draw_dataset(tmp_path / "b", [5, 5], seed=2)
    table = pq.read_table(two / "samples.parquet")
    keys = pa.array([f"other-{key}" for key in table.column("key").to_pylist()])
    pq.write_table(table.set_column(0, "key", keys), two / "samples.parquet")
    with pytest.raises(CorruptDataError, match=r"b/samples.parquet: checksum differs"):
        join(tmp_path / "out", one, two)
    assert not (tmp_path / "out").exists()


class Killed(BaseException):
    """Stands for a kill at a certain call."""


def done_before(kill_at: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> bool:
    """Do `action`, killed before its n-th rename or link; whether it came to its end."""
    calls = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            nonlocal calls
            if calls == kill_at:
                raise Killed
            calls += 1
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "link"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except Killed:
            return False
    return True


def test_a_merge_killed_anywhere_ends_with_the_same_bytes(
    halves: list[Path], tmp_path: Path, folder_bytes: FolderBytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each step that gives a file its place."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    join(whole, *halves)
    expected = folder_bytes(whole)

    kill_at = 0
    while not done_before(kill_at, monkeypatch, lambda: join(out, *halves)):
        if not (out / "manifest.json").exists() and (out / ".merge").is_dir():
            with pytest.raises(UnfinishedBuildError, match="`wv-ingest merge` has not been finished"):
                Manifest.load(out)
        if kill_at == 9:
            with pytest.raises(OutputExistsError, match="holds an unfinished merge of other sets"):
                join(out, *halves[::-1])
        join(out, *halves)
        assert folder_bytes(out) == expected, f"killed before step {kill_at}"
        shutil.rmtree(out)
        kill_at += 3
    assert kill_at > 20
    assert join(out, *halves) == Manifest.load(whole), "once more: nothing to do"
    with pytest.raises(OutputExistsError, match="holds another data set"):
        join(out, *halves[::-1])


def test_a_merged_set_can_be_merged_and_appended_to(
    halves: list[Path], webvision: Path, tmp_path: Path, encode: Draw, build_small: Build
) -> None:
    merged = tmp_path / "merged"
    join(merged, *halves)
    raw = tmp_path / "raw"
    shutil.copytree(webvision, raw)
    with open(raw / "info" / "train_filelist_google.txt", "a") as file:
        for i in range(8):
            (raw / f"google/q0002/later{i}.jpg").write_bytes(encode(900 + i))
            file.write(f"google/q0002/later{i}.jpg 1\n")
    before = Manifest.load(merged)
    with Progress(io.StringIO()) as progress:
        append(merged, raw, AppendOptions(workers=1, max_reject_fraction=0.9), progress)
    after = Manifest.load(merged)
    assert verify(merged) == []
    assert after.samples == before.samples + 8
    assert len(after.earlier) == 2
    other, mixed = tmp_path / "other", tmp_path / "mixed"
    shutil.copytree(halves[0], other)
    replace(Manifest.load(other), codecs={"decoder": "Pillow 1.0"}).save(other)
    join(mixed, other, halves[1])
    with pytest.raises(BuildMismatchError, match=r"Pillow 1.0 \+ Pillow"), Progress(io.StringIO()) as progress:
        append(mixed, raw, AppendOptions(workers=1), progress)
