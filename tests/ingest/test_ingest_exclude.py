"""`exclude`: by key, back again, and never a word about a key that is not there."""

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_ingest.exclude import exclude_keys
from wv_loader import Loader
from wv_shards import Manifest, Overlay

Ingest = Callable[..., subprocess.CompletedProcess[str]]


def keys_of(shards: Path) -> list[str]:
    keys: list[str] = pq.read_table(shards / "samples.parquet", columns=["key"]).column("key").to_pylist()
    return keys


def overlay(shards: Path) -> list[int]:
    rows: list[int] = Overlay.load(shards / "exclude", manifest_digest=Manifest.load(shards).digest).array.tolist()
    return rows


@pytest.fixture
def shards(reference: Path, tmp_path: Path) -> Path:
    shutil.copytree(reference, tmp_path / "shards")
    return tmp_path / "shards"


def test_excluded_keys_are_not_shown_and_can_come_back(shards: Path, tmp_path: Path, ingest: Ingest) -> None:
    keys = keys_of(shards)
    tars = {path: path.read_bytes() for path in shards.glob("*.tar")}
    (tmp_path / "keys.txt").write_text(f"{keys[3]}\n\n{keys[70]}\r\n{keys[3]}\n")
    done = ingest("exclude", shards, "--keys", tmp_path / "keys.txt")
    assert done.returncode == 0, done.stderr
    assert "2 samples excluded for 2 keys; excluded 0 before, 2 now" in done.stdout
    assert [i for i, row in enumerate(overlay(shards)) if row] == [3, 70]
    assert Loader(shards, batch_size=8, size_px=8).class_counts.sum() == len(keys) - 2
    again = ingest("exclude", shards, "--keys", tmp_path / "keys.txt")
    assert "0 samples excluded for 2 keys; excluded 2 before, 2 now" in again.stdout
    back = ingest("exclude", shards, "--keys", "-", "--undo", input_text=f"{keys[70]}\n")
    assert "1 samples shown again for 1 keys; excluded 2 before, 1 now" in back.stdout
    assert [i for i, row in enumerate(overlay(shards)) if row] == [3]
    assert {path: path.read_bytes() for path in shards.glob("*.tar")} == tars


def test_unknown_keys_are_named_and_change_nothing(shards: Path, tmp_path: Path, ingest: Ingest) -> None:
    (tmp_path / "keys.txt").write_text(f"{keys_of(shards)[0]}\nno-such-key\nb/c.jpg\n")
    done = ingest("exclude", shards, "--keys", tmp_path / "keys.txt")
    assert (done.returncode, done.stdout) == (1, "")
    assert "2 of 3 keys are no sample's" in done.stderr
    assert "b/c.jpg, no-such-key" in done.stderr
    assert not list(shards.glob("exclude*"))
    done = ingest("exclude", shards, "--keys", tmp_path / "keys.txt", "--ignore-unknown")
    assert done.returncode == 0
    assert "1 samples excluded for 3 keys, 2 unknown keys passed over" in done.stdout
    assert sum(map(bool, overlay(shards))) == 1


def test_a_duplicate_stays_excluded_when_its_key_comes_back(shards: Path) -> None:
    """Each reason has a bit of its own; what an older overlay of booleans says counts as the first."""
    keys, manifest = keys_of(shards), Manifest.load(shards)
    rows = np.zeros(manifest.samples, dtype=bool)
    rows[:2] = True
    Overlay(kind="exclude", array=rows, manifest_digest=manifest.digest, info={"by": "dup"}).save(shards / "exclude")
    exclude_keys(shards, keys[1:3])
    assert overlay(shards)[:4] == [1, 3, 2, 0]
    exclude_keys(shards, keys, undo=True)
    assert overlay(shards)[:4] == [1, 1, 0, 0]
    assert Overlay.load(shards / "exclude", manifest_digest=manifest.digest).info == {"by": "dup"}


@given(rounds=st.lists(st.tuples(st.sets(st.integers(0, 39)), st.booleans()), max_size=6))
def test_any_order_of_excluding_and_undoing_is_plain_sets(
    small_dataset: Path, tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[set[int], bool]]
) -> None:
    shards = tmp_path_factory.mktemp("sets") / "shards"
    shards.mkdir()
    for name in ("manifest.json", "samples.parquet"):
        (shards / name).symlink_to(small_dataset / name)
    keys, expected = keys_of(shards), set[int]()
    for ordinals, undo in rounds:
        before = len(expected)
        expected = expected - ordinals if undo else expected | ordinals
        given = [keys[i] for i in ordinals]
        random.Random(0).shuffle(given)
        done = exclude_keys(shards, given, undo=undo)
        assert (done.excluded_before, done.excluded_after) == (before, len(expected))
    if (shards / "exclude.json").exists():
        assert {i for i, row in enumerate(overlay(shards)) if row} == expected
    else:
        assert not expected
