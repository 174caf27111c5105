"""Tars as other programs read them, and files that are whole or absent."""

import contextlib
import gc
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from wv_shards import (
    INDEX_DTYPE,
    MAX_KEY_BYTES,
    Dataset,
    ShardWriter,
    atomic_file,
    checksum,
    file_checksum,
    open_index,
    temporary_files,
    write_atomic,
    write_index,
)
from wv_shards.errors import CorruptDataError

KEYS = st.text("abcXYZ019_-+ ", min_size=1, max_size=MAX_KEY_BYTES)
MEMBERS = st.lists(st.tuples(KEYS, st.binary(max_size=2000), st.integers(0, 5000)), min_size=1, max_size=8).filter(
    lambda members: len({key for key, _, _ in members}) == len(members)
)


def write(directory: Path, members: list[tuple[str, bytes, int]]) -> np.ndarray:
    with ShardWriter(directory, "b03-000000") as writer:
        for key, image, label in members:
            writer.add(key, image, label, {"key": key, "title": "é写"}, width=3, height=4)
        finished = writer.finish(3)
    assert finished.info.bytes == (directory / "b03-000000.tar").stat().st_size
    assert finished.info.checksum == file_checksum(directory / "b03-000000.tar")
    return finished.records


@settings(max_examples=40)
@given(members=MEMBERS)
def test_tarfile_gnu_tar_and_the_index_read_the_same_members(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, int]]
) -> None:
    directory = tmp_path_factory.mktemp("tar")
    records = write(directory, members)
    path = directory / "b03-000000.tar"
    assert path.stat().st_size % 10240 == 0
    expected = [f"{key}.{ext}" for key, _, _ in members for ext in ("jpg", "cls", "json")]
    with tarfile.open(path) as tar:
        assert tar.getnames() == expected
        infos = tar.getmembers()
        assert all(i.type == tarfile.REGTYPE and i.mtime == 0 and i.uid == 0 and not i.pax_headers for i in infos)
        for record, info, (_, image, label) in zip(records, infos[::3], members, strict=True):
            assert (record["offset"], record["size"], record["label"]) == (info.offset_data, info.size, label)
            assert record["checksum"] == checksum(image)
    listed = subprocess.run(["tar", "tf", path, "--quoting-style=literal"], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == expected
    raw = path.read_bytes()
    for record, (_, image, _) in zip(records, members, strict=True):
        assert raw[record["offset"] :][: record["size"]] == image


# The package leaves its tars to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_webdataset_package_reads_the_samples(small_dataset: Path) -> None:
    with Dataset.open(small_dataset) as dataset:
        names = [str(dataset.shard_path(s)) for s in range(len(dataset.manifest.shards))]
        samples = list(webdataset.WebDataset(names, shardshuffle=False, empty_check=False))
        gc.collect()
        table = dataset.samples_table(["key", "label"])
        assert [s["__key__"] for s in samples] == table.column("key").to_pylist()
        assert [int(s["cls"]) for s in samples] == table.column("label").to_pylist()
        assert all(s["jpg"] == dataset.read(i) for i, s in enumerate(samples))


def test_dali_index_has_a_line_per_sample_with_every_member(small_dataset: Path) -> None:
    with Dataset.open(small_dataset) as dataset:
        path = dataset.shard_path(len(dataset.manifest.shards) - 1)
    header, *lines = path.with_suffix(".idx").read_text().splitlines()
    with tarfile.open(path) as tar:
        members = {m.name: m for m in tar.getmembers()}
    assert header == f"v1.2 {len(members) // 3}"
    for line in lines:
        words = line.split(" ")
        assert words[::4] == ["jpg", "cls", "json"]
        for extension, offset, size, name in zip(*[iter(words)] * 4, strict=True):
            assert (members[name].offset_data, members[name].size) == (int(offset), int(size))
            assert name.endswith(f".{extension}")
    assert len(lines) == len(members) // 3


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "ü", "x" * 95, "a\nb"])
def test_keys_that_webdataset_would_split_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path, "s") as writer, pytest.raises(ValueError, match="printable ASCII"):
        writer.add(key, b"x", 0, {}, width=1, height=1)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def fail_midway() -> None:
        with ShardWriter(tmp_path, "s") as writer:
            writer.add("k", b"x", 0, {}, width=1, height=1)
            assert temporary_files(tmp_path) == [tmp_path / "s.tar.tmp"]
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_midway()
    with ShardWriter(tmp_path, "s") as writer, pytest.raises(ValueError, match="no sample"):
        writer.finish(None)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from wv_shards import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"new" * 100000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_is_whole_or_as_it_was_even_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_atomic(path, b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert killed.returncode == -9
    assert path.read_bytes() == b"old"
    with contextlib.suppress(OSError), atomic_file(path) as file:
        file.write(b"half")
        raise OSError("disk")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert sorted(os.listdir(tmp_path)) == ["manifest.json"]


def test_on_a_full_disk_the_error_names_the_file_and_nothing_of_it_is_left(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as full:
        write_atomic(small_disk / "page.html", bytes(2 << 20))
    assert full.value.filename == str(small_disk / "page.html")
    assert list(small_disk.iterdir()) == []


def test_the_index_round_trips_and_wrong_sizes_are_refused(tmp_path: Path) -> None:
    records = np.zeros(5, dtype=INDEX_DTYPE)
    records["offset"] = np.arange(5) * 1000
    assert INDEX_DTYPE.itemsize == 32
    write_index(tmp_path / "index.npy", [records[:2], records[2:]], 5)
    assert np.array_equal(np.load(tmp_path / "index.npy"), records)
    assert np.array_equal(open_index(tmp_path / "index.npy", 5), records)
    with pytest.raises(CorruptDataError, match="manifest says"):
        open_index(tmp_path / "index.npy", 6)
    with pytest.raises(ValueError, match="expected 7"):
        write_index(tmp_path / "other.npy", [records], 7)
    assert not (tmp_path / "other.npy").exists()
    (tmp_path / "index.npy").write_bytes(b"nonsense")
    with pytest.raises(CorruptDataError, match="wv-ingest verify"):
        open_index(tmp_path / "index.npy", 5)


def test_many_shards_are_read_with_few_open_files(
    tmp_path: Path, draw_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wv_shards.reader.MAX_OPEN_SHARDS", 4)
    before = len(os.listdir("/proc/self/fd"))
    with Dataset.open(draw_dataset(tmp_path / "d", [60], shard_samples=3)) as dataset:
        for ordinal in np.random.default_rng(0).permutation(60).tolist():
            assert dataset.read(ordinal)[:2] == b"\xff\xd8"
            assert len(os.listdir("/proc/self/fd")) <= before + 6
        with pytest.raises(IndexError, match="60 samples"):
            dataset.read(60)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the mapped index


def test_files_are_closed_with_the_last_reference(tmp_path: Path, draw_dataset: Callable[..., Path]) -> None:
    dataset = Dataset.open(draw_dataset(tmp_path / "d", [60], shard_samples=3))
    before = len(os.listdir("/proc/self/fd"))
    for shard in range(20):
        with dataset.descriptor(shard):
            pass
    assert len(os.listdir("/proc/self/fd")) == before + 20
    with dataset.descriptor(0) as descriptor:
        reading = dataset.descriptor(1)
        other = reading.__enter__()
        del dataset
        gc.collect()
        assert os.pread(descriptor, 5, 0)  # who reads keeps it
        assert os.pread(other, 5, 0)
    reading.__exit__(None, None, None)
    del reading
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) < before


def test_splitmix64_is_the_published_one() -> None:
    from wv_shards import splitmix64

    state, golden = 0, []
    for _ in range(3):
        golden.append(int(splitmix64(state)))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert golden == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_images_written_are_images_read(tmp_path: Path, draw_jpeg: Callable[..., bytes]) -> None:
    from PIL import Image

    image = draw_jpeg(1, 40, 30)
    write(tmp_path, [("k", image, 1)])
    with tarfile.open(tmp_path / "b03-000000.tar") as tar:
        stored = tar.extractfile("k.jpg")
        assert stored is not None
        with Image.open(io.BytesIO(stored.read())) as opened:
            assert opened.size == (40, 30)


def test_keys_of_some_samples_are_read_by_parts_and_in_the_order_asked_for(
    tmp_path: Path, draw_dataset: Callable[..., Path]
) -> None:
    with Dataset.open(draw_dataset(tmp_path / "d", [60, 20])) as dataset:
        table = dataset.samples_table()
        pq.write_table(table, tmp_path / "d" / "samples.parquet", row_group_size=7)
        keys = table.column("key").to_pylist()
        assert dataset.keys([79, 3, 3, 0, 40]) == [keys[i] for i in (79, 3, 3, 0, 40)]
        assert dataset.keys([]) == []
        with pytest.raises(CorruptDataError, match="KeyError"):
            dataset.keys([80])
