"""`verify --repair`: bytes come back as they were, or stay as they are; it never makes things worse."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wv_ingest.build import BuildResult
from wv_shards import Manifest

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]
Ingest = Callable[..., subprocess.CompletedProcess[str]]
StartIngest = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def shards(reference: Path, tmp_path: Path) -> Path:
    shutil.copytree(reference, tmp_path / "shards")
    return tmp_path / "shards"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_everything_but_the_tables_comes_back(
    shards: Path, reference: Path, webvision: Path, ingest: Ingest, folder_bytes: FolderBytes
) -> None:
    """A flipped bit, a short tar, a missing one, broken and missing .idx, a lost index, a foreign _info.json."""
    tars = sorted(shards.glob("*.tar"))
    flip(tars[0], 700)
    os.truncate(tars[1], 1000)
    tars[2].unlink()
    tars[3].with_suffix(".idx").unlink()
    tars[4].with_suffix(".idx").write_text("v1.2 1\n")
    (shards / "index.npy").unlink()
    (shards / "_info.json").write_text("{}")
    done = ingest("verify", shards, "--repair", webvision, "--workers", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    mended = {line.split()[1].rstrip(":") for line in done.stdout.splitlines() if line.startswith("mended")}
    names = {tars[0].name, tars[1].name, tars[2].name, tars[3].stem + ".idx", tars[4].stem + ".idx"}
    assert mended == names | {"index.npy", "_info.json"}
    assert done.stdout.splitlines()[-1].endswith("all as the manifest says")
    assert folder_bytes(shards) == folder_bytes(reference)


def test_what_needs_no_source_is_mended_without_one(
    shards: Path, reference: Path, ingest: Ingest, folder_bytes: FolderBytes
) -> None:
    tars = sorted(shards.glob("*.tar"))
    tars[0].with_suffix(".idx").unlink()
    (shards / "_info.json").unlink()
    flip(shards / "index.npy", 200)
    done = ingest("verify", shards, "--repair")
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder_bytes(shards) == folder_bytes(reference)
    flip(tars[1], 700)
    damaged = tars[1].read_bytes()
    done = ingest("verify", shards, "--repair")
    assert done.returncode == 1
    assert f"not mended: {tars[1].name}: needs the source" in done.stdout
    assert tars[1].read_bytes() == damaged
    assert not (shards / ".repair").exists()


@pytest.mark.parametrize("source", ["nowhere", "nowhere.tar"])
def test_a_source_that_is_not_there_is_refused_even_where_nothing_is_broken(
    shards: Path, tmp_path: Path, ingest: Ingest, source: str
) -> None:
    done = ingest("verify", shards, "--repair", tmp_path / source)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{source}: no such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_source_that_has_changed_mends_nothing_and_is_named(
    shards: Path, webvision: Path, tmp_path: Path, ingest: Ingest, encode: Draw
) -> None:
    """Of three shards one is as it was, in one a photo is another, in one a photo is gone, in one a row is."""
    raw = tmp_path / "raw"
    shutil.copytree(webvision, raw)
    paths = pq.read_table(shards / "samples.parquet", columns=["path"]).column("path").to_pylist()
    infos, start = [], 0
    for info in Manifest.load(shards).shards:
        infos.append((info.name, paths[start : start + info.samples]))
        start += info.samples
    (same, _), (other, changed), (gone, missing), (row, unlisted) = infos[:4]
    (raw / changed[3]).write_bytes(encode(4711))
    (raw / missing[2]).unlink()
    for file in (raw / "info").glob("train_filelist_*.txt"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith(unlisted[1])]
        file.write_text("\n".join(lines) + "\n")
    for name in (same, other, gone, row):
        flip(shards / f"{name}.tar", 700)
    damaged = {name: (shards / f"{name}.tar").read_bytes() for name in (other, gone, row)}
    done = ingest("verify", shards, "--repair", raw)
    assert done.returncode == 1, done.stderr
    assert f"mended: {same}.tar: packed again" in done.stdout
    assert (
        f"not mended: {other}.tar: the source has changed since the build: {changed[3]} is another file" in done.stdout
    )
    assert f"not mended: {gone}.tar: the source has changed since the build: {missing[2]} is now missing" in done.stdout
    assert f"not mended: {row}.tar: {unlisted[1]} is not in" in done.stdout
    assert {name: (shards / f"{name}.tar").read_bytes() for name in damaged} == damaged
    assert "Traceback" not in done.stderr


def test_tables_are_beyond_repair_and_it_is_said(shards: Path, webvision: Path, ingest: Ingest) -> None:
    (shards / "samples.parquet").write_bytes(b"nothing")
    (shards / "rejects.parquet").unlink()
    tar = next(shards.glob("*.tar"))
    flip(tar, 700)
    done = ingest("verify", shards, "--repair", webvision)
    assert done.returncode == 1
    for name in ("samples.parquet", "rejects.parquet"):
        assert f"not mended: {name}: can't be made again; restore it from a copy" in done.stdout
    assert f"not mended: {tar.name}: needs a sound samples.parquet" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_path_that_has_changed_in_the_table_is_found_and_goes_no_further(shards: Path, ingest: Ingest) -> None:
    """The same rows but for one path: no other file tells. What is made of the table would have a sound checksum."""
    table = pq.read_table(shards / "samples.parquet")
    paths = table.column("path").to_pylist()
    paths[5], paths[6] = paths[6], paths[5]
    column = table.schema.get_field_index("path")
    pq.write_table(table.set_column(column, "path", pa.array(paths)), shards / "samples.parquet")
    told = ingest("verify", shards, "--repair")
    assert told.returncode == 1
    assert "samples.parquet: checksum: checksum differs from the manifest's" in told.stdout
    assert "not mended: samples.parquet: can't be made again" in told.stdout
    for arguments in (("append", shards, shards.parent), ("duplicates", shards)):
        refused = ingest(*arguments)
        assert refused.returncode == 1
        assert "samples.parquet: checksum differs from the manifest's" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_lost_table_of_duplicates_is_named_with_the_command_that_makes_it(
    shards: Path, reference: Path, ingest: Ingest, folder_bytes: FolderBytes
) -> None:
    flip(shards / "duplicates.parquet", 8)
    told = ingest("verify", shards, "--repair")
    assert told.returncode == 1
    assert "not mended: duplicates.parquet: checksum differs" in told.stdout
    arguments = told.stdout.partition("`wv-ingest duplicates SHARDS ")[2].partition("`")[0].split()
    assert ingest("duplicates", shards, *arguments).returncode == 0
    assert folder_bytes(shards) == folder_bytes(reference)


def test_an_index_that_can_not_be_made_again_stays(shards: Path, ingest: Ingest) -> None:
    """The table of samples was changed too: the index from it is not the one that the manifest knows."""
    table = pq.read_table(shards / "samples.parquet")
    widths = pa.array([999, *table.column("width").to_pylist()[1:]], pa.int32())
    column = table.schema.get_field_index("width")
    pq.write_table(table.set_column(column, table.schema.field(column), widths), shards / "samples.parquet")
    flip(shards / "index.npy", 200)
    before = (shards / "index.npy").read_bytes()
    done = ingest("verify", shards, "--repair")
    assert done.returncode == 1
    assert "not mended: index.npy: tars and samples.parquet give another one" in done.stdout
    assert (shards / "index.npy").read_bytes() == before


def test_tars_of_a_source_mend_shards_too(
    webvision: Path, shards: Path, reference: Path, tmp_path: Path, ingest: Ingest, folder_bytes: FolderBytes
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for name in ("google", "flickr", "info"):
        with tarfile.open(tars / f"{name}.tar", "w") as tar:
            tar.add(webvision / name, arcname=name)
    for tar_path in list(shards.glob("*.tar"))[:3]:
        tar_path.unlink()
    done = ingest("verify", shards, "--repair", tars)
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder_bytes(shards) == folder_bytes(reference)


def test_lists_with_other_columns_and_other_codecs(
    tmp_path: Path, encode: Draw, write_list: Callable[..., Path], build_small: Build, ingest: Ingest
) -> None:
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(encode(i))
    rows = [(f"{i}.jpg", f"class {i % 2}") for i in range(12)]
    source = write_list(tmp_path / "list.csv", rows, header=("file", "class"))
    shards = tmp_path / "shards"
    build_small(source, shards, path_column="file", label_column="class")
    tar = next(shards.glob("*.tar"))
    sound = tar.read_bytes()
    tar.unlink()
    named = ("--path-column", "file", "--label-column", "class")
    done = ingest("verify", shards, "--repair", source)
    assert done.returncode == 1
    assert "no column 'path'" in done.stderr
    manifest = (shards / "manifest.json").read_text()
    (shards / "manifest.json").write_text(manifest.replace("libjpeg-turbo", "libjpeg-slow"))
    done = ingest("verify", shards, "--repair", source, *named)
    assert done.returncode == 1
    assert "would become other bytes: install those versions" in done.stderr
    assert not tar.exists()
    (shards / "manifest.json").write_text(manifest)
    done = ingest("verify", shards, "--repair", source, *named)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tar.read_bytes() == sound


def test_a_killed_repair_loses_nothing_and_goes_on(
    shards: Path,
    reference: Path,
    webvision: Path,
    start_ingest: StartIngest,
    ingest: Ingest,
    folder_bytes: FolderBytes,
) -> None:
    tars = sorted(shards.glob("*.tar"))
    for tar in tars:
        flip(tar, 700)
    damaged = {tar.name: tar.read_bytes() for tar in tars}
    with start_ingest("verify", shards, "--repair", webvision, "--workers", 1) as process:
        while process.poll() is None:
            if list((shards / ".repair").glob("*.outcomes")):
                process.kill()
                process.wait()
    for tar in tars:
        assert tar.read_bytes() in (damaged[tar.name], (reference / tar.name).read_bytes())
    done = ingest("verify", shards, "--repair", webvision)
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder_bytes(shards) == folder_bytes(reference)


def test_real_photos_are_packed_again_bit_for_bit(test_data: Path, tmp_path: Path, ingest: Ingest) -> None:
    raw = tmp_path / "raw"
    for photo in sorted((test_data / "photos").glob("*.JPEG"))[:40]:
        folder = raw / photo.name.split("_")[0][-1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    assert ingest("build-shards", raw, tmp_path / "shards", "--size", 128).returncode == 0
    tar = max((tmp_path / "shards").glob("*.tar"), key=lambda path: path.stat().st_size)
    sound = tar.read_bytes()
    tar.write_bytes(sound[: len(sound) // 2])
    done = ingest("verify", tmp_path / "shards", "--repair", raw)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tar.read_bytes() == sound
