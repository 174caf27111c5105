"""Keys and the plan: every row in exactly one shard, shards of one band, the same plan everywhere."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from wv_ingest.keys import key_of, text_of
from wv_ingest.plan import NO_BAND, SMALL_SET_SHARDS, SMALL_SHARD_ROWS, cut_shards, order_rows
from wv_ingest.sources import Source, constant, rows_table
from wv_shards import MAX_KEY_BYTES, ShardInfo, ShardWriter, band_of, key_hash

paths = st.binary(min_size=1, max_size=200)
PLACES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=120)


def source_of(rows: list[tuple[bytes, int]], classes: int) -> Source:
    """A source of (path, label) rows."""
    labels = np.array([label for _, label in rows], dtype=np.int32)
    texts = [constant("", len(rows))]
    table = rows_table([pa.array([path for path, _ in rows], pa.large_binary())], [labels], texts, texts)
    names = tuple(f"class {i}" for i in range(classes))
    return Source(source_format="list", root=Path(), rows=table, class_names=names)


@given(paths)
def test_a_key_fits_a_tar_and_webdataset(path: bytes) -> None:
    key = key_of(path)
    assert key.isascii()
    assert key.isprintable()
    assert not set("./ ") & set(key)
    assert key[0] not in "-_"
    assert 18 <= len(key) <= MAX_KEY_BYTES
    assert key == key_of(path)


@given(paths, paths)
def test_different_paths_have_different_keys(a: bytes, b: bytes) -> None:
    assert (key_of(a) == key_of(b)) == (a == b)


def test_names_that_differ_only_in_what_a_key_can_not_hold_stay_apart(tmp_path: Path) -> None:
    names = [b"q1/a.jpg", b"q1/a.png", b"q1_a_jpg", b"q1/A.jpg", "q1/ä.jpg".encode(), b"q1/\xe4.jpg", b"-a.jpg", b"..."]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    assert keys[0].startswith("q1_a_jpg-")
    with ShardWriter(tmp_path, "b00-000000") as writer:  # the writer takes them all
        for key in keys:
            writer.add(key, b"image", 0, {}, width=1, height=1)
        assert writer.finish(0).info.samples == len(names)


def test_paths_that_are_no_utf8_have_a_text() -> None:
    assert text_of("q1/写真.jpg".encode()) == "q1/写真.jpg"
    assert text_of(b"q1/\xe4.jpg") == "q1/\\xe4.jpg"


@given(PLACES, st.integers(0, 2**32))
def test_every_row_is_ordered_once_or_repeated(rows: list[tuple[int, int]], seed: int) -> None:
    given_rows = [(b"img%d.jpg" % name, label) for name, label in rows]
    source = source_of(given_rows, 6)
    order = order_rows(source, seed)
    assert sorted([*order.order.tolist(), *order.repeated.tolist()]) == list(range(len(rows)))
    firsts = {path: i for i, (path, _) in reversed(list(enumerate(given_rows)))}
    assert sorted(order.order.tolist()) == sorted(firsts.values())
    assert set(order.trial.tolist()) <= set(order.order.tolist())


@given(PLACES, st.integers(0, 2**32))
def test_rows_lie_by_band_and_within_a_band_by_the_keys_hash(rows: list[tuple[int, int]], seed: int) -> None:
    source = source_of([(b"%d/img%d.jpg" % (i, name), label) for i, (name, label) in enumerate(rows)], 6)
    order = order_rows(source, seed)
    counts = source.class_rows()
    row_paths = source.rows.column("path").to_pylist()
    row_bands = [band_of(int(counts[label])) for label in source.labels]
    places = [(row_bands[row], key_hash(key_of(row_paths[row]), seed)) for row in order.order.tolist()]
    assert places == sorted(places)  # type: ignore[type-var]
    assert [stop for _, _, stop in order.bands][-1] == len(rows)
    for band, start, stop in order.bands:
        assert {place[0] for place in places[start:stop]} == {band}


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    st.integers(1, 200_000),
    st.integers(1_000_000, 100_000_000),
)
def test_shards_cover_all_rows_in_order_and_hold_one_band_each(
    band_rows: list[int], bytes_per_row: int, shard_bytes: int
) -> None:
    stops = np.cumsum(band_rows).tolist()
    bands = tuple(zip(range(3, 3 + len(stops)), [0, *stops[:-1]], stops, strict=True))
    shards = cut_shards(bands, bytes_per_row, shard_bytes)
    assert [s.start for s in shards] == [0, *[s.stop for s in shards[:-1]]]
    assert shards[-1].stop == stops[-1]
    assert len({s.name for s in shards}) == len(shards)
    assert [s.name for s in shards] == sorted(s.name for s in shards)
    limits = {band: (start, stop) for band, start, stop in bands}
    most = max(SMALL_SHARD_ROWS, -(-stops[-1] // SMALL_SET_SHARDS))
    for shard in shards:
        start, stop = limits[shard.band]
        assert start <= shard.start < shard.stop <= stop
        rows = shard.stop - shard.start
        assert rows <= most
        assert rows == 1 or rows * bytes_per_row <= shard_bytes


def test_another_seed_gives_another_order_and_the_same_bands() -> None:
    source = source_of([(b"img%d.jpg" % i, i % 3) for i in range(300)], 3)
    a, b = order_rows(source, 0), order_rows(source, 1)
    assert a.bands == b.bands
    assert a.order.tolist() != b.order.tolist()
    assert a.trial.tolist() != b.trial.tolist()


def test_new_rows_are_cut_as_finely_as_the_whole_set_would_be_and_numbers_go_on() -> None:
    """Else a thousand small appends would leave a hundred thousand small shards."""
    info = ShardInfo(name="b10-000041", samples=1_000_000, bytes=1, checksum="", band=10)
    other = ShardInfo(name="x-000003", samples=10, bytes=1, checksum="", band=None)
    bands = ((NO_BAND, 0, 30), (9, 30, 530), (10, 530, 1500))
    shards = cut_shards(bands, 100, 64_000_000, (info, other))
    assert [(s.name, s.band, s.start, s.stop) for s in shards] == [
        ("x-000004", None, 0, 30),
        ("b09-000000", 9, 30, 530),
        ("b10-000042", 10, 530, 1500),
    ]
    assert len(cut_shards(bands, 100, 64_000_000)) > 20
