"""Laws 1 and 2 for WebVision as it is downloaded: trees, tars read in place, and mixtures, with all their glitches."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wv_ingest.build import BuildResult
from wv_ingest.errors import SourceError
from wv_ingest.keys import key_of
from wv_ingest.metadata import Metadata, record_spans
from wv_ingest.sources import SourceOptions, read_source
from wv_ingest.tar_walk import TarWalk
from wv_ingest.tars import source_path
from wv_shards import Manifest, verify

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]

LONG = "x" * 180 + ".jpg"
"""Needs a GNU or PAX name in a tar."""


def glitchy(root: Path, encode: Draw, digits: int) -> Path:
    """A tree of WebVision with every glitch that the real one has; 3 classes, 6 queries, 2 sources."""
    queries = [f"q{number:0{digits}d}" for number in range(1, 7)]
    lists: dict[str, list[str]] = {"google": [], "flickr": []}
    metas: dict[str, list[str]] = {"google": [], "flickr": []}
    seed = 0
    for source, lines in lists.items():
        for number, query in enumerate(queries):
            records: list[object] = []
            names = ["same.jpg", "-dash.jpg", "--two-.dots.jpg", f"{source}{number}.png", "a.jpg", "a.png", LONG]
            for name in names:
                path = f"{source}/{query}/{name}"
                seed += 1
                data = encode(seed)
                if name == "a.jpg":
                    data = encode(seed, file_format="PNG")  # the name lies
                elif name == "a.png" and number == 0:
                    data = (b"", b"<html>not found</html>")[source == "google"]
                elif name == "-dash.jpg" and number == 1:
                    data = data[:-30]
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(data)
                records.append({"id": seed, "title": f"Tüte {seed}", "tags": ["a", "b"], "rank": seed, "url": None})
                lines.append(f"{path} {number // 2}")
                metas[source].append(f"{source}/{query}.json {len(records)}")
            text = json.dumps(records, ensure_ascii=False).encode()
            if number == 2:
                text = text[: len(text) // 2]  # broken off
            if number == 3:
                text = b"<html>"
            if number != 4:
                (root / "info" / source).mkdir(parents=True, exist_ok=True)
                (root / "info" / source / f"{query}.json").write_bytes(text)
        lines += [f"{source}/{queries[0]}/gone.jpg 0", lines[0], lines[1][:-1] + "2"]  # missing; repeated; other class
        metas[source] += [f"{source}/{queries[0]}.json 99", "nonsense", metas[source][1]]
    (root / "google" / queries[0] / "stray.jpg").write_bytes(encode(9999))
    (root / "flickr" / queries[1] / "Thumbs.db").write_bytes(b"?")
    for source in lists:
        (root / "info" / f"train_filelist_{source}.txt").write_text("\n".join(lists[source]) + "\n")
        (root / "info" / f"train_meta_list_{source}.txt").write_text("\n".join(metas[source]) + "\n")
    (root / "info" / "synsets.txt").write_text("n1 tench, Tinca\nn2 shark\nn3 ray\n")
    flat = "val_images_256" if digits == 4 else "val_images_resized"
    (root / flat).mkdir()
    for i in range(6):
        (root / flat / f"val{i:06d}.jpg").write_bytes(encode(5000 + i))
    place = root / "info" if digits == 4 else root
    (place / "val_filelist.txt").write_text("".join(f"val{i:06d}.jpg {i % 3}\n" for i in range(6)))
    return root


def as_tars(tree: Path, root: Path, digits: int, tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """The same files as the archives that are downloaded: 1.0 by source, 2.0 in numbered parts."""
    root.mkdir()
    flat = "val_images_256" if digits == 4 else "val_images_resized"
    with tarfile.open(root / "info.tar", "w", format=tar_format) as tar:
        tar.add(tree / "info", "info")
    with tarfile.open(root / f"{flat}.tar", "w", format=tar_format) as tar:
        tar.add(tree / flat, flat)
    if digits == 4:
        for source in ("google", "flickr"):
            with tarfile.open(root / f"{source}_resized_256.tar", "w", format=tar_format) as tar:
                tar.add(tree / source, source)
        return root
    shutil.copy(tree / "val_filelist.txt", root)
    files = sorted(path for source in ("google", "flickr") for path in (tree / source).rglob("*") if path.is_file())
    for part in range(4):
        with tarfile.open(root / f"webvision_train_{part:02d}.tar", "w", format=tar_format) as tar:
            for file in files[part::4]:
                tar.add(file, f"./{file.relative_to(tree)}")
    return root


@pytest.fixture(scope="module", params=[4, 5], ids=["1.0", "2.0"])
def digits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def tree(digits: int, tmp_path_factory: pytest.TempPathFactory, encode: Draw) -> Path:
    return glitchy(tmp_path_factory.mktemp("tree") / "raw", encode, digits)


@pytest.fixture(scope="module")
def archives(digits: int, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_tars(tree, tmp_path_factory.mktemp("tars") / "raw", digits)


def outcomes(out: Path) -> Counter[tuple[str, int]]:
    rows = [*pq.read_table(out / "samples.parquet").to_pylist(), *pq.read_table(out / "rejects.parquet").to_pylist()]
    return Counter((row["path"], row["label"]) for row in rows)


def listed(root: Path) -> Counter[tuple[str, int]]:
    rows = read_source(root, SourceOptions()).rows.to_pylist()
    return Counter((row["path"].decode(), row["label"]) for row in rows)


def test_every_row_of_a_tree_with_glitches_has_one_outcome(tree: Path, tmp_path: Path, build_small: Build) -> None:
    manifest = build_small(tree, tmp_path / "out").manifest
    assert outcomes(tmp_path / "out") == listed(tree)
    assert manifest.rows == 2 * (42 + 3)
    assert manifest.rejects == {"empty": 1, "missing": 2, "not-an-image": 1, "repeated-row": 4, "truncated": 2}
    assert manifest.samples == 90 - 10
    assert manifest.unlisted is not None
    assert manifest.unlisted.files == 2
    assert [Path(name).name for name in manifest.unlisted.first] == ["Thumbs.db", "stray.jpg"]
    assert {name: (o.rows, o.samples) for name, o in manifest.sources.items()} == {
        "flickr": (45, 40),
        "google": (45, 40),
    }
    assert not verify(tmp_path / "out")


def test_tars_read_in_place_give_the_bytes_of_the_tree(
    tree: Path, archives: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes
) -> None:
    before = sorted(archives.iterdir())
    build_small(tree, tmp_path / "tree")
    build_small(archives, tmp_path / "tars", workers=2)
    assert folder_bytes(tmp_path / "tars") == folder_bytes(tmp_path / "tree")
    assert sorted(archives.iterdir()) == before
    build_small(tree, tmp_path / "tree-val", split="val", classes_from=tmp_path / "tree")
    build_small(archives, tmp_path / "tars-val", split="val", classes_from=tmp_path / "tars")
    assert folder_bytes(tmp_path / "tars-val") == folder_bytes(tmp_path / "tree-val")
    assert Manifest.load(tmp_path / "tars-val").samples == 6


@pytest.mark.parametrize("sign", ["members-*.npy", "plan.json", "*.outcomes"])
def test_a_build_from_tars_that_was_killed_ends_with_the_same_bytes(
    archives: Path,
    tmp_path: Path,
    build_small: Build,
    folder_bytes: FolderBytes,
    start_ingest: Callable[..., subprocess.Popen[str]],
    sign: str,
) -> None:
    """Killed as soon as the sign is there: while indexing, before the first shard, between shards."""
    out = tmp_path / "killed"
    arguments = ("--size", 16, "--workers", 1, "--max-reject-fraction", 0.5)
    with start_ingest("build-shards", archives, out, *arguments) as process:
        deadline = time.monotonic() + 60
        while not any((out / ".build").glob(sign)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.communicate()
    build_small(archives, out)
    build_small(archives, tmp_path / "whole")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_some_as_tars_and_some_as_folders_give_the_same_bytes(
    tree: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes, digits: int
) -> None:
    mixed = as_tars(tree, tmp_path / "mixed", digits)
    shutil.copytree(tree / "info", mixed / "info")
    (mixed / "info.tar").unlink()
    if digits == 4:
        (mixed / "flickr_resized_256.tar").unlink()
        shutil.copytree(tree / "flickr", mixed / "flickr")
    else:
        with tarfile.open(mixed / "webvision_train_02.tar") as tar:
            tar.extractall(mixed, filter="data")
        (mixed / "webvision_train_02.tar").unlink()
    build_small(tree, tmp_path / "a")
    build_small(mixed, tmp_path / "b")
    assert folder_bytes(tmp_path / "b") == folder_bytes(tmp_path / "a")


def test_a_truncated_tar_gives_what_it_has_and_the_rest_is_missing(
    tree: Path, digits: int, tmp_path: Path, build_small: Build
) -> None:
    root = as_tars(tree, tmp_path / "raw", digits)
    cut = root / ("google_resized_256.tar" if digits == 4 else "webvision_train_01.tar")
    whole = build_small(root, tmp_path / "whole").manifest
    os.truncate(cut, cut.stat().st_size // 2)
    manifest = build_small(root, tmp_path / "cut").manifest
    assert outcomes(tmp_path / "cut") == listed(tree)
    assert manifest.rejects["missing"] > whole.rejects["missing"] + 5
    assert manifest.samples > 40
    assert not verify(tmp_path / "cut")
    packed = set(pq.read_table(tmp_path / "cut" / "samples.parquet").column("path").to_pylist())
    assert packed < set(pq.read_table(tmp_path / "whole" / "samples.parquet").column("path").to_pylist())


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_walk_finds_what_tarfile_finds(tmp_path: Path, tar_format: int) -> None:
    """Names of all lengths, links, folders, odd members, base-256 sizes."""
    names = ["a", "d/" + "n" * 90, "d/" * 60 + "deep", "ü/写.jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["l" * 300, "p/" * 200 + "x"]
    with tarfile.open(tmp_path / "x.tar", "w", format=tar_format, encoding="utf-8") as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = i * 300
            info.mtime = 1.5 if tar_format == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
        for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "sym"), (tarfile.FIFOTYPE, "pipe")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info)
        link = tarfile.TarInfo("hard")
        link.type, link.linkname = tarfile.LNKTYPE, names[1]
        tar.addfile(link)
    with open(tmp_path / "x.tar", "rb") as file:
        walk = TarWalk(file.fileno(), os.fstat(file.fileno()).st_size)
        found = list(walk.members())
        for member in found:
            assert next(walk.members(member.header)) == member
    with tarfile.open(tmp_path / "x.tar", encoding="utf-8") as tar:
        expected = [(m.name.encode(), m.offset_data, m.size) for m in tar if m.isreg()]
    assert [(m.name, m.offset, m.size) for m in found if m.link is None] == expected
    assert [(m.name, m.link) for m in found if m.link is not None] == [(b"hard", names[1].encode())]
    assert (walk.damage, walk.odd) == ("", 0)


def test_a_damaged_header_ends_the_walk_with_its_place(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(5):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = 600
            tar.addfile(info, io.BytesIO(bytes(600)))
    with open(tmp_path / "x.tar", "r+b") as file:
        file.seek(3 * 1536 + 100)
        file.write(b"\xff" * 30)
        file.flush()
        walk = TarWalk(file.fileno(), os.fstat(file.fileno()).st_size)
        assert [member.name for member in walk.members()] == [b"0.jpg", b"1.jpg", b"2.jpg"]
    assert walk.damage == f"no header of a member at byte {3 * 1536}"


def test_records_of_any_text_are_stored_as_text(tmp_path: Path) -> None:
    """Half a surrogate pair, a byte that is not UTF-8, numbers, control characters."""
    data = b'\xef\xbb\xbf[{"title": "\\ud83d x", "url": "\xff", "rank": 3, "tags": {"a": true}, "site": "a\nb"}, 7]'

    def fetch(path: bytes, offset: int, size: int) -> bytes | None:
        return data[offset : offset + size] if path == b"google/q0001.json" else None

    metadata = Metadata(tmp_path, fetch)
    record, gap = metadata.record(b"google/q0001.json", 1)
    assert gap == ""
    assert (record["title"], record["url"], record["rank"]) == ("\\ud83d x", "\ufffd", "3")
    assert (record["tags"], record["site"], record["id"]) == ('{"a": true}', "a\nb", None)
    assert [metadata.record(b"google/q0001.json", n) for n in (0, 2, 3)] == [({}, "no-record")] * 3
    assert metadata.record(b"", 1) == ({}, "no-list")
    assert Metadata(tmp_path, lambda *_: None).record(b"google/q0001.json", 1) == ({}, "no-record")


def test_sparse_members_and_hard_links_of_gnu_tar(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    """What stands before and after a sparse member is read; a hard link is its target."""
    root = tmp_path / "raw"
    folder = tmp_path / "content" / "google" / "q0001"
    folder.mkdir(parents=True)
    (root / "info").mkdir(parents=True)
    for name in ("1.jpg", "3.jpg"):
        (folder / name).write_bytes(encode(ord(name[0])))
    os.truncate(folder / "3.jpg", 0)
    (folder / "2.jpg").write_bytes(b"")
    os.truncate(folder / "2.jpg", 1 << 20)
    with open(folder / "2.jpg", "r+b") as file:
        file.seek(1 << 19)
        file.write(b"data in the middle")
    (folder / "3.jpg").write_bytes(encode(3))
    os.link(folder / "1.jpg", folder / "4.jpg")
    names = [f"google/q0001/{i}.jpg" for i in range(1, 5)]
    (root / "info" / "train_filelist_google.txt").write_text("".join(f"{name} 0\n" for name in names))
    content = tmp_path / "content"
    for sparse_format in ("gnu", "posix"):
        tar = root / "google_resized_256.tar"
        command = ["tar", "-c", "-S", f"--format={sparse_format}", "-f", tar, "-C", content, *names]
        subprocess.run(command, check=True)
        out = tmp_path / sparse_format
        build_small(root, out, max_reject_fraction=1.0)
        assert pq.read_table(out / "rejects.parquet").column("path").to_pylist() == [names[1]]
        samples = pq.read_table(out / "samples.parquet", columns=["path", "content_hash"]).to_pydict()
        hashes = dict(zip(samples["path"], samples["content_hash"], strict=True))
        assert hashes[names[0]] == hashes[names[3]] != hashes[names[2]]


def test_the_last_of_two_members_of_one_name_counts(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    (tmp_path / "raw" / "info").mkdir(parents=True)
    (tmp_path / "raw" / "info" / "train_filelist_google.txt").write_text("google/q0001/a.jpg 0\n")
    with tarfile.open(tmp_path / "raw" / "google.tar", "w") as tar:
        for seed in (1, 2):
            info = tarfile.TarInfo("google/q0001/a.jpg")
            info.size = len(encode(seed, 24 + seed))
            tar.addfile(info, io.BytesIO(encode(seed, 24 + seed)))
    build_small(tmp_path / "raw", tmp_path / "out", size_px=0)
    assert pq.read_table(tmp_path / "out" / "samples.parquet").column("width").to_pylist() == [26]


@pytest.mark.parametrize(
    ("name", "tar", "flat", "expected"),
    [
        (b"google/q0001/a.jpg", "webvision_train_00.tar", b"", b"google/q0001/a.jpg"),
        (b"./google/q0001/a.jpg", "x.tar", b"", b"google/q0001/a.jpg"),
        (b"/data/wv/flickr/q0001/a.jpg", "x.tar", b"", b"flickr/q0001/a.jpg"),
        (b"q0001/a.jpg", "flickr_resized_256.tar", b"", b"flickr/q0001/a.jpg"),
        (b"google_resized_256/q0001/a.jpg", "google_resized_256.tar", b"", b"google/q0001/a.jpg"),
        (b"other/a.jpg", "x.tar", b"", b"other/a.jpg"),
        (b"val_images_256/val1.jpg", "val_images_256.tar", b"val_images_256", b"val_images_256/val1.jpg"),
        (b"val1.jpg", "val_images_256.tar", b"val_images_256", b"val_images_256/val1.jpg"),
    ],
)
def test_names_in_tars_become_paths_of_the_lists(name: bytes, tar: str, flat: bytes, expected: bytes) -> None:
    assert source_path(name, tar, flat) == expected


def test_metadata_stands_beside_its_sample_and_gaps_are_counted(
    tree: Path, archives: Path, tmp_path: Path, build_small: Build
) -> None:
    for source in (tree, archives):
        out = tmp_path / source.parent.name
        manifest = build_small(source, out).manifest
        rows = pq.read_table(out / "samples.parquet").to_pylist()
        with_records = [row for row in rows if row["id"] is not None]
        for row in with_records:
            assert row["title"] == f"Tüte {row['id']}"
            assert (row["tags"], row["rank"], row["url"], row["site"]) == ('["a", "b"]', row["id"], None, None)
        # Rows in the order of the lists were numbered from 1 when drawn: the record is the row's own.
        order = [r["path"].decode() for r in read_source(source, SourceOptions()).rows.to_pylist()]
        drawn = [path for i, path in enumerate(order) if i % 45 < 42]
        assert all(drawn[int(row["id"]) - 1] == row["path"] for row in with_records)
        assert manifest.metadata_gaps == {"bad-list": 14, "no-list": 14, "no-record": 8}
        assert len(rows) - len(with_records) == 36


def test_records_of_broken_lists_are_those_before_the_break() -> None:
    whole = [{"a": "ü]["}, 5, {"b": [1, {"c": "\\"}]}]
    data = json.dumps(whole, ensure_ascii=False).encode()
    spans = record_spans(data)
    assert spans is not None
    assert [json.loads(data[at : at + size]) for at, size in spans.tolist()] == whole
    for cut in range(1, len(data)):
        part = record_spans(data[:cut])
        assert part is not None
        assert part.tolist() == spans[: len(part)].tolist()
    for no_list in (b"", b"{}", b"<html>", b"\xff\xfe"):
        assert record_spans(no_list) is None


def test_a_dry_run_reads_tars_and_writes_nothing(
    archives: Path, tmp_path: Path, ingest: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    before = sorted(archives.rglob("*"))
    done = ingest("build-shards", archives, tmp_path / "out", "--dry-run", "--classes", "0,2", "--size", 16)
    assert done.returncode == 0, done.stderr
    shown = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in done.stdout.splitlines() if "│" in line}
    assert shown["rows"] == "90"
    assert shown["filtered rows"] == "28"
    assert shown["files that no list names"].startswith("2 ")
    assert not (tmp_path / "out").exists()
    assert sorted(archives.rglob("*")) == before


def test_an_archive_without_lists_says_what_is_missing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "info.tar", "w"):
        pass
    with pytest.raises(
        SourceError, match=r"no train_filelist_google.txt, _flickr.txt or _all.txt in info/ or info.tar"
    ):
        read_source(tmp_path, SourceOptions())


def test_an_info_tar_that_is_cut_off_is_refused(archives: Path, tree: Path, tmp_path: Path) -> None:
    tar = tmp_path / "info.tar"
    shutil.copy(archives / "info.tar", tar)
    with tarfile.open(tar) as whole:
        members = whole.getmembers()
    after_last = members[-1].offset_data + -(-members[-1].size // 512) * 512
    lists = [m for m in members if m.name.startswith("info/train_filelist")]
    for size in (1500, lists[1].offset, after_last):  # in the middle, between two lists, without the end mark alone
        shutil.copy(archives / "info.tar", tar)
        os.truncate(tar, size)
        for split in ("train", "val"):
            with pytest.raises(SourceError, match=r"info.tar: ends at byte \d+.*download info.tar again"):
                read_source(tmp_path, SourceOptions(split=split))
    for name in ("train_filelist_google.txt", "train_filelist_flickr.txt"):
        shutil.copy(tree / "info" / name, tmp_path)
    with pytest.raises(SourceError, match=r"download info\.tar again"):
        read_source(tmp_path, SourceOptions())  # the classes' names are missing
    shutil.copy(tree / "info" / "synsets.txt", tmp_path)
    source = read_source(tmp_path, SourceOptions())
    assert source.rows.select(["path", "label"]).equals(
        read_source(tree, SourceOptions()).rows.select(["path", "label"])
    )
    assert any("info.tar: ends at byte" in text for text in source.warnings)


def test_the_real_list_with_drawn_images_in_tars(
    test_data: Path, tmp_path: Path, encode: Draw, build_small: Build
) -> None:
    """Every fourth of the real list's 25,744 rows; a hundred images behind them, every fiftieth is missing."""
    root = tmp_path / "raw"
    (root / "info").mkdir(parents=True)
    lines = (test_data / "webvision1_train_classes_0-9.txt").read_bytes().splitlines(keepends=True)[::4]
    (root / "info" / "train_filelist_all.txt").write_bytes(b"".join(lines))
    images = [encode(seed, 12, 10) for seed in range(100)]
    paths = [line.rsplit(b" ", 1)[0].decode() for line in lines]
    tars = {name: tarfile.open(root / f"{name}_resized_256.tar", "w") for name in ("google", "flickr")}  # noqa: SIM115 - closed below
    for i, path in enumerate(paths):
        if i % 50 == 49:
            continue  # missing
        info = tarfile.TarInfo(path)
        info.size = len(images[i % 100])
        tars[path.split("/")[0]].addfile(info, io.BytesIO(images[i % 100]))
    for tar in tars.values():
        tar.close()
    started = time.monotonic()
    manifest = build_small(root, tmp_path / "out", size_px=0, workers=2).manifest
    print(f"{len(paths)} rows in {time.monotonic() - started:.1f} s")
    assert (manifest.rows, manifest.samples, manifest.rejects) == (6_436, 6_436 - 128, {"missing": 128})
    samples = pq.read_table(tmp_path / "out" / "samples.parquet", columns=["path", "key"]).to_pydict()
    assert len(set(samples["key"])) == len(samples["key"]) == manifest.samples
    assert samples["key"] == [key_of(path.encode()) for path in samples["path"]]
    assert outcomes(tmp_path / "out") == listed(root)
    assert sum(origin.rows for origin in manifest.sources.values()) == manifest.rows
    assert np.sum([c.samples for c in manifest.classes]) == manifest.samples
    assert manifest.unlisted is not None
    assert manifest.unlisted.files == 0
