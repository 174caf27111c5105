"""`wv-ingest index`: foreign tars become a data set in place; every sample is in the index or a reject."""

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from wv_ingest.check import CheckOptions
from wv_ingest.errors import BuildMismatchError, IngestError, SourceError
from wv_ingest.index_shards import IndexOptions, index_shards
from wv_ingest.progress import Progress
from wv_loader import Loader
from wv_loader.augment import Crops
from wv_loader.decode_pillow import PillowEngine
from wv_shards import FLAG_BAD, Dataset, Manifest, OutputExistsError, UnfinishedBuildError, verify

Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def index(directory: Path, **options: object) -> Manifest:
    with Progress(io.StringIO()) as progress:
        return index_shards(directory, IndexOptions(**options), progress).manifest  # type: ignore[arg-type]


def turned(encode: Draw, orientation: int, file_format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(7, 60, 40, file_format, exif=exif.tobytes())


def odd_tars(folder: Path, encode: Draw) -> Path:
    """Two tars of another hand: 8 samples that decode, 1 that does not, 3 that are none."""
    write_tar(
        folder / "a.tar",
        [
            ("d.e/one.cls", b"2"),
            ("d.e/one.npy", b"further"),
            ("d.e/one.JPG", encode(1)),
            ("./two words.png", encode(2, file_format="PNG")),
            ("./two words.cls", b"0"),
            ("broken.jpg", encode(3)[:-80]),
            ("broken.cls", b"1"),
            ("nolabel.jpg", encode(4)),
            ("noimage.cls", b"1"),
            ("same.webp", encode(5, file_format="WEBP")),
            ("same.cls", b"1"),
            ("n" * 150 + ".jpg", encode(6)),
            ("n" * 150 + ".cls", b"2"),
            ("bad.jpg", encode(6)),
            ("bad.cls", b"x"),
        ],
    )
    members = [("same.jpg", encode(8)), ("same.cls", b"0")]
    for i, orientation in enumerate((6, 3, 8)):
        members += [(f"t{i}.jpg", turned(encode, orientation)), (f"t{i}.cls", b"0")]
    write_tar(folder / "b.tar", members, tarfile.GNU_FORMAT)
    return folder


def test_every_sample_is_in_the_index_once_or_rejected_once(
    tmp_path: Path, encode: Draw, ingest: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    folder = odd_tars(tmp_path, encode)
    before = {tar.name: (tar.read_bytes(), tar.stat().st_mtime_ns) for tar in folder.glob("*.tar")}
    done = ingest("index", folder, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "1 images do not decode" in done.stdout
    assert {tar.name: (tar.read_bytes(), tar.stat().st_mtime_ns) for tar in folder.glob("*.tar")} == before
    manifest = Manifest.load(folder)
    assert (manifest.rows, manifest.samples) == (12, 9)
    assert manifest.rejects == {"bad-label": 1, "no-image": 1, "no-label": 1}
    assert {c.band for c in manifest.classes} | {s.band for s in manifest.shards} == {None}
    rejects = {row["path"]: row["label"] for row in pq.read_table(folder / "rejects.parquet").to_pylist()}
    assert rejects == {"a.tar/nolabel.jpg": -1, "a.tar/noimage": 1, "a.tar/bad.jpg": -1}
    with Dataset.open(folder) as dataset:
        table = dataset.samples_table().to_pylist()
        with tarfile.open(folder / "a.tar") as a, tarfile.open(folder / "b.tar") as b:
            for ordinal, row in enumerate(table):
                tar, name = row["path"].split("/", 1)
                member = (a if tar == "a.tar" else b).extractfile(name)
                assert member is not None
                assert dataset.read(ordinal) == member.read()
        flagged = [row["path"] for row, f in zip(table, dataset.index["flags"].tolist(), strict=True) if f & FLAG_BAD]
    assert flagged == ["a.tar/broken.jpg"]
    assert [row["key"] for row in table][:2] == ["d.e/one", "./two words"]
    assert verify(folder) == []
    for command in (("verify", folder), ("stats", folder)):
        assert ingest(*command).returncode == 0
    again = ingest("index", folder)
    assert "already complete" in again.stdout


def test_the_loader_masks_what_does_not_decode_and_shows_the_rest_upright(tmp_path: Path, encode: Draw) -> None:
    folder = odd_tars(tmp_path, encode)
    index(folder)
    with Loader(folder, batch_size=9, size_px=32, train=False, rank=0, world_size=1, bad_budget=None) as loader:
        (batch,) = loader
        sizes = loader.dataset.index[["width", "height"]].tolist()
    assert batch.valid.tolist() == [o != 2 for o in range(9)]
    assert batch.labels.tolist() == [2, 0, 1, 1, 2, 0, 0, 0, 0]
    assert sizes[6:] == [(40, 60), (60, 40), (40, 60)]


@pytest.mark.parametrize("check", ["full", "header"])
def test_index_and_loader_agree_on_what_is_upright(tmp_path: Path, encode: Draw, check: str) -> None:
    """A turned picture and the same, turned before it was written, give the same crop: 8 orientations, 4 formats."""
    members, uprights = [], []
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(1, 9):
            raw = turned(encode, orientation, file_format)
            with Image.open(io.BytesIO(raw)) as image:
                uprights.append(ImageOps.exif_transpose(image).convert("RGB"))
            members += [(f"{file_format}{orientation}.jpg", raw), (f"{file_format}{orientation}.cls", b"0")]
    write_tar(tmp_path / "x.tar", members)
    index(tmp_path, check=CheckOptions(size_px=0, min_side_px=1, decode=check))
    with Dataset.open(tmp_path) as dataset:
        assert dataset.index[["width", "height"]].tolist() == [upright.size for upright in uprights]
        data = [dataset.read(i) for i in range(len(uprights))]
    for raw, upright in zip(data, uprights, strict=True):
        plain = io.BytesIO()
        upright.save(plain, "PNG")
        crops = Crops(boxes=np.array([[3.0, 5.0, 31.0, 33.0]] * 2), flips=np.array([True, True]))
        out = np.zeros((2, 24, 24, 3), dtype=np.uint8)
        widths, heights = (np.array([side] * 2) for side in upright.size)
        assert PillowEngine().decode([raw, plain.getvalue()], widths, heights, crops, out) == [None, None]
        difference = np.abs(out[0].astype(int) - out[1].astype(int))
        assert difference.max() <= 3, "rounding at most"


def test_killed_at_any_tar_it_goes_on_to_the_same_bytes(
    tmp_path: Path, encode: Draw, folder_bytes: FolderBytes, start_ingest: Callable[..., "subprocess.Popen[str]"]
) -> None:
    for name in ("killed", "whole"):
        for number in range(6):
            members = []
            for i in range(40):
                members += [(f"s{i}.jpg", encode(100 * number + i, 200, 150)), (f"s{i}.cls", b"%d" % (i % 3))]
            write_tar(tmp_path / name / f"t{number}.tar", members)
    with start_ingest("index", tmp_path / "killed", "--workers", 1) as process:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "killed" / ".build").glob("t*.outcomes"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.kill()
    with pytest.raises(UnfinishedBuildError):
        Manifest.load(tmp_path / "killed")
    index(tmp_path / "killed", workers=2)
    index(tmp_path / "whole")
    assert folder_bytes(tmp_path / "killed") == folder_bytes(tmp_path / "whole")


def test_a_truncated_tar_is_indexed_as_far_as_it_goes(tmp_path: Path, encode: Draw) -> None:
    members = []
    for i in range(5):
        members += [(f"s{i}.jpg", encode(i)), (f"s{i}.cls", b"0")]
    tar = write_tar(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT)
    with tarfile.open(tar) as archive:
        os.truncate(tar, archive.getmember("s4.jpg").offset_data + 20)
    assert index(tmp_path).samples == 4
    assert verify(tmp_path) == []


def test_a_foreign_info_file_is_its_authors(
    tmp_path: Path, encode: Draw, ingest: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """timm's own data sets have one, of other splits: it is neither a problem nor ours to write."""
    folder = odd_tars(tmp_path, encode)
    (folder / "_info.json").write_text("{}")
    index(folder)
    done = ingest("verify", folder, "--repair")
    assert done.returncode == 0, done.stdout
    assert (folder / "_info.json").read_text() == "{}"


def test_verify_finds_a_foreign_index_that_lies(tmp_path: Path, encode: Draw) -> None:
    folder = odd_tars(tmp_path, encode)
    index(folder)
    lines = (folder / "b.idx").read_text().splitlines()
    (folder / "b.idx").write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:], ""]))
    assert [problem.path.name for problem in verify(folder)] == ["b.idx"]


def test_refusals_name_what_is_in_the_way(tmp_path: Path, encode: Draw) -> None:
    one = [("a.jpg", encode(1)), ("a.cls", b"0")]
    with pytest.raises(SourceError, match=r"no \*\.tar"):
        index(tmp_path)
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "x.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError, match="compressed tars can't be read at random"):
        index(tmp_path / "gz")
    write_tar(tmp_path / "idx" / "x.tar", one)
    (tmp_path / "idx" / "x.idx").write_text("v1.2 0\n")
    with pytest.raises(OutputExistsError, match="lists other members"):
        index(tmp_path / "idx")
    (tmp_path / "idx" / "x.idx").unlink()
    assert index(tmp_path / "idx").samples == 1
    write_tar(tmp_path / "idx" / "y.tar", one)
    with pytest.raises(BuildMismatchError, match="holds an index with tars"):
        index(tmp_path / "idx")
    write_tar(tmp_path / "none" / "x.tar", [("a.jpg", encode(1))])
    with pytest.raises(IngestError, match="none of its 1 samples has a label"):
        index(tmp_path / "none")
    assert not (tmp_path / "none" / ".build").exists()


def test_names_of_classes_come_from_a_file_or_the_json(tmp_path: Path, encode: Draw) -> None:
    members = []
    for i, name in enumerate(["tench", "cock"]):
        members += [(f"s{i}.jpg", encode(i)), (f"s{i}.json", json.dumps({"m": {"c": name}}).encode())]
    write_tar(tmp_path / "x.tar", members)
    assert [c.name for c in index(tmp_path, label_key="m.c").classes] == ["cock", "tench"]


@pytest.mark.usefixtures("dali")
def test_dali_reads_foreign_tars_by_our_index(tmp_path: Path, encode: Draw) -> None:
    from nvidia.dali import fn, pipeline_def

    write_tar(
        tmp_path / "x.tar",
        [("a b.cls", b"1"), ("a b.jpg", encode(1)), ("n.jpg", encode(3)), ("c.jpg", encode(2)), ("c.cls", b"0")],
    )
    index(tmp_path)
    with Dataset.open(tmp_path) as dataset:
        images = [dataset.read(i) for i in range(2)]

    @pipeline_def(batch_size=2, num_threads=1, device_id=None)
    def read() -> object:
        paths = [str(tmp_path / "x.tar")]
        read = fn.readers.webdataset(paths=paths, index_paths=[str(tmp_path / "x.idx")], ext=["jpg", "cls"])
        return tuple(read)  # DALI refuses a list of outputs

    pipeline = read()
    pipeline.build()
    jpgs, classes = pipeline.run()
    assert [bytes(bytearray(jpg)) for jpg in jpgs] == images
    assert [int(bytes(bytearray(c))) for c in classes] == [1, 0]
