"""WebDataset tars as a source: every sample of every tar has one outcome, however the tar was made or fetched."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wv_ingest.build import BuildResult
from wv_ingest.errors import SourceError
from wv_ingest.sources import detect
from wv_ingest.webdataset_urls import is_spec, tar_urls
from wv_shards import Dataset, Manifest, checksum

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if tar_format == tarfile.PAX_FORMAT else 1  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(data))
    return path


def plain(encode: Draw, count: int, first: int = 0, classes: int = 2) -> list[tuple[str, bytes]]:
    members = []
    for i in range(first, first + count):
        members += [(f"s{i:04d}.cls", b"%d" % (i % classes)), (f"s{i:04d}.jpg", encode(i))]
    return members


def rows_of(out: Path, table: str) -> list[dict[str, object]]:
    return pq.read_table(out / f"{table}.parquet").to_pylist()


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_sample_is_packed_once_or_rejected_once(
    tmp_path: Path, encode: Draw, build_small: Build, tar_format: int
) -> None:
    """Law 1 on the oddities of real tars: order, further members, folders, dots, long names, repeated keys."""
    long_name = "d" * (95 if tar_format == tarfile.USTAR_FORMAT else 180)
    members = [
        ("README", b"no sample"),
        ("__meta__/info.json", b"{}"),
        ("a/.hidden.jpg", b"no sample"),
        ("./lead.cls", b" 1\n"),
        ("./lead.jpg", encode(1)),
        ("a.b/c/x.npy", b"further"),
        ("a.b/c/x.JPG", encode(2)),
        ("a.b/c/x.cls", b"0"),
        ("two.png", encode(3, file_format="PNG")),
        ("two.jpg", encode(4)),
        ("two.cls", b"1"),
        (f"{long_name}.jpg", encode(5)),
        (f"{long_name}.cls", b"0"),
        ("json.json", json.dumps({"label": 1}).encode()),
        ("json.webp", encode(6, file_format="WEBP")),
        ("again.jpg", encode(7)),
        ("again.cls", b"0"),
        ("broken.jpg", b"no image"),
        ("broken.cls", b"0"),
        ("noimage.cls", b"1"),
        ("noimage.txt", b"a caption"),
        ("nolabel.jpg", encode(8)),
        ("badlabel.jpg", encode(9)),
        ("badlabel.cls", b"tench"),
        ("float.jpg", encode(10)),
        ("float.json", b'{"label": 1.5}'),
        ("minus.jpg", encode(11)),
        ("minus.cls", b"-1"),
        ("again.jpg", encode(12)),  # the same name a second time: a row that is repeated
        ("again.cls", b"1"),
    ]
    write_tar(tmp_path / "raw" / "x.tar", members, tar_format)
    write_tar(tmp_path / "raw" / "y.tar", [("again.jpg", encode(13)), ("again.cls", b"1")], tar_format)
    result = build_small(tmp_path / "raw", tmp_path / "out", max_reject_fraction=1.0)
    found = {str(row["path"]): row["label"] for row in rows_of(tmp_path / "out", "samples")}
    assert found == {
        "x.tar/./lead.jpg": 1,
        "x.tar/a.b/c/x.JPG": 0,
        "x.tar/two.jpg": 1,
        f"x.tar/{long_name}.jpg": 0,
        "x.tar/json.webp": 1,
        "x.tar/again.jpg": 0,
        "y.tar/again.jpg": 1,
    }
    rejects = {
        (row["path"], row["label"], row["reason"], row["detail"]) for row in rows_of(tmp_path / "out", "rejects")
    }
    assert rejects == {
        ("x.tar/broken.jpg", 0, "not-an-image", ""),
        ("x.tar/noimage", 1, "no-image", ""),
        ("x.tar/nolabel.jpg", -1, "no-label", ""),
        ("x.tar/badlabel.jpg", -1, "bad-label", "cls"),
        ("x.tar/float.jpg", -1, "bad-label", "json-float"),
        ("x.tar/minus.jpg", -1, "bad-label", "range"),
        ("x.tar/again.jpg", 1, "repeated-row", "other-label"),
    }
    manifest = result.manifest
    assert manifest.rows == 14
    assert manifest.samples + sum(manifest.rejects.values()) == manifest.rows
    assert [c.rows for c in manifest.classes] == [4, 6]
    assert manifest.unlisted is not None
    assert manifest.unlisted.files == 3
    assert "x.tar/README" in manifest.unlisted.first


def test_samples_without_a_label_count_for_the_limit_of_rejects(
    tmp_path: Path, encode: Draw, ingest: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    write_tar(tmp_path / "x.tar", [*plain(encode, 6), *((f"n{i}.jpg", encode(i)) for i in range(4))])
    done = ingest("build-shards", tmp_path / "x.tar", tmp_path / "out", "--workers", 1)
    assert done.returncode == 1
    assert "4 of 10 rows rejected" in done.stderr


@pytest.fixture(scope="module")
def photos_tars(tmp_path_factory: pytest.TempPathFactory, test_data: Path) -> Path:
    """Real photos, written by the `webdataset` package's own writer: PAX headers, the label before the image."""
    wds = pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("wds")
    with wds.ShardWriter(f"{folder}/t-%06d.tar", maxcount=10, format="PAX_FORMAT", verbose=0) as writer:
        for i, photo in enumerate(sorted((test_data / "photos").glob("*.JPEG"))[:30]):
            meta = {"meta": {"name": "abc"[i % 3]}}
            writer.write({"__key__": f"k/s{i:04d}", "jpg": photo.read_bytes(), "cls": i % 3, "json": meta})
    return folder


def test_patterns_and_pipes_give_the_samples_of_the_folder(
    photos_tars: Path,
    tmp_path: Path,
    ingest: Callable[..., "subprocess.CompletedProcess[str]"],
    folder_bytes: FolderBytes,
) -> None:
    options = ("--size", 0, "--workers", 1, "--no-report")
    specs = {
        "folder": str(photos_tars),
        "braces": f"{photos_tars}/t-{{000000..000002}}.tar",
        "pipes": f"{photos_tars}/t-000000.tar::pipe:cat {photos_tars}/t-00000{{1..2}}.tar",
    }
    for name, spec in specs.items():
        done = ingest("build-shards", spec, tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    folder = folder_bytes(tmp_path / "folder")
    assert folder_bytes(tmp_path / "braces") == folder
    pipes = folder_bytes(tmp_path / "pipes")
    assert {name: data for name, data in pipes.items() if name != "manifest.json"} == {
        name: data for name, data in folder.items() if name != "manifest.json"
    }, "but for the fingerprint of its streams in the manifest it is the same"
    again = ingest("build-shards", specs["pipes"], tmp_path / "pipes", *options)
    assert "already complete" in again.stdout
    assert "spooling" not in again.stderr
    other = ingest("build-shards", specs["pipes"].replace("1..2", "1..1"), tmp_path / "pipes", *options)
    assert other.returncode == 1
    assert "source_streams" in other.stderr


def test_our_own_shards_packed_again_keep_labels_names_and_coded_data(
    webvision: Path, tmp_path: Path, build_small: Build
) -> None:
    build_small(webvision, tmp_path / "first", size_px=0)
    result = build_small(tmp_path / "first", tmp_path / "second", size_px=0, seed=7)

    def facts(out: Path) -> set[tuple[object, ...]]:
        with Dataset.open(out) as dataset:
            table = dataset.samples_table().to_pylist()
            return {(checksum(dataset.read(i)), r["label"], r["source"], r["query"]) for i, r in enumerate(table)}

    assert facts(tmp_path / "first") == facts(tmp_path / "second")
    first = Manifest.load(tmp_path / "first")
    assert [c.name for c in result.manifest.classes] == [c.name for c in first.classes]
    assert result.manifest.samples == first.samples


def test_labels_of_a_json_are_names_or_numbers(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    members = []
    for i, label in enumerate(["tench", "cock", "tench", 5]):
        members += [(f"s{i}.jpg", encode(i)), (f"s{i}.json", json.dumps({"meta": {"class": label}}).encode())]
    tar = write_tar(tmp_path / "x.tar", members)
    named = build_small(str(tar), tmp_path / "named", label_key="meta.class").manifest
    assert [(c.name, c.samples) for c in named.classes] == [("5", 1), ("cock", 1), ("tench", 2)]
    (tmp_path / "names.txt").write_text("cock\ntench\n")
    given = build_small(
        str(tar), tmp_path / "given", label_key="meta.class", class_names=tmp_path / "names.txt"
    ).manifest
    assert [(c.name, c.samples) for c in given.classes] == [("cock", 1), ("tench", 2)]
    assert given.rejects == {"bad-label": 1}
    with pytest.raises(SourceError, match="none of its 4 samples has a label"):
        build_small(str(tar), tmp_path / "none")


def test_a_choice_of_classes_keeps_the_account_of_samples_without_label(
    tmp_path: Path, encode: Draw, build_small: Build
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("n.jpg", encode(99)), *plain(encode, 9, classes=3)])
    manifest = build_small(str(tar), tmp_path / "out", class_ids=(2,)).manifest
    assert (manifest.rows, manifest.samples) == (10, 3)
    assert manifest.rejects == {"filtered": 6, "no-label": 1}
    assert rows_of(tmp_path / "out", "rejects")[0]["reason"] == "no-label", "rejects stand in the source's order"


def test_tars_of_one_name_in_two_folders_do_not_collide(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    for folder, first in (("a", 0), ("b", 50)):
        write_tar(tmp_path / folder / "x.tar", plain(encode, 3, first=first))
    spec = f"{tmp_path}/a/x.tar::{tmp_path}/b/x.tar::{tmp_path}/a/../a/x.tar"
    assert [(url.name, url.times) for url in tar_urls(spec)] == [("a/x.tar", 2), ("b/x.tar", 1)]
    assert build_small(spec, tmp_path / "out").manifest.samples == 6


def test_a_truncated_tar_and_a_pipe_that_fails_give_what_they_have(
    tmp_path: Path, encode: Draw, ingest: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    tar = write_tar(tmp_path / "x.tar", plain(encode, 6))
    with tarfile.open(tar) as archive:
        cut = archive.getmember("s0004.jpg").offset_data + 5
    spec = f"pipe:head -c {cut} {tar}; exit 3"
    done = ingest("build-shards", spec, tmp_path / "out", "--workers", 1, "--max-reject-fraction", 0.5, "--no-report")
    assert done.returncode == 0, done.stderr
    assert "exit code 3" in done.stderr
    assert "ends at byte" in done.stderr
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.samples, manifest.rejects) == (4, {"no-image": 1})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pipe:exit 4", "exit code 4"),
        ("pipe:true", "gave no bytes"),
        ("pipe:echo no tar at all", "not a tar"),
        ("nowhere-{0..1}.tar", "nowhere-0.tar: no such file"),
        ("x{.tar", "not a list of tars"),
        ("odd://host/x.tar", "no gopen handler"),
        ("pipe:gzip -c {tar}", "gzip-compressed"),
    ],
)
def test_what_can_not_be_opened_is_one_line_and_leaves_nothing(
    tmp_path: Path, encode: Draw, ingest: Callable[..., "subprocess.CompletedProcess[str]"], spec: str, message: str
) -> None:
    tar = write_tar(tmp_path / "x.tar", plain(encode, 2))
    done = ingest("build-shards", spec.replace("{tar}", str(tar)), tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_build_killed_while_it_spools_goes_on(
    tmp_path: Path,
    encode: Draw,
    build_small: Build,
    build_command: Callable[..., list[str]],
    folder_bytes: FolderBytes,
) -> None:
    """The first stream is whole, the second hangs: kill -9, and again. The first would fail now."""
    first, second = (write_tar(tmp_path / f"{n}.tar", plain(encode, 8, first=8 * n)) for n in (1, 2))
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    spec = f"pipe:cat {first}::pipe:head -c 2000 {second}; cat {gate}; tail -c +2001 {second}"
    out = tmp_path / "out"
    with subprocess.Popen(
        build_command(spec, out, workers=1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as run:
        deadline = time.monotonic() + 60
        while not list((out / ".build" / "spool").glob("*.tmp")) or not list((out / ".build" / "spool").glob("*.tar")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        run.kill()
    gate_writer = os.open(gate, os.O_RDWR | os.O_NONBLOCK)  # ends the orphaned command
    os.close(gate_writer)
    first.rename(tmp_path / "gone.tar")
    gate.unlink()
    gate.write_bytes(b"")
    build_small(spec, out)
    (tmp_path / "gone.tar").rename(first)
    build_small(spec, tmp_path / "whole")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
    assert not (out / ".build").exists()


def test_a_folder_of_webvision_tars_is_not_taken_for_webdataset(tmp_path: Path, encode: Draw) -> None:
    write_tar(tmp_path / "webvision_train_00.tar", [("google/q00001/a.jpg", encode(1))])
    with pytest.raises(SourceError, match=r"info\.tar"):
        detect(tmp_path)
    write_tar(tmp_path / "info.tar", [("info/train_filelist_google.txt", b"google/q00001/a.jpg 0\n")])
    assert detect(tmp_path) == "webvision"
    write_tar(tmp_path / "wds" / "x.tar", plain(encode, 1))
    assert detect(tmp_path / "wds") == "webdataset"
    assert not is_spec(str(tmp_path / "wds"))


def test_without_the_package_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build_small: Build, encode: Draw
) -> None:
    write_tar(tmp_path / "x.tar", plain(encode, 2))
    for name in [name for name in sys.modules if name.split(".")[0] == "webdataset"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(SourceError, match=r"pip install 'wv-toolkit\[webdataset\]'"):
        build_small(f"pipe:cat {tmp_path}/x.tar", tmp_path / "out")
    assert build_small(str(tmp_path / "x.tar"), tmp_path / "out").manifest.samples == 2, "a file here needs no package"


def test_more_tars_than_may_be_open(
    tmp_path: Path, encode: Draw, build_small: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wv_ingest.source_files._MOST_OPEN", 3)
    from wv_ingest.source_files import SourceFiles

    tars = tuple(write_tar(tmp_path / f"{i}.tar", [("a.jpg", b"%d" % i)]) for i in range(8))
    before = len(os.listdir("/proc/self/fd"))
    files = SourceFiles(tmp_path, tmp_path, tars)
    order = np.random.default_rng(0).integers(0, 8, 50).tolist()
    assert [files.member((tar, 512, 1)) for tar in order] == [b"%d" % tar for tar in order]
    assert len(os.listdir("/proc/self/fd")) <= before + 3
