"""The report of shards: one safe file whose numbers are the manifest's, whatever the data set holds."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from wv_ingest.build import BuildResult
from wv_ingest.check import Reason
from wv_ingest.cli import main
from wv_ingest.progress import Progress
from wv_ingest.report_copies import COPIES, GROUPS
from wv_ingest.report_data import SHEET_CLASSES, SHEET_SAMPLES, gather
from wv_ingest.report_examples import EXAMPLES
from wv_ingest.report_html import add_report
from wv_ingest.report_parts import plain, share
from wv_ingest.report_pictures import rejected_thumbnails
from wv_ingest.report_rejects import MEANING
from wv_shards import DUPLICATES_FILE, DUPLICATES_SCHEMA, SAMPLES_FILE, Dataset, Manifest, Overlay, verify

Build = Callable[..., BuildResult]
Draw = Callable[..., bytes]
DrawDataset = Callable[..., Path]
_VOID = {"meta", "img", "br", "path"}


class Page(HTMLParser):
    """A page's elements, texts and tables by section; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.section = ""
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        elif tag == "table":
            self.tables.setdefault(self.section, []).append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.tables[self.section][-1][-1][-1] += data
        if not {"style", "script", "title"} & set(self.open):
            self.texts[self.section] = self.texts.get(self.section, "") + data

    def numbers(self, section: str, table: int = 0, columns: tuple[int, ...] = (1,)) -> dict[str, list[int]]:
        """First cell of every row → the whole numbers of some columns."""
        rows = self.tables[section][table][1:]
        return {row[0]: [int(row[c].replace(",", "")) for c in columns] for row in rows}


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert isinstance(result, Result)
    return result


def report_of(shards: Path, out: Path) -> Page:
    result = invoke("report", shards, "-o", out / "page.html")
    assert result.exit_code == 0, result.output
    return Page((out / "page.html").read_text(encoding="utf-8"))


def rewrite(directory: Path, **changes: object) -> None:
    """The same data set with another manifest."""
    replace(Manifest.load(directory), **changes).save(directory)  # type: ignore[arg-type] # any field


def pictures(page: Page) -> int:
    return sum(tag == "img" and name == "src" for tag, name, _ in page.attributes)


def test_the_account_is_the_manifests_and_adds_up(reference: Path, tmp_path: Path) -> None:
    page, manifest = report_of(reference, tmp_path), Manifest.load(reference)
    account = {name: n for name, [n] in page.numbers("account").items()}
    assert account == {"packed": manifest.samples, **manifest.rejects, "sum": manifest.rows}
    assert "It adds up" in page.texts["account"]
    for reason, n in manifest.rejects.items():
        assert f"{reason}: {n}" in page.texts["rejects"]


def test_classes_bands_and_sources_are_those_of_stats(reference: Path, tmp_path: Path) -> None:
    page = report_of(reference, tmp_path)
    stats = json.loads(invoke("stats", reference, "--json").output)
    heads = page.tables["classes"][1][0]
    assert heads[-4:] == ["flickr, rows", "flickr, packed", "google, rows", "google, packed"]
    listed = page.numbers("classes", 1, (heads.index("rows"), heads.index("packed"), -4, -3, -2, -1))
    assert len(listed) == len(stats["classes"]) == 6  # the one without rows, too
    for c in stats["classes"]:
        by_source = [c["sources"][name][what] for name in ("flickr", "google") for what in ("rows", "samples")]
        assert listed[c["name"]] == [c["rows"], c["samples"], *by_source]
    bands = page.numbers("bands", 0, (2, 3, 4))
    for b in stats["bands"]:
        name = "without rows" if b["band"] is None else str(b["band"])
        assert bands.pop(name) == [b["classes"], b["rows"], b["samples"]]
    assert bands == {"all": [6, 264, stats["samples"]]}
    sources = page.numbers("sources", 0, (2, 3))
    assert sources == {name: [s["rows"], s["samples"]] for name, s in stats["sources"].items()}
    assert "Without images: n00010003 thing 3, entity 3" in page.texts["classes"]


def test_the_page_is_one_file_that_loads_nothing(reference: Path, tmp_path: Path) -> None:
    page = report_of(reference, tmp_path)
    assert pictures(page) > 10
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "data", "poster", "action", "background"):
            assert value.startswith("data:image/jpeg;base64,"), (tag, name, value[:60])
        if name == "href":
            assert value.startswith("#")
        assert not name.startswith("on")
    text = re.sub('base64,[^"]*', "", (tmp_path / "page.html").read_text())
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<object", text)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for _, name, value in page.attributes if name == "href"} == {f"#{i}" for i in ids}


def test_the_page_is_the_data_sets_alone(reference: Path, tmp_path: Path, build_small: Build, webvision: Path) -> None:
    """Not of the folder, the time or the workers: a build that is repeated gives the same page."""
    build_small(webvision, tmp_path / "again", workers=3)
    report_of(tmp_path / "again", tmp_path)
    assert (tmp_path / "page.html").read_bytes() == (reference / "report.html").read_bytes()


def test_names_and_paths_are_text_whatever_they_hold(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    hostile = ['<script>alert("x")</script>', '"><img src=x onerror=alert(1)>', "\u202egnp.exe", "a\u0000b & 'c'"]
    folder = tmp_path / "raw"
    rows = []
    for place, name in enumerate(hostile):
        for path in (f"{place}.jpg", f"<b>{place}'\".jpg", f"gone-\u202e{place}.jpg"):
            if "gone" not in path:
                folder.mkdir(exist_ok=True)
                (folder / path).write_bytes(encode(place + len(path)))
            rows.append(json.dumps({"path": path, "label": name}))
    (folder / "list.jsonl").write_text("\n".join(rows))
    shards = tmp_path / "out"
    build_small(folder / "list.jsonl", shards)
    rewrite(shards, options={"</style><script>": "http://example.org/HALF"}, codecs={})
    manifest = shards / "manifest.json"
    manifest.write_text(manifest.read_text().replace("HALF", "\\ud800"))
    page = report_of(shards, tmp_path)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("<script>") == text.count("</script>") == text.count("</style>") == 1
    assert pictures(page) == 8
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not re.search("[\u202e\ud800-\udfff\x00]", text)
    assert hostile[0] in page.texts["classes"]
    assert "gone-\\u202e0.jpg" in page.texts["rejects"]
    assert "\\ud800" in page.texts["shards"]


def test_paths_that_are_not_utf_8_are_shown_as_the_tables_hold_them(
    tmp_path: Path, encode: Draw, build_small: Build
) -> None:
    folder = tmp_path / "raw" / "class"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encode(1))
    with open(bytes(folder) + b"/\xff.jpg", "wb") as file:
        file.write(b"no image")
    build_small(tmp_path / "raw", tmp_path / "out")
    assert "class/\\xff.jpg" in report_of(tmp_path / "out", tmp_path).texts["rejects"]


def test_what_a_data_set_does_not_have_is_one_line(tmp_path: Path, draw_dataset: DrawDataset) -> None:
    """No sources, no rejects, no duplicates, no metadata, no bands, options of another format, an empty class."""
    shards = draw_dataset(tmp_path / "shards", [5, 0, 1])
    manifest = Manifest.load(shards)
    rewrite(
        shards,
        classes=tuple(replace(c, band=None) for c in manifest.classes),
        shards=tuple(replace(s, band=None) for s in manifest.shards),
        options={"source_format": "webdataset", "nested": {"a": [1, None]}},
    )
    page = report_of(shards, tmp_path)
    lines = {
        "rejects": "Every row of the source was packed.",
        "bands": "These tars were not packed by band.",
        "sources": "The source has no parts such as google and flickr.",
        "metadata": "The source has no metadata.",
        "duplicates": "Duplicates have not been looked for.",
    }
    for section, line in lines.items():
        assert page.texts[section].partition(line)[1:] == (line, "\n")
        assert section not in page.tables
    assert page.numbers("classes", 1, (3, 4)) == {"class 0": [5, 5], "class 1": [0, 0], "class 2": [1, 1]}
    assert pictures(page) == 6


def test_a_data_set_without_any_image_has_a_page(tmp_path: Path, draw_dataset: DrawDataset) -> None:
    page = report_of(draw_dataset(tmp_path / "shards", [0, 0], rejects=3), tmp_path)
    assert page.numbers("account") == {"packed": [0], "empty": [3], "sum": [3]}
    assert "There are no images." in page.texts["sizes"]


def write_duplicates(shards: Path, rows: list[tuple[int, int, str, int, bool, bool]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, DUPLICATES_SCHEMA.types, strict=True)]
    pq.write_table(pa.table(arrays, schema=DUPLICATES_SCHEMA), shards / DUPLICATES_FILE)


def test_duplicates_stand_beside_what_they_are_copies_of(tmp_path: Path, draw_dataset: DrawDataset) -> None:
    shards = draw_dataset(tmp_path / "shards", [60, 30])
    with Dataset.open(shards) as dataset:
        keys = dataset.samples_table(["key"]).column("key").to_pylist()
        labels = dataset.index["label"].tolist()
    one = [o for o in range(90) if labels[o] == 0]
    other = labels.index(1)
    rows = [(o, one[0], "exact", 0, True, True) for o in one[1:9]] + [(other, one[0], "near", 7, False, False)]
    rows += [(one[11], one[10], "near", 3, True, True)]
    pair = one[20], labels.index(1, other + 1)
    rows += [(*pair, "exact", 0, False, False), (*pair[::-1], "exact", 0, False, False)]  # shown once
    write_duplicates(shards, sorted(rows))
    page = report_of(shards, tmp_path)
    table = [row[1:] if row[0] == "all" else row for row in page.tables["duplicates"][0][1:]]
    assert table == [
        ["exact", "the same", "8", "8"],
        ["exact", "another", "2", "0"],
        ["near", "the same", "1", "1"],
        ["near", "another", "1", "0"],
        ["", "12", "9"],
    ]
    text = page.texts["duplicates"]
    assert text.index(keys[one[0]]) < text.index(keys[other]) < text.index(keys[one[10]])  # the largest group first
    assert "near, 7 bits apart" in text
    assert f"near, 3 bits apart, excluded{keys[one[11]]}" in text
    assert "and 5 more" in text
    assert pictures(page) == (1 + COPIES) + 2 + 2 + 2 * SHEET_SAMPLES


def test_what_was_taken_down_is_not_shown_among_copies_either(tmp_path: Path, draw_dataset: DrawDataset) -> None:
    """A copy that is excluded as such is shown; one that was excluded by hand is not, nor a first one."""
    shards = draw_dataset(tmp_path / "shards", [30])
    write_duplicates(
        shards, [(2, 1, "exact", 0, True, True), (3, 1, "exact", 0, True, False), (6, 5, "near", 1, True, True)]
    )
    with Dataset.open(shards) as dataset:
        array = np.zeros(30, dtype=bool)
        array[[2, 3, 5, 6]] = True
        Overlay(kind="exclude", array=array, manifest_digest=dataset.manifest.digest).save(shards / "exclude")
        keys = dataset.samples_table(["key"]).column("key").to_pylist()
        assert gather(dataset).unseen == {3, 5}
    page = report_of(shards, tmp_path)
    assert page.texts["duplicates"].count("not shown") == 2
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert not {keys[3], keys[5]} & set(alts)
    assert {keys[1], keys[2], keys[6]} <= set(alts)


def test_excluding_by_key_writes_the_page_again(reference: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(reference, tmp_path / "copy")
    shown = re.search('alt="([^"]+)"', (shards / "report.html").read_text())
    assert shown is not None
    (tmp_path / "keys").write_text(shown[1])
    assert invoke("exclude", shards, "--keys", tmp_path / "keys").exit_code == 0
    assert f'alt="{shown[1]}"' not in (shards / "report.html").read_text()
    assert "excluded by overlay" in Page((shards / "report.html").read_text()).texts[""]


def test_pictures_are_bounded_and_the_largest_groups_of_every_kind_are_shown(
    tmp_path: Path, draw_dataset: DrawDataset
) -> None:
    """40 groups of 7 copies, and one small group of each rare kind, in a data set of 30 classes."""
    shards = draw_dataset(tmp_path / "shards", [20] * 30)
    rows = [(8 * g + i, 8 * g, "exact", 0, True, False) for g in range(40) for i in range(1, 8)]
    rows += [(401, 400, "exact", 0, False, False), (403, 402, "near", 5, True, False)]
    write_duplicates(shards, rows)
    with Dataset.open(shards) as dataset:
        shown = gather(dataset).duplicates
    assert shown is not None
    assert [group.first for group in shown.shown] == [8 * g for g in range(GROUPS)] + [400, 402]
    assert shown.groups == 42
    page = report_of(shards, tmp_path)
    assert pictures(page) == GROUPS * (1 + COPIES) + 4 + 3 * SHEET_CLASSES * SHEET_SAMPLES
    assert 3 * GROUPS * (1 + COPIES) + 3 * SHEET_CLASSES * SHEET_SAMPLES <= 200


def test_sizes_are_counted_once_each(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    for place, (width, height) in enumerate([(10, 10), (40, 10), (10, 200), (30, 33), (500, 500)]):
        (tmp_path / "raw" / "c").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / "c" / f"{place}.jpg").write_bytes(encode(place, width, height))
    build_small(tmp_path / "raw", tmp_path / "out", size_px=0)
    with Dataset.open(tmp_path / "out") as dataset:
        sizes, stored = gather(dataset).sizes, np.array(dataset.index["size"])
    for histogram in (sizes.sides, sizes.shapes, sizes.bytes):
        assert histogram.counts.sum() == 5
        assert len(histogram.edges) == len(histogram.counts) + 1
    assert np.histogram([10, 10, 10, 30, 500], sizes.sides.edges)[0].tolist() == sizes.sides.counts.tolist()
    assert np.histogram(stored, sizes.bytes.edges)[0].tolist() == sizes.bytes.counts.tolist()
    assert sizes.figures[0] == ("shorter side", 10.0, 112.0, 500.0)
    assert sizes.figures[1] == ("longer side", 10.0, 156.6, 500.0)


def test_examples_of_rejects_are_few_and_of_every_detail(tmp_path: Path, draw_dataset: DrawDataset) -> None:
    shards = draw_dataset(tmp_path / "shards", [3], rejects=300)
    table = pq.read_table(shards / "rejects.parquet")
    details = ["png"] * 290 + ["rare"] + ["gif"] * 9
    table = table.set_column(3, "detail", pa.array(details))
    pq.write_table(table, shards / "rejects.parquet", row_group_size=50)
    with Dataset.open(shards) as dataset:
        known = gather(dataset).rejects["empty"]
    assert known.details == {"png": 290, "rare": 1, "gif": 9}
    assert len(known.examples) == EXAMPLES
    assert {example.detail for example in known.examples} == {"png", "rare", "gif"}


def test_metadata_and_its_gaps(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    root = tmp_path / "raw"
    (root / "google" / "q0001").mkdir(parents=True)
    (root / "info" / "google").mkdir(parents=True)
    for i in range(4):
        (root / "google" / "q0001" / f"{i}.jpg").write_bytes(encode(i))
    (root / "info" / "train_filelist_google.txt").write_text("".join(f"google/q0001/{i}.jpg 0\n" for i in range(4)))
    lines = "".join(f"google/q0001.json {i + 1}\n" for i in range(4))
    (root / "info" / "train_meta_list_google.txt").write_text(lines)
    records = [{"title": "a", "url": "b"}, {"title": "c"}, {}]
    (root / "info" / "google" / "q0001.json").write_text(json.dumps(records))
    build_small(root, tmp_path / "out")
    page = report_of(tmp_path / "out", tmp_path)
    have = page.numbers("metadata")
    assert (have["title"], have["url"], have["rank"]) == ([2], [1], [0])
    assert page.numbers("metadata", 1) == {"no-record": [1]}


def test_a_damaged_sample_has_no_picture_and_stops_nothing(tmp_path: Path, draw_dataset: DrawDataset) -> None:
    shards = draw_dataset(tmp_path / "shards", [4])
    with Dataset.open(shards) as dataset:
        offset = int(dataset.index["offset"][2])
    tar = next(shards.glob("*.tar"))
    with open(tar, "r+b") as file:
        file.seek(offset + 10)
        file.write(b"\x00\x00\x00")
    page = report_of(shards, tmp_path)
    assert pictures(page) == 3
    assert "not shown" in page.texts["samples"]


def test_excluded_samples_are_not_drawn_and_the_curve_shows_what_is_left(
    tmp_path: Path, draw_dataset: DrawDataset
) -> None:
    shards = draw_dataset(tmp_path / "shards", [12, 4])
    with Dataset.open(shards) as dataset:
        labels = np.array(dataset.index["label"])
        hidden = labels == 1
        hidden[np.flatnonzero(labels == 0)[:10]] = True
        Overlay(kind="exclude", array=hidden, manifest_digest=dataset.manifest.digest).save(shards / "exclude")
        sheet = gather(dataset).sheet
    assert sheet == ((0, tuple(sheet[0][1])),)
    assert sorted(sheet[0][1]) == np.flatnonzero(~hidden).tolist()
    page = report_of(shards, tmp_path)
    assert page.tables["classes"][0][0] == ["images a class", "rows", "packed", "shown"]
    largest = next(row for row in page.tables["classes"][0] if row[0] == "largest")
    assert largest[1:] == ["12", "12", "2"]


# The build's own report


def test_a_build_writes_its_report_unless_told_not_to(webvision: Path, tmp_path: Path) -> None:
    build = ("build-shards", webvision, tmp_path / "out", "--size", 16, "--max-reject-fraction", 0.5, "--workers", 1)
    assert invoke(*build, "--no-report").exit_code == 0
    report = tmp_path / "out" / "report.html"
    assert not report.exists()
    assert not verify(tmp_path / "out")
    assert invoke(*build).exit_code == 0  # it is complete; what is missing is made
    written = report.stat().st_mtime_ns
    assert Page(report.read_text()).numbers("account")["sum"] == [264]
    assert not verify(tmp_path / "out")
    assert invoke(*build).exit_code == 0
    assert report.stat().st_mtime_ns == written


def test_a_report_that_fails_is_a_warning(
    tmp_path: Path, draw_dataset: DrawDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = draw_dataset(tmp_path / "shards", [4])
    (shards / SAMPLES_FILE).unlink()
    with Progress() as progress:
        add_report(shards, progress)
    warnings = [json.loads(line) for line in capsys.readouterr().err.splitlines() if '"warning"' in line]
    assert len(warnings) == 1
    assert warnings[0]["message"].startswith("no report.html: ")
    assert "run `wv-ingest report" in warnings[0]["message"]
    assert not list(shards.glob("report.html*"))


def test_mistakes_are_one_line(tmp_path: Path, reference: Path) -> None:
    result = invoke("report", tmp_path)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert "no manifest.json in it" in result.output
    assert invoke("report", reference, "-o", tmp_path / "page.txt").exit_code == 2
    shutil.copytree(reference, tmp_path / "copy")
    (tmp_path / "copy" / SAMPLES_FILE).write_bytes(b"?")
    result = invoke("report", tmp_path / "copy")
    assert (result.exit_code, "samples.parquet: not a readable table" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "–"), (0, 9, "0.0%"), (9, 9, "100.0%"), (1, 3, "33.3%"), (1, 3_000, "0.03%"), (1, 10**9, "<0.001%")],
)
def test_a_share_is_never_rounded_to_nothing_or_all(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text
    if whole:
        assert (share(whole - part, whole) == "100.0%") == (part == 0)


def test_plain_text_keeps_what_can_be_read() -> None:
    assert plain("Tüte שלום <&\"'>") == "Tüte שלום &lt;&amp;&quot;&#x27;&gt;"
    assert plain("a\tb\u202ec\ud800\x85") == "a\\tb\\u202ec\\ud800\\x85"


def test_rejected_files_are_shown_where_the_source_is_given(tmp_path: Path, encode: Draw, build_small: Build) -> None:
    """Half a picture is one; pipes, bombs, what is gone since and what is no image have none and stop nothing."""
    folder = tmp_path / "raw" / "c"
    folder.mkdir(parents=True)
    whole = encode(1, 200, 200)
    for name, data in {"whole": whole, "half": whole[: len(whole) // 2], "text": b"no image", "gone": b""}.items():
        (folder / f"{name}.jpg").write_bytes(data)
    small = io.BytesIO()
    Image.new("1", (20_001, 20_001)).save(small, "PNG")
    (folder / "bomb.png").write_bytes(small.getvalue())
    build_small(tmp_path / "raw", tmp_path / "out", max_reject_fraction=1.0)
    (folder / "gone.jpg").unlink()
    (folder / "text.jpg").unlink()
    os.mkfifo(folder / "text.jpg")
    assert pictures(report_of(tmp_path / "out", tmp_path)) == 1
    result = invoke("report", tmp_path / "out", "-o", tmp_path / "page.html", "--source", tmp_path / "raw")
    assert result.exit_code == 0
    page = Page((tmp_path / "page.html").read_text())
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    [key] = pq.read_table(tmp_path / "out" / SAMPLES_FILE).column("key").to_pylist()
    assert sorted(alts) == ["c/half.jpg", key]
    missing = invoke("report", tmp_path / "out", "--source", tmp_path / "nowhere")
    assert (missing.exit_code, missing.output.count("\n")) == (1, 1)


def test_a_rejected_path_that_leads_out_of_the_source_is_not_opened(
    tmp_path: Path, encode: Callable[..., bytes]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for place in (source / "inside.jpg", tmp_path / "secret.jpg"):
        place.write_bytes(encode(1))
    wanted = ["inside.jpg", "../secret.jpg", str(tmp_path / "secret.jpg")]
    assert set(rejected_thumbnails(source, wanted)) == {"inside.jpg"}


def test_every_reason_is_explained() -> None:
    assert set(MEANING) == set(Reason)
