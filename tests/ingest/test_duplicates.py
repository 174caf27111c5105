"""Which samples are copies, and what becomes of them: the rule on random worlds, and drawn data of known truth."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_ingest.build import BuildResult
from wv_ingest.build_options import BuildOptions
from wv_ingest.duplicates import Conflict, DuplicateOptions, Hashes, find_duplicates
from wv_ingest.errors import BuildMismatchError
from wv_ingest.exclude import exclude_keys
from wv_ingest.mark_duplicates import mark_again
from wv_ingest.progress import Progress
from wv_ingest.sample_data import SampleDataOptions, write_sample_data
from wv_shards import (
    DUPLICATES_FILE,
    DUPLICATES_SCHEMA,
    EXCLUDE_ASKED,
    EXCLUDE_DUPLICATE,
    CorruptDataError,
    Dataset,
    Manifest,
    Overlay,
)

Build = Callable[..., BuildResult]


@dataclass
class World:
    """Some samples, as Python has them; keys rise with `ranks`."""

    labels: list[int]
    content: list[int]
    phash: list[tuple[int, int] | None]
    ranks: list[int]

    def same(self, i: int, j: int, distance: int | None) -> bool:
        if self.content[i] == self.content[j]:
            return True
        a, b = self.phash[i], self.phash[j]
        if distance is None or a is None or b is None:
            return False
        return (a[0] ^ b[0]).bit_count() <= distance and (a[1] ^ b[1]).bit_count() <= 2 * distance


@st.composite
def worlds(draw: Any) -> World:
    """Few classes, few files, hashes of few bits: much is alike."""
    count = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    content = rng.integers(0, max(1, count), count).tolist()
    bits = draw(st.integers(1, 10))
    of_file = {c: (int(rng.integers(0, 2**bits)), int(rng.integers(0, 2**bits))) for c in set(content)}
    flat = {c for c in of_file if rng.random() < 0.2}
    return World(
        labels=rng.integers(0, 3, count).tolist(),
        content=content,
        phash=[None if c in flat else of_file[c] for c in content],
        ranks=rng.permutation(count).tolist(),
    )


def by_the_rule(world: World, options: DuplicateOptions) -> dict[int, tuple[int, bool, bool]]:
    """Ordinal → (first, same class, excluded), by comparing each with each in the order of keys."""
    distance = options.near_distance
    by_key = sorted(range(len(world.labels)), key=lambda i: world.ranks[i])
    kept_for: dict[int, int] = {}
    for i in by_key:
        earlier = (j for j in by_key if kept_for.get(j) == j and world.labels[i] == world.labels[j])
        kept_for[i] = next((j for j in earlier if world.same(i, j, distance)), i)
    rows = {i: (first, True, True) for i, first in kept_for.items() if first != i}
    others: dict[int, int] = {}
    for i in by_key:
        for j in by_key:
            if world.labels[i] != world.labels[j] and world.same(i, j, None if distance is None else distance // 2):
                mine, theirs = kept_for[i], kept_for[j]
                if mine not in others or world.ranks[theirs] < world.ranks[others[mine]]:
                    others[mine] = theirs
    return rows | {i: (j, False, options.conflict is Conflict.DROP) for i, j in others.items()}


def found_in(world: World, options: DuplicateOptions) -> dict[int, tuple[int, bool, bool]]:
    halves = [h or (0, 0) for h in world.phash]
    hashes = Hashes(
        labels=np.array(world.labels, dtype=np.int32),
        content=np.array(world.content, dtype=np.uint64),
        coarse=np.array([coarse for coarse, _ in halves], dtype=np.uint64),
        fine=np.array([fine for _, fine in halves], dtype=np.uint64),
        hashed=np.array([h is not None for h in world.phash], dtype=bool),
    )
    ranks = np.array(world.ranks, dtype=np.int64)
    found = find_duplicates(hashes, lambda asked: np.argsort(np.argsort(ranks[asked])), options)
    assert found.cut_short == 0
    assert found.ordinal.tolist() == sorted(set(found.ordinal.tolist()))
    for i, first, exact, distance in zip(
        found.ordinal.tolist(), found.first.tolist(), found.exact.tolist(), found.distance.tolist(), strict=True
    ):
        assert exact == (world.content[i] == world.content[first])
        a, b = world.phash[i], world.phash[first]
        assert distance == (0 if exact or a is None or b is None else (a[0] ^ b[0]).bit_count())
    rows = zip(found.first.tolist(), found.same_class.tolist(), found.excluded.tolist(), strict=True)
    return dict(zip(found.ordinal.tolist(), rows, strict=True))


@given(world=worlds(), conflict=st.sampled_from(Conflict), distance=st.none() | st.integers(0, 6))
def test_what_is_found_is_what_the_rule_says(world: World, conflict: Conflict, distance: int | None) -> None:
    options = DuplicateOptions(conflict=conflict, near_distance=distance)
    assert found_in(world, options) == by_the_rule(world, options)


def test_no_chain_leads_from_a_picture_to_one_unlike_it() -> None:
    """0, 1, 3, 7, …: each is 1 bit from the one before. At distance 1 every second is kept, not the first alone."""
    count = 10
    chain = World(
        labels=[0] * count,
        content=list(range(count)),
        phash=[((1 << i) - 1, 0) for i in range(count)],
        ranks=list(range(count)),
    )
    rows = found_in(chain, DuplicateOptions(near_distance=1))
    assert rows == {i: (i - 1, True, True) for i in range(1, count, 2)}


def test_one_file_has_one_hash_however_it_was_packed() -> None:
    """The second was packed without decoding, the third by another decoder; they are the first all the same."""
    world = World(labels=[0, 0, 0], content=[5, 5, 5], phash=[(1, 1), None, (3, 3)], ranks=[0, 1, 2])
    hashes = Hashes(
        labels=np.zeros(3, dtype=np.int32),
        content=np.full(3, 5, dtype=np.uint64),
        coarse=np.array([1, 0, 2**40 - 1], dtype=np.uint64),
        fine=np.array([1, 0, 3], dtype=np.uint64),
        hashed=np.array([True, False, True]),
    )
    found = find_duplicates(hashes, lambda asked: np.argsort(np.argsort(asked)), DuplicateOptions())
    assert (found.ordinal.tolist(), found.first.tolist()) == ([1, 2], [0, 0])
    assert found.exact.all()
    assert world.same(0, 1, None)


@dataclass
class Truth:
    """A drawn source, its shards, and what truth.csv says of each path."""

    source: Path
    shards: Path
    kinds: dict[str, str]
    labels: dict[str, int]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Read-only by agreement."""
    folder = tmp_path_factory.mktemp("drawn")
    options = SampleDataOptions(classes=6, images=1500, largest_class=600, smallest_class=60, val_per_class=1)
    write_sample_data(folder / "raw", options)
    with open(folder / "raw" / "truth.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    build_with(folder / "raw", folder / "shards")
    return Truth(
        source=folder / "raw",
        shards=folder / "shards",
        kinds={row["path"]: row["kind"] for row in rows},
        labels={row["path"]: int(row["label"]) for row in rows},
    )


def build_with(source: Path, out: Path, **options: Any) -> Manifest:
    from wv_ingest.build import build
    from wv_ingest.check import CheckOptions

    chosen = BuildOptions(check=CheckOptions(size_px=48), **{"workers": 1, **options})
    with Progress(io.StringIO()) as progress:
        return build(source, out, chosen, progress).manifest


def again(shards: Path, **options: Any) -> Manifest:
    with Progress(io.StringIO()) as progress:
        return mark_again(shards, DuplicateOptions(**options), progress).manifest


def rows_of(shards: Path) -> list[dict[str, Any]]:
    table = pq.read_table(shards / DUPLICATES_FILE)
    assert table.schema.equals(DUPLICATES_SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def exclude_bits(shards: Path) -> np.ndarray:
    return Overlay.load(shards / "exclude", manifest_digest=Manifest.load(shards).digest, kind="exclude").array


def test_every_exact_copy_of_the_drawn_data_is_found_and_no_other(drawn: Truth) -> None:
    files: dict[bytes, list[str]] = {}
    for path, kind in drawn.kinds.items():
        if kind != "broken":
            files.setdefault((drawn.source / path).read_bytes(), []).append(path)
    groups = [paths for paths in files.values() if len(paths) > 1]
    assert len(groups) >= 10
    with Dataset.open(drawn.shards) as dataset:
        table = dataset.samples_table(["path", "key"])
        key_of = dict(zip(table.column("path").to_pylist(), table.column("key").to_pylist(), strict=True))
        path_at = table.column("path").to_pylist()
    expected = set()
    for paths in groups:
        for label in {drawn.labels[path] for path in paths}:
            own = sorted((path for path in paths if drawn.labels[path] == label), key=lambda p: key_of[p].encode())
            expected |= {(path, own[0]) for path in own[1:]}
    rows = rows_of(drawn.shards)
    exact = {(path_at[r["ordinal"]], path_at[r["first"]]) for r in rows if r["kind"] == "exact" and r["same_class"]}
    assert exact == expected
    across = {path_at[r["ordinal"]] for r in rows if r["kind"] == "exact" and not r["same_class"]}
    firsts = [sorted((p for p in paths), key=lambda p: key_of[p].encode()) for paths in groups]
    assert across >= {g[0] for g in firsts if len({drawn.labels[p] for p in g}) > 1}


def test_near_copies_of_the_drawn_data_are_found_and_hardly_anything_else(drawn: Truth) -> None:
    """The copies lack up to 9% of a side, which is more than the distance is made for: a third of them is found."""
    with Dataset.open(drawn.shards) as dataset:
        path_at = dataset.samples_table(["path"]).column("path").to_pylist()
    near = [row for row in rows_of(drawn.shards) if row["kind"] == "near"]
    kinds = [{drawn.kinds[path_at[row["ordinal"]]], drawn.kinds[path_at[row["first"]]]} for row in near]
    right = [row for row, kind in zip(near, kinds, strict=True) if kind & {"near_duplicate", "duplicate"}]
    copies = [path for path, kind in drawn.kinds.items() if kind == "near_duplicate"]
    found = {path_at[row[name]] for row in right for name in ("ordinal", "first")} & set(copies)
    assert len(found) >= 0.3 * len(copies)
    assert len(near) - len(right) <= 0.005 * len(path_at)


def test_the_overlay_excludes_what_the_table_says_and_the_manifest_counts_it(drawn: Truth) -> None:
    rows, manifest = rows_of(drawn.shards), Manifest.load(drawn.shards)
    excluded = [row["ordinal"] for row in rows if row["excluded"]]
    bits = exclude_bits(drawn.shards)
    assert bits.dtype == np.uint8
    assert np.flatnonzero(bits).tolist() == excluded
    assert set(bits.tolist()) == {0, EXCLUDE_DUPLICATE}
    assert manifest.duplicates is not None
    counts = {
        "exact": sum(row["same_class"] and row["kind"] == "exact" for row in rows),
        "near": sum(row["same_class"] and row["kind"] == "near" for row in rows),
        "conflicts": sum(not row["same_class"] for row in rows),
        "excluded": len(excluded),
    }
    assert {name: getattr(manifest.duplicates, name) for name in counts} == counts
    assert not {row["first"] for row in rows} & {row["ordinal"] for row in rows if row["same_class"]}


def test_three_workers_find_the_same_as_one(
    drawn: Truth, tmp_path: Path, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    build_with(drawn.source, tmp_path / "out", workers=3)
    assert folder_bytes(tmp_path / "out") == folder_bytes(drawn.shards)


@pytest.fixture
def two_classes(tmp_path: Path, encode: Callable[..., bytes], write_list: Callable[..., Path]) -> Path:
    """A list: one file twice in class 0 and once in class 1, and three others."""
    for name, seed in (("a", 1), ("b", 1), ("c", 1), ("d", 2), ("e", 3), ("f", 4)):
        (tmp_path / f"{name}.jpg").write_bytes(encode(seed, 40, 40))
    labels = zip("abcdef", (0, 0, 1, 0, 1, 1), strict=True)
    return write_list(tmp_path / "list.csv", [(f"{name}.jpg", label) for name, label in labels])


@pytest.mark.parametrize(
    ("conflict", "shown"), [("keep", "acdef"), ("report", "acdef"), ("drop", "def")], ids=["keep", "report", "drop"]
)
def test_a_picture_in_two_classes_is_kept_or_dropped_as_asked(
    two_classes: Path, tmp_path: Path, build_small: Build, conflict: str, shown: str
) -> None:
    out = tmp_path / "out"
    build_small(two_classes, out, duplicates=DuplicateOptions(conflict=Conflict(conflict)))
    assert shown_of(out) == shown
    with Dataset.open(out) as dataset:
        paths = [path[0] for path in dataset.samples_table(["path"]).column("path").to_pylist()]
    rows = {(paths[r["ordinal"]], paths[r["first"]], r["same_class"]) for r in rows_of(out)}
    assert rows == {("b", "a", True), ("c", "a", False), ("a", "c", False)}


def shown_of(shards: Path) -> str:
    """Names of the files that are not excluded."""
    with Dataset.open(shards) as dataset:
        paths = dataset.samples_table(["path"]).column("path").to_pylist()
    return "".join(sorted(path[0] for path, bits in zip(paths, exclude_bits(shards), strict=True) if not bits))


def test_searched_again_under_another_rule_the_shards_and_what_was_asked_for_stay(
    two_classes: Path, tmp_path: Path, build_small: Build, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "out"
    before = build_small(two_classes, out).manifest
    built = folder_bytes(out)
    with Dataset.open(out) as dataset:
        table = dataset.samples_table(["path", "key"]).to_pylist()
    keys = {row["path"][0]: row["key"] for row in table}
    exclude_keys(out, [keys["b"], keys["d"]])
    after = again(out, conflict=Conflict.DROP)
    assert after.digest == before.digest
    assert Manifest.load(out) == after
    assert shown_of(out) == "ef"
    bits = dict(zip((row["path"][0] for row in table), exclude_bits(out).tolist(), strict=True))
    assert bits["b"] == EXCLUDE_DUPLICATE | EXCLUDE_ASKED
    assert bits["d"] == EXCLUDE_ASKED
    exclude_keys(out, [keys["b"], keys["d"]], undo=True)
    again(out)
    assert folder_bytes(out) == built


def test_a_lost_overlay_is_refused_by_all_and_comes_back_as_it_was(
    two_classes: Path,
    tmp_path: Path,
    build_small: Build,
    ingest: Callable[..., Any],
    folder_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    out = tmp_path / "out"
    build_small(two_classes, out, duplicates=DuplicateOptions(conflict=Conflict.DROP, near_distance=3))
    built = folder_bytes(out)
    (out / "exclude.json").unlink()
    told = ingest("verify", out)
    assert told.returncode == 1
    assert "exclude.json: missing: is missing" in told.stdout
    keys = tmp_path / "keys.txt"
    keys.write_text("")
    for command in (
        ("exclude", out, "--keys", keys),
        ("append", out, two_classes),
        ("merge", tmp_path / "merged", out, out),
        ("report", out),
        ("stats", out),
    ):
        refused = ingest(*command)
        assert refused.returncode == 1, command
        assert "3 duplicates were excluded; restore it" in refused.stderr, command
    (out / "exclude.npy").unlink()
    arguments = told.stdout.partition("`wv-ingest duplicates SHARDS ")[2].partition("`")[0].split()
    assert ingest("duplicates", out, *arguments).returncode == 0
    assert folder_bytes(out) == built
    assert ingest("verify", out).returncode == 0


def test_a_validation_set_lists_its_copies_and_shows_all(two_classes: Path, tmp_path: Path, build_small: Build) -> None:
    """Results on it must be of the images that everybody else tests on."""
    train, val = (build_small(two_classes, tmp_path / split, split=split).manifest for split in ("train", "val"))
    assert train.duplicates is not None
    assert val.duplicates is not None
    assert train.duplicates.excluded > 0
    assert replace(train.duplicates, excluded=0) == val.duplicates
    for split, manifest in (("train", train), ("val", val)):
        overlay = Overlay.load(tmp_path / split / "exclude", manifest_digest=manifest.digest)
        assert np.count_nonzero(overlay.array) == manifest.duplicates.excluded


def test_the_same_build_with_another_rule_is_pointed_to_the_command(
    two_classes: Path, tmp_path: Path, build_small: Build
) -> None:
    out = tmp_path / "out"
    build_small(two_classes, out)
    with pytest.raises(BuildMismatchError, match=r"run `wv-ingest duplicates .*` with the new option, or build into"):
        build_small(two_classes, out, duplicates=DuplicateOptions(near_distance=None))
    with pytest.raises(BuildMismatchError, match="with seed 0, now it is 1; build into a new folder"):
        build_small(two_classes, out, seed=1)


def test_a_table_without_hashes_is_refused(draw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    shards = draw_dataset(tmp_path / "shards", [3, 2])
    table = pq.read_table(shards / "samples.parquet").drop_columns(["phash_fine"])
    pq.write_table(table, shards / "samples.parquet")
    replace(Manifest.load(shards), tables={}).save(shards)  # as those who wrote such tables did
    with pytest.raises(CorruptDataError, match="no column phash_fine, by which duplicates are found"):
        again(shards)


def test_the_command_says_what_it_found(
    two_classes: Path, tmp_path: Path, build_small: Build, ingest: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    build_small(two_classes, out)
    told = ingest("duplicates", out, "--conflict", "report", "--near-distance", "off")
    assert told.returncode == 0, told.stderr
    assert "1 / 0" in told.stdout
    assert "show the same" in told.stdout
    assert json.loads((out / "manifest.json").read_text())["duplicates"]["near_distance"] is None
    wrong = ingest("duplicates", out, "--near-distance", "40")
    assert wrong.returncode == 2
    assert "expected off or 0 … 12, got 40" in wrong.stderr
    missing = ingest("duplicates", tmp_path / "nowhere")
    assert missing.returncode == 1
    assert len([line for line in missing.stderr.splitlines() if not line.startswith("{")]) == 1
