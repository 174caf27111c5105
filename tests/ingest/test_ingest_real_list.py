"""Laws 1 and 2 on the real list of WebVision 1.0's first ten classes, with drawn images behind it and every glitch."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wv_ingest.build import BuildResult
from wv_ingest.errors import BuildError
from wv_ingest.keys import key_of
from wv_shards import Manifest, verify

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]

GLITCHES = ("missing", "empty", "truncated", "not-an-image", "unreadable")
EVERY = 40
"""So many rows from one glitch to the next."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A drawn tree behind the real list."""

    root: Path
    rows: list[tuple[str, int]]
    """(path, label) in the list's order; the last three repeat earlier paths."""
    reasons: dict[str, str]
    """Of the paths that are broken: why they can't be packed."""


@pytest.fixture(scope="module")
def raw(test_data: Path, tmp_path_factory: pytest.TempPathFactory, encode: Draw) -> Raw:
    """A few drawn files under all names, every fortieth broken; repeated rows of the same and of another class."""
    root = tmp_path_factory.mktemp("real") / "raw"
    (root / "info").mkdir(parents=True)
    lines = (test_data / "webvision1_train_classes_0-9.txt").read_text().splitlines()
    rows = [(path, int(label)) for path, label in (line.rsplit(" ", 1) for line in lines)]
    rows += [rows[100], (rows[200][0], 9 - rows[200][1]), rows[EVERY - 1]]
    images = [encode(seed, 12, 10) for seed in range(20)]
    broken = {"empty": b"", "truncated": images[0][:-40], "not-an-image": b"<html>404</html>"}
    names = {}
    for name, data in {**{str(i): image for i, image in enumerate(images)}, **broken}.items():
        names[name] = root / "info" / f"drawn-{name}"
        names[name].write_bytes(data)
    reasons: dict[str, str] = {}
    for number, (path, _) in enumerate(rows[:-3]):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if number % EVERY == EVERY - 1:
            reasons[path] = GLITCHES[number // EVERY % len(GLITCHES)]
        if reasons.get(path) == "unreadable":
            (root / path).mkdir()
        elif reasons.get(path) != "missing":
            os.link(names[reasons.get(path, str(number % 20))], root / path)
    (root / "info" / "train_filelist_all.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    (root / "info" / "synsets.txt").write_text("".join(f"n{i:08d} fish {i}\n" for i in range(11)))
    return Raw(root=root, rows=rows, reasons=reasons)


@pytest.fixture(scope="module")
def built(raw: Raw, tmp_path_factory: pytest.TempPathFactory, build_small: Build) -> Path:
    out = tmp_path_factory.mktemp("built") / "shards"
    build_small(raw.root, out, workers=2)
    return out


def test_every_row_has_the_outcome_that_its_file_deserves(raw: Raw, built: Path) -> None:
    """Law 1, row by row: what is packed, and why the rest is not, is known before."""
    expected: Counter[tuple[str, int, str]] = Counter()
    seen = set()
    for path, label in raw.rows:
        reason = "repeated-row" if path in seen else raw.reasons.get(path, "packed")
        seen.add(path)
        expected[path, label, reason] += 1
    samples = pq.read_table(built / "samples.parquet", columns=["path", "label"]).to_pylist()
    rejects = pq.read_table(built / "rejects.parquet").to_pylist()
    found = Counter((row["path"], row["label"], "packed") for row in samples)
    found.update((row["path"], row["label"], row["reason"]) for row in rejects)
    assert found == expected
    manifest = Manifest.load(built)
    assert (manifest.rows, manifest.samples) == (25_747, len(samples))
    assert manifest.rejects == dict(sorted(Counter(row["reason"] for row in rejects).items()))
    assert min(manifest.rejects.values()) == manifest.rejects["repeated-row"] == 3
    details = [row["detail"] for row in rejects if row["reason"] == "repeated-row"]
    assert details == ["same-label", "other-label", "same-label"]
    assert not verify(built)


def test_the_tars_hold_what_the_tables_say_under_keys_that_lead_back(raw: Raw, built: Path) -> None:
    """Keys are unique, ASCII and short, though names repeat across queries and begin with dashes."""
    table = pq.read_table(built / "samples.parquet", columns=["key", "path", "label"]).to_pylist()
    path_of = {row["key"]: row["path"] for row in table}
    assert len(path_of) == len(table)
    paths, labels = {}, {}
    for tar_path in built.glob("*.tar"):
        with tarfile.open(tar_path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                assert member.name.isascii()
                assert len(member.name) <= 99
                if kind == "json":
                    paths[key] = json.load(tar.extractfile(member))["path"]  # type: ignore[arg-type] # a file
                elif kind == "cls":
                    labels[key] = int(tar.extractfile(member).read())  # type: ignore[union-attr] # a file
    assert paths == path_of
    assert labels == {row["key"]: row["label"] for row in table}
    assert all(key_of(path.encode()) == key for key, path in path_of.items())
    base_names = Counter(path.rsplit("/", 1)[1] for path in path_of.values())
    assert sum(n for n in base_names.values() if n > 1) > 4_000  # what a merge by base name would mix up
    assert sum(name.startswith("-") for name in base_names) > 100


def test_other_workers_and_a_stop_in_between_give_the_same_bytes(
    raw: Raw, tmp_path: Path, build_small: Build, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    """Law 2 on two of the classes: one worker, stopped by the limit of rejects when a part is packed, and gone on with.

    The law is held for kills at every place by test_ingest_kill.py; here it is the real list's names and bands.
    """
    out, classes = tmp_path / "out", (0, 1)
    whole = build_small(raw.root, tmp_path / "whole", class_ids=classes, workers=2).manifest
    with pytest.raises(BuildError, match="max-reject-fraction"):
        build_small(raw.root, out, class_ids=classes, max_reject_fraction=0.01)
    done = len(list((out / ".build").glob("*.outcomes")))
    assert 1 < done < len(whole.shards)
    build_small(raw.root, out, class_ids=classes)
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
