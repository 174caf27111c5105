"""`verify` finds whatever differs from what was built, and names it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wv_shards import (
    DUPLICATES_SCHEMA,
    EXCLUDE,
    EXCLUDE_ASKED,
    EXCLUDE_DUPLICATE,
    INDEX_FILE,
    Dataset,
    DuplicatesInfo,
    EarlierInfo,
    Manifest,
    Overlay,
    ProblemKind,
    file_checksum,
    verify,
)


@pytest.fixture
def copy(small_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_dataset, tmp_path / "copy"))


def last_shard(directory: Path) -> Path:
    with Dataset.open(directory) as dataset:
        return dataset.shard_path(len(dataset.manifest.shards) - 1)


def kinds(directory: Path) -> set[ProblemKind]:
    return {problem.kind for problem in verify(directory)}


def test_a_sound_data_set_has_no_problems_and_every_byte_is_counted(copy: Path) -> None:
    seen: list[int] = []
    assert verify(copy, seen.append) == []
    assert sum(seen) == sum(s.bytes for s in Manifest.load(copy).shards)


@pytest.mark.parametrize("place", ["image", "header", "padding", "end"])
def test_one_flipped_bit_anywhere_is_found(copy: Path, place: str) -> None:
    path = last_shard(copy)
    with Dataset.open(copy) as dataset:
        offset = int(dataset.index[-1]["offset"])
    at = {"image": offset + 5, "header": offset - 500, "padding": offset - 2, "end": path.stat().st_size - 1}[place]
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    problems = verify(copy)
    assert ProblemKind.CHECKSUM in {p.kind for p in problems}
    assert (ProblemKind.SAMPLE in {p.kind for p in problems}) == (place == "image")
    assert all(path.name in str(p) for p in problems)


def test_a_truncated_or_missing_shard_is_found(copy: Path) -> None:
    path = last_shard(copy)
    os.truncate(path, path.stat().st_size // 2)
    assert {ProblemKind.SIZE, ProblemKind.SAMPLE} <= kinds(copy)
    path.unlink()
    assert kinds(copy) == {ProblemKind.MISSING}


def test_an_index_that_disagrees_with_the_tars_is_found(copy: Path) -> None:
    index = np.load(copy / INDEX_FILE)
    index[0]["label"] += 1
    np.save(copy / INDEX_FILE, index)
    assert {ProblemKind.CHECKSUM, ProblemKind.INDEX, ProblemKind.COUNTS} <= kinds(copy)
    index[0]["label"] -= 1
    index[3]["offset"] += 512
    np.save(copy / INDEX_FILE, index)
    assert {ProblemKind.CHECKSUM, ProblemKind.SAMPLE, ProblemKind.INDEX} <= kinds(copy)
    (copy / INDEX_FILE).unlink()
    assert kinds(copy) == {ProblemKind.MISSING}


def change_idx(copy: Path) -> None:
    path = last_shard(copy).with_suffix(".idx")
    path.write_text(path.read_text().replace("jpg 512", "jpg 1024"))


def drop_idx(copy: Path) -> None:
    last_shard(copy).with_suffix(".idx").unlink()


def change_samples(copy: Path) -> None:
    table = pq.read_table(copy / "samples.parquet")
    pq.write_table(table.set_column(5, "width", table.column("height")), copy / "samples.parquet")


def shorten_samples(copy: Path) -> None:
    pq.write_table(pq.read_table(copy / "samples.parquet").slice(1), copy / "samples.parquet")


def change_rejects(copy: Path) -> None:
    pq.write_table(pq.read_table(copy / "rejects.parquet").slice(1), copy / "rejects.parquet")


def drop_rejects(copy: Path) -> None:
    (copy / "rejects.parquet").unlink()


def garble_samples(copy: Path) -> None:
    (copy / "samples.parquet").write_bytes(b"PAR1 not")


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (change_idx, ProblemKind.INDEX),
        (drop_idx, ProblemKind.MISSING),
        (change_samples, ProblemKind.INDEX),
        (shorten_samples, ProblemKind.UNREADABLE),
        (garble_samples, ProblemKind.UNREADABLE),
        (change_rejects, ProblemKind.COUNTS),
        (drop_rejects, ProblemKind.MISSING),
    ],
)
def test_damage_beside_the_tars_is_found(copy: Path, damage: Callable[[Path], None], kind: ProblemKind) -> None:
    """What the damage means is told by manifests of older writers too, which do not know the tables' checksums."""
    tables = {"samples.parquet", "rejects.parquet"}
    before = {name: (copy / name).read_bytes() for name in tables}
    damage(copy)
    changed = any((copy / name).exists() and (copy / name).read_bytes() != before[name] for name in tables)
    assert kinds(copy) == {kind} | ({ProblemKind.CHECKSUM} if changed else set())
    replace(Manifest.load(copy), tables={}).save(copy)
    assert kinds(copy) == {kind}


@pytest.mark.parametrize("name", ["samples.parquet", "rejects.parquet", "duplicates.parquet"])
def test_one_flipped_bit_in_a_table_is_found(copy: Path, name: str) -> None:
    """A path is then another image's: nothing else would tell."""
    with_exclusions(copy)
    path = copy / name
    if not path.exists():
        pq.write_table(DUPLICATES_SCHEMA.empty_table(), path)
        manifest = Manifest.load(copy)
        replace(manifest, tables={**manifest.tables, name: file_checksum(path)}).save(copy)
    assert verify(copy) == []
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # in the footer's text
    path.write_bytes(data)
    assert (name, ProblemKind.CHECKSUM) in {(p.path.name, p.kind) for p in verify(copy)}
    if name == "duplicates.parquet":
        path.unlink()
        (problem,) = verify(copy)
        assert problem.kind == ProblemKind.MISSING
        assert "`wv-ingest duplicates SHARDS --conflict drop --near-distance off` writes it anew" in problem.message


def test_the_digest_does_not_cover_the_tables(copy: Path) -> None:
    manifest = Manifest.load(copy)
    assert set(manifest.tables) == {"samples.parquet", "rejects.parquet"}
    assert replace(manifest, tables={}).digest == manifest.digest


def test_file_checksum_is_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    (tmp_path / "b").write_bytes(b"x" * 4_999_999 + b"y")
    assert file_checksum(tmp_path / "a") != file_checksum(tmp_path / "b")


def with_exclusions(directory: Path) -> Path:
    """Two samples are duplicates, one was excluded by key; returns the array's path."""
    manifest = Manifest.load(directory)
    rule = DuplicatesInfo(conflict="drop", near_distance=None, exact=2, near=0, conflicts=0, excluded=2, cut_short=0)
    replace(manifest, duplicates=rule).save(directory)
    rows = np.zeros(manifest.samples, dtype=np.uint8)
    rows[[3, 50, 51]] = [EXCLUDE_DUPLICATE, EXCLUDE_ASKED, EXCLUDE_DUPLICATE]
    Overlay(kind=EXCLUDE, array=rows, manifest_digest=manifest.digest).save(directory / EXCLUDE)
    assert verify(directory) == []
    return directory / "exclude.npy"


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda copy: (copy / "exclude.json").unlink(), ProblemKind.MISSING),
        (lambda copy: (copy / "exclude.npy").unlink(), ProblemKind.MISSING),
        (lambda copy: [(copy / f"exclude{suffix}").unlink() for suffix in (".json", ".npy")], ProblemKind.MISSING),
        (lambda copy: flip_last(copy / "exclude.npy"), ProblemKind.CHECKSUM),
        (lambda copy: os.truncate(copy / "exclude.npy", 100), ProblemKind.CHECKSUM),
        (lambda copy: os.truncate(copy / "exclude.json", 30), ProblemKind.CHECKSUM),
        (lambda copy: (copy / "exclude.json").write_text('{"kind": "exclude"}'), ProblemKind.CHECKSUM),
    ],
)
def test_lost_or_damaged_exclusions_are_found_and_the_way_back_is_told(
    copy: Path, damage: Callable[[Path], object], kind: ProblemKind
) -> None:
    with_exclusions(copy)
    damage(copy)
    problems = verify(copy)
    assert {problem.kind for problem in problems} == {kind}
    assert all("`wv-ingest duplicates SHARDS --conflict drop --near-distance off`" in p.message for p in problems)


def test_exclusions_of_another_data_set_or_count_are_found(copy: Path) -> None:
    with_exclusions(copy)
    manifest = Manifest.load(copy)
    rows = np.zeros(manifest.samples, dtype=np.uint8)
    rows[3] = EXCLUDE_DUPLICATE
    Overlay(kind=EXCLUDE, array=rows, manifest_digest=manifest.digest).save(copy / EXCLUDE)
    assert [(p.kind, p.message.partition(";")[0]) for p in verify(copy)] == [
        (ProblemKind.COUNTS, "1 duplicates excluded, the manifest says 2")
    ]
    Overlay(kind=EXCLUDE, array=rows, manifest_digest="0" * 32).save(copy / EXCLUDE)
    assert kinds(copy) == {ProblemKind.UNREADABLE}


def test_exclusions_made_before_the_data_set_grew_are_sound(copy: Path) -> None:
    with_exclusions(copy)
    manifest = Manifest.load(copy)
    overlay = Overlay.load(copy / EXCLUDE, manifest_digest=manifest.digest)
    replace(manifest, earlier=(EarlierInfo(digest="e" * 32, samples=100),)).save(copy)
    replace(overlay, array=overlay.array[:100], manifest_digest="e" * 32).save(copy / EXCLUDE)
    assert verify(copy) == []


def test_exclusions_by_key_alone_are_checked_too(copy: Path) -> None:
    """Nobody looked for duplicates: a data set without an overlay is sound, one with a damaged overlay is not."""
    manifest = Manifest.load(copy)
    assert manifest.duplicates is None
    rows = np.full(manifest.samples, EXCLUDE_ASKED, dtype=np.uint8)
    Overlay(kind=EXCLUDE, array=rows, manifest_digest=manifest.digest).save(copy / EXCLUDE)
    assert verify(copy) == []
    flip_last(copy / "exclude.npy")
    assert kinds(copy) == {ProblemKind.CHECKSUM}
    (copy / "exclude.json").unlink()
    assert kinds(copy) == {ProblemKind.MISSING}
    (copy / "exclude.npy").unlink()
    assert verify(copy) == []
