"""Manifest and overlay: identity, refusals, bands."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from wv_shards import (
    Dataset,
    EarlierInfo,
    Manifest,
    Overlay,
    OverlayMismatchError,
    ShardsError,
    band_of,
    band_range,
)
from wv_shards.errors import CorruptDataError, FormatVersionError, NotADatasetError, UnfinishedBuildError


@given(st.integers(1, 10**9))
def test_a_band_is_half_an_octave(rows: int) -> None:
    band = band_of(rows)
    assert band is not None
    assert 2**band <= rows * rows < 2 ** (band + 1)
    first, last = band_range(band)
    assert first <= rows <= last
    assert (band_of(first), band_of(last)) == (band, band)
    assert band_of(last + 1) != band


def test_a_class_without_rows_has_no_band() -> None:
    assert band_of(0) is None
    with pytest.raises(ValueError, match="-1 rows"):
        band_of(-1)


def test_the_manifest_round_trips_and_its_digest_covers_classes_shards_and_index(small_dataset: Path) -> None:
    manifest = Manifest.load(small_dataset)
    with Dataset.open(small_dataset) as dataset:
        assert dataset.manifest == manifest
    first = manifest.shards[0]
    for other in (
        replace(manifest, classes=(replace(manifest.classes[0], name="other"), *manifest.classes[1:])),
        replace(manifest, shards=(replace(first, checksum="0" * 32), *manifest.shards[1:])),
        replace(manifest, index_checksum="0" * 32),
    ):
        assert other.digest != manifest.digest
    assert replace(manifest, options={"quality": 1}).digest == manifest.digest


def test_counts_that_do_not_add_up_are_refused(small_dataset: Path) -> None:
    manifest = Manifest.load(small_dataset)
    with pytest.raises(ValueError, match="rejects are not"):
        replace(manifest, rows=manifest.rows + 1)
    with pytest.raises(ValueError, match="shards hold"):
        replace(manifest, shards=manifest.shards[1:])
    with pytest.raises(ValueError, match="class ids"):
        replace(manifest, classes=manifest.classes[::-1])


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.update(format_version=99), FormatVersionError, "format version 99"),
        (lambda d: d.update(index_checksum="0" * 32), CorruptDataError, "the file changed after the build"),
        (lambda d: d.update(rows=1), CorruptDataError, "contradicts itself"),
        (lambda d: d.pop("shards"), CorruptDataError, "shards: expected a list, found None"),
        (lambda d: d.update(shards=5), CorruptDataError, "shards: expected a list, found 5"),
        (lambda d: d["shards"][0].update(bytes="x"), CorruptDataError, r"shards\[0\].bytes: expected int, found 'x'"),
        (lambda d: d["classes"][1].pop("band"), CorruptDataError, r"classes\[1\]: no band"),
        (lambda d: d["classes"].__setitem__(0, 7), CorruptDataError, r"classes\[0\]: expected an object, found 7"),
        (lambda d: d.pop("samples"), CorruptDataError, "manifest: no samples"),
        (lambda d: d.update(surprise=1), CorruptDataError, "manifest: unknown key surprise"),
        (lambda d: d.pop("format_version"), CorruptDataError, "not a manifest"),
    ],
)
def test_a_manifest_that_can_not_be_trusted_is_refused_in_one_line(
    small_dataset: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    error: type[ShardsError],
    message: str,
) -> None:
    shutil.copytree(small_dataset, tmp_path / "copy")
    edit(tmp_path / "copy", change)
    with pytest.raises(error, match=message) as raised:
        Dataset.open(tmp_path / "copy")
    assert "\n" not in str(raised.value)


def test_directories_that_are_no_data_sets_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotADatasetError, match="no such directory"):
        Manifest.load(tmp_path / "nothing")
    with pytest.raises(NotADatasetError, match=r"no manifest\.json in it"):
        Manifest.load(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(UnfinishedBuildError, match="again to finish it"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CorruptDataError, match="not a manifest"):
        Manifest.load(tmp_path)


def test_an_overlay_round_trips(tmp_path: Path) -> None:
    rows = np.array([(1, 0.5), (2, 0.25)], dtype=[("seen", "<u2"), ("label_conf", "<f4")])
    Overlay(kind="ledger", array=rows, manifest_digest="d" * 32, info={"step": 7}).save(tmp_path / "ledger")
    for base in ("ledger", "ledger.npy", "ledger.json"):
        loaded = Overlay.load(tmp_path / base, manifest_digest="d" * 32, kind="ledger")
        assert np.array_equal(loaded.array, rows)
        assert loaded.info == {"step": 7}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint8)[::2],
        np.zeros(0, dtype=bool),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.zeros(3, dtype=[("seen", "<u2"), ("history", "u1", (16,))]),
    ],
)
def test_an_overlays_array_is_the_file_that_numpy_writes(array: np.ndarray, tmp_path: Path) -> None:
    Overlay(kind="tiers", array=array, manifest_digest="d" * 32).save(tmp_path / "tiers")
    np.save(tmp_path / "numpys.npy", np.ascontiguousarray(array))
    assert (tmp_path / "tiers.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()
    assert np.array_equal(Overlay.load(tmp_path / "tiers", manifest_digest="d" * 32).array, array)


def test_an_overlay_of_another_data_set_kind_or_content_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "tiers"
    Overlay(kind="tiers", array=np.arange(4), manifest_digest="a" * 32).save(base)
    with pytest.raises(OverlayMismatchError, match="make it again for these shards"):
        Overlay.load(base, manifest_digest="b" * 32)
    with pytest.raises(OverlayMismatchError, match="expected 'exclude'"):
        Overlay.load(base, manifest_digest="a" * 32, kind="exclude")
    np.save(tmp_path / "tiers.npy", np.arange(5))
    with pytest.raises(CorruptDataError, match="checksum differs"):
        Overlay.load(base, manifest_digest="a" * 32)
    with pytest.raises(NotADatasetError, match="expected an overlay"):
        Overlay.load(tmp_path / "none", manifest_digest="a" * 32)
    document = json.loads((tmp_path / "tiers.json").read_text())
    (tmp_path / "tiers.json").write_text(json.dumps({**document, "overlay_version": 9}))
    with pytest.raises(FormatVersionError, match="overlay version 9"):
        Overlay.load(base, manifest_digest="a" * 32)


def test_the_digest_is_the_one_that_the_format_page_describes(small_dataset: Path) -> None:
    """Made by hand from shards/FORMAT.md, without our code."""
    document = json.loads((small_dataset / "manifest.json").read_text())
    classes = ",".join(
        f'{{"band":{json.dumps(c["band"])},"class_id":{c["class_id"]},"name":{json.dumps(c["name"])},'
        f'"rows":{c["rows"]},"samples":{c["samples"]}}}'
        for c in document["classes"]
    )
    shards = ",".join(f'["{s["name"]}","{s["checksum"]}"]' for s in document["shards"])
    text = f'{{"classes":[{classes}],"format_version":1,"index":"{document["index_checksum"]}","shards":[{shards}]}}'
    assert xxhash.xxh3_128(text.encode()).hexdigest() == document["digest"] == Manifest.load(small_dataset).digest


def grown_from(manifest: Manifest, more: int) -> Manifest:
    """The manifest as if `more` samples of class 0 had been appended."""
    first, last = manifest.classes[0], manifest.shards[-1]
    return replace(
        manifest,
        classes=(replace(first, samples=first.samples + more, rows=first.rows + more), *manifest.classes[1:]),
        shards=(*manifest.shards, replace(last, name="b12-000099", samples=more)),
        samples=manifest.samples + more,
        rows=manifest.rows + more,
        earlier=(*manifest.earlier, EarlierInfo(digest=manifest.digest, samples=manifest.samples)),
    )


def test_earlier_states_are_kept_and_do_not_count_for_the_digest(small_dataset: Path, tmp_path: Path) -> None:
    old = Manifest.load(small_dataset)
    grown = grown_from(grown_from(old, 5), 2)
    grown.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == grown
    assert loaded.digest == replace(grown, earlier=()).digest != old.digest
    assert [loaded.samples_at(e.digest) for e in loaded.earlier] == [old.samples, old.samples + 5]
    assert loaded.samples_at(loaded.digest) == old.samples + 7
    assert loaded.samples_at("0" * 32) is None
    with pytest.raises(ValueError, match="an earlier state had more"):
        replace(old, earlier=(EarlierInfo(digest="0" * 32, samples=old.samples + 1),))


@given(
    width=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from(["bool", "uint8", "float32", "int64"]),
    neutral=st.sampled_from([None, 1, 0]),
    grows=st.lists(st.integers(0, 4), max_size=3),
)
def test_an_overlay_of_any_earlier_state_holds_for_the_grown_data_set(
    small_dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
    width: int | None,
    dtype: str,
    neutral: int | None,
    grows: list[int],
) -> None:
    """The rows that are there stay, those of new samples are neutral, and the files are not touched."""
    old = Manifest.load(small_dataset)
    base = tmp_path_factory.mktemp("overlay") / "facts"
    shape = (old.samples,) if width is None else (old.samples, width)
    rows = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    Overlay(kind="facts", array=rows, manifest_digest=old.digest, neutral=neutral).save(base)
    before = [base.with_suffix(s).read_bytes() for s in (".npy", ".json")]
    now = old
    for more in grows:
        now = grown_from(now, more)
    loaded = Overlay.load_onto(base, now)
    assert loaded.manifest_digest == now.digest
    assert loaded.array.dtype == rows.dtype
    assert loaded.array.shape == (now.samples, *shape[1:])
    assert np.array_equal(loaded.array[: old.samples], rows)
    assert (loaded.array[old.samples :] == (neutral or 0)).all()
    assert [base.with_suffix(s).read_bytes() for s in (".npy", ".json")] == before


def test_a_record_overlay_names_the_neutral_values_of_its_fields(small_dataset: Path, tmp_path: Path) -> None:
    old = Manifest.load(small_dataset)
    now = grown_from(old, 3)
    rows = np.zeros(old.samples, dtype=[("seen", "<u2"), ("prediction", "<i4")])
    overlay = Overlay(kind="ledger", array=rows, manifest_digest=old.digest, neutral={"prediction": -1})
    overlay.save(tmp_path / "ledger")
    assert Overlay.load_onto(tmp_path / "ledger.npy", now, kind="ledger").array[old.samples :].tolist() == [(0, -1)] * 3
    replace(overlay, neutral={"colour": 1}).save(tmp_path / "odd")
    with pytest.raises(CorruptDataError, match="neutral row does not fit"):
        Overlay.load_onto(tmp_path / "odd", now)


def test_an_overlay_of_another_data_set_or_of_other_length_is_refused(small_dataset: Path, tmp_path: Path) -> None:
    old = Manifest.load(small_dataset)
    now = grown_from(old, 3)
    Overlay(kind="exclude", array=np.zeros(now.samples), manifest_digest=now.digest).save(tmp_path / "later")
    with pytest.raises(OverlayMismatchError, match="made for data set"):
        Overlay.load_onto(tmp_path / "later", old)
    Overlay(kind="exclude", array=np.zeros(old.samples + 1), manifest_digest=old.digest).save(tmp_path / "long")
    with pytest.raises(OverlayMismatchError, match="a row per sample"):
        Overlay.load_onto(tmp_path / "long", now)


class Killed(BaseException):
    """Stands for a kill at a certain call."""


@pytest.mark.parametrize("kill_at", range(3))
def test_an_overlay_killed_while_it_is_replaced_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Array and description are two files: between their renames the new array still has its description."""
    base, calls = tmp_path / "exclude", 0
    old = Overlay(kind="exclude", array=np.array([1, 0, 0]), manifest_digest="d" * 32, info={"step": 1})
    new = Overlay(kind="exclude", array=np.array([1, 1, 0]), manifest_digest="d" * 32, info={"step": 2})
    old.save(base)
    real = os.replace

    def replace_or_die(*args: Any) -> None:
        nonlocal calls
        if calls == kill_at:
            raise Killed
        calls += 1
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        if kill_at < 2:
            with pytest.raises(Killed):
                new.save(base)
        else:
            new.save(base)
    found = Overlay.load(base, manifest_digest="d" * 32)
    expected = old if kill_at == 0 else new
    assert (found.array.tolist(), found.info) == (expected.array.tolist(), expected.info)
    new.save(base)
    assert Overlay.load(base, manifest_digest="d" * 32).info == {"step": 2}
    assert not list(tmp_path.glob("*.tmp"))
