"""Lines of WebVision's lists that are not as they should be: each is a row with an outcome, and none stops a build."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wv_ingest.append import AppendOptions, append
from wv_ingest.counts import stats_document
from wv_ingest.errors import BuildError, SourceError
from wv_ingest.progress import Progress
from wv_ingest.sources import Source, SourceOptions, read_source
from wv_shards import Dataset, Manifest, verify

Build = Callable[..., object]

BAD = [
    ("google/q0001/zz.jpg 99", "google/q0001/zz.jpg", "label-out-of-range"),
    ("google/q0001/zz.jpg -1", "google/q0001/zz.jpg", "label-out-of-range"),
    ("google/q0001/zz.jpg 12345678901234567890", "google/q0001/zz.jpg", "label-out-of-range"),
    ("google/q0001/zz.jpg 1.0", "google/q0001/zz.jpg", "label-not-a-number"),
    ("google/q0001/zz.jpg abc", "google/q0001/zz.jpg", "label-not-a-number"),
    ("google/q0001/zz.jpg", "google/q0001/zz.jpg", "no-label"),
    ("# made by hand", "# made by hand", "no-label"),
    ("../secret.jpg 0", "../secret.jpg", "outside-source"),
    ("/etc/motd 0", "/etc/motd", "outside-source"),
    ("google/q0001/../q0002/b.jpg 0", "google/q0001/../q0002/b.jpg", "outside-source"),
]


def put_first(root: Path, lines: list[str], source: str = "google") -> None:
    path = root / "info" / f"train_filelist_{source}.txt"
    path.write_text("".join(line + "\n" for line in lines) + path.read_text())


def left_out(source: Source) -> list[tuple[object, ...]]:
    assert source.left_out is not None
    return [
        tuple(row[name] for name in ("row", "path", "label", "reason", "detail")) for row in source.left_out.to_pylist()
    ]


def test_every_bad_line_is_a_row_of_its_own(tmp_path: Path, draw_webvision: Callable[..., Path]) -> None:
    root = draw_webvision(tmp_path / "raw", [4, 4])
    before = read_source(root, SourceOptions())
    put_first(root, ["", *(line for line, _, _ in BAD)])
    source = read_source(root, SourceOptions())
    assert left_out(source) == [(i, path.encode(), -1, "bad-row", detail) for i, (_, path, detail) in enumerate(BAD)]
    assert source.rows.equals(before.rows)
    assert source.numbers is not None
    assert source.numbers.tolist() == list(range(len(BAD), len(BAD) + 8))
    assert source.rows_in_all == 8 + len(BAD)
    assert "10 of 18 rows can't be read" in source.warnings[0]
    assert source.warnings[0].endswith("google.txt line 2: label 99 is outside the 2 classes in info/synsets.txt")


def test_lists_are_read_with_tabs_a_mark_and_any_spelling(tmp_path: Path, draw_webvision: Callable[..., Path]) -> None:
    root = draw_webvision(tmp_path / "raw", [4, 4])
    before = read_source(root, SourceOptions())
    path = root / "info" / "train_filelist_google.txt"
    first, second, third, *others = path.read_text().splitlines()
    third = third.replace("google/", "google//")
    lines = [first.replace(" ", "\t"), "./" + second.replace(" ", "  "), third.replace("/img", "/./img"), *others]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    synsets = root / "info" / "synsets.txt"
    synsets.write_bytes(b"\xef\xbb\xbf" + synsets.read_bytes())
    source = read_source(root, SourceOptions())
    assert source.digest() == before.digest()
    assert not source.warnings


def test_a_build_goes_on_and_the_account_adds_up(
    tmp_path: Path, draw_webvision: Callable[..., Path], build_small: Build
) -> None:
    root, out = draw_webvision(tmp_path / "raw", [40, 30]), tmp_path / "out"
    (tmp_path / "secret.jpg").write_bytes((root / "google/q0001/img0000.jpg").read_bytes())
    put_first(root, [line for line, _, _ in BAD])
    build_small(root, out, unlisted=True)
    manifest = Manifest.load(out)
    assert manifest.rejects["bad-row"] == len(BAD)
    assert manifest.rows == 70 + len(BAD) == manifest.samples + sum(manifest.rejects.values())
    assert sum(info.rows for info in manifest.classes) == 70 == sum(info.rows for info in manifest.sources.values())
    rejects = pq.read_table(out / "rejects.parquet").to_pylist()
    assert [(r["path"], r["label"], r["detail"]) for r in rejects if r["reason"] == "bad-row"] == [
        (path, -1, detail) for _, path, detail in BAD
    ]
    assert verify(out) == []
    stats = stats_document(Dataset.open(out))
    assert sum(source["rows"] for source in stats["sources"].values()) == 70
    with pytest.raises(BuildError, match=r"of 80 rows rejected so far.*bad-row 10"):
        build_small(root, tmp_path / "strict", max_reject_fraction=0.1)


def test_a_corrected_line_is_appended(tmp_path: Path, draw_webvision: Callable[..., Path], build_small: Build) -> None:
    root, out = draw_webvision(tmp_path / "raw", [8, 8]), tmp_path / "out"
    path = root / "info" / "train_filelist_google.txt"
    whole = path.read_text()
    path.write_text(whole.replace("img0000.jpg 0", "img0000.jpg zero", 1))
    build_small(root, out)
    before = Manifest.load(out)
    assert before.rejects["bad-row"] == 1
    path.write_text(whole)
    with Progress(io.StringIO()) as progress:
        append(out, root, AppendOptions(workers=1), progress)
    after = Manifest.load(out)
    assert "bad-row" not in after.rejects
    assert (after.rows, after.samples) == (before.rows, before.samples + 1)


def test_bad_lines_of_the_other_origin_are_not_asked_for(tmp_path: Path, draw_webvision: Callable[..., Path]) -> None:
    root = draw_webvision(tmp_path / "raw", [4, 4])
    put_first(root, ["# google", "google/q0001/a.jpg x"])
    put_first(root, ["# flickr", "flickr/q0001/a.jpg x"], "flickr")
    reasons = {}
    for only in ("google", "flickr"):
        source = read_source(root, SourceOptions(only=only))
        rows = left_out(source)
        assert sorted([*(row[0] for row in rows), *source.numbers.tolist()]) == list(range(12))
        reasons[only] = {row[1]: row[3] for row in rows if row[0] in (0, 1, 6, 7)}
        assert Counter(row[3] for row in rows) == {"bad-row": 2, "filtered": 6}
    assert reasons["google"][b"# google"] == reasons["flickr"][b"# flickr"] == "bad-row"
    assert reasons["google"][b"# flickr"] == reasons["flickr"][b"google/q0001/a.jpg"] == "filtered"


def test_a_list_of_which_no_line_can_be_read_is_refused(tmp_path: Path, draw_webvision: Callable[..., Path]) -> None:
    root = draw_webvision(tmp_path / "raw", [4, 4])
    for source in ("google", "flickr"):
        (root / "info" / f"train_filelist_{source}.txt").write_text("a.jpg,0\nb.jpg,1\n")
    with pytest.raises(SourceError, match=r"line 1: expected 'path label', found 'a.jpg,0'; none of the 4 rows"):
        read_source(root, SourceOptions())


def test_validation_lists_have_bad_rows_too(tmp_path: Path, draw_webvision: Callable[..., Path]) -> None:
    root = draw_webvision(tmp_path / "raw", [4, 4])
    path = root / "info" / "val_filelist.txt"
    path.write_text("../x.jpg 0\nval000000.jpg 7\n" + path.read_text())
    source = read_source(root, SourceOptions(split="val"))
    assert [(row[1], row[4]) for row in left_out(source)] == [
        (b"../x.jpg", "outside-source"),
        (b"val_images_256/val000000.jpg", "label-out-of-range"),
    ]
