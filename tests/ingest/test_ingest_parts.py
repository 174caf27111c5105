"""A build in parts, on machines that share nothing but the source: joined, they are the bytes of one machine."""

import errno
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_ingest.build import BuildResult, PartResult
from wv_ingest.errors import BuildError, BuildMismatchError, NothingReadableError, PartsError
from wv_ingest.join import join
from wv_ingest.parts import Part
from wv_ingest.plan import PlannedShard
from wv_ingest.progress import Progress
from wv_shards import BUILD_DIR, Manifest, OutputExistsError, UnfinishedBuildError

Build = Callable[..., BuildResult | PartResult]
Draw = Callable[..., bytes]
FolderBytes = Callable[[Path], dict[str, bytes]]
WriteList = Callable[..., Path]
BuildCommand = Callable[..., list[str]]
Completed = subprocess.CompletedProcess[str]
Ingest = Callable[..., Completed]


def build_parts(build: Build, source: Path, folder: Path, count: int, **options: object) -> list[Path]:
    folders = [folder / f"part{number}" for number in range(1, count + 1)]
    for number, out in enumerate(folders, 1):
        build(source, out, part=Part(number=number, parts=count), **options)
    return folders


def join_quietly(out: Path, folders: list[Path], max_reject_fraction: float = 0.5) -> BuildResult:
    with Progress(io.StringIO()) as progress:
        return join(out, folders, max_reject_fraction, progress)


@pytest.fixture(scope="module")
def as_tars(webvision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`webvision` as its archives are downloaded."""
    root = tmp_path_factory.mktemp("tars") / "raw"
    root.mkdir()
    for name, folder in (("info", "info"), ("google_resized_256", "google"), ("flickr_resized_256", "flickr")):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            tar.add(webvision / folder, folder)
    return root


@pytest.fixture(scope="module")
def built_once(
    webvision: Path,
    tmp_path_factory: pytest.TempPathFactory,
    build_command: BuildCommand,
    ingest: Callable[..., Completed],
) -> list[Path]:
    """All parts of `webvision`, by the command line, with 1, 2 and 3 workers."""
    folder = tmp_path_factory.mktemp("three")
    folders = [folder / f"part{number}" for number in (1, 2, 3)]
    for number, out in enumerate(folders, 1):
        _, _, _, *words = build_command(webvision, out, workers=number)
        assert ingest(*words, "--part", f"{number}/3").returncode == 0
    return folders


@pytest.fixture
def three(built_once: list[Path], tmp_path: Path) -> list[Path]:
    """A copy of these parts."""
    return [Path(shutil.copytree(folder, tmp_path / "three" / folder.name)) for folder in built_once]


def test_parts_joined_are_the_bytes_of_one_machine(
    three: list[Path], reference: Path, tmp_path: Path, folder_bytes: FolderBytes
) -> None:
    before = [folder_bytes(folder) for folder in three]
    assert sum(len(list(folder.rglob("*.tar"))) > 0 for folder in three) == 3, "every part has something to do"
    result = join_quietly(tmp_path / "out", [three[2], three[0], three[1]])
    assert result.manifest.samples == 238
    assert folder_bytes(tmp_path / "out") == folder_bytes(reference)
    assert [folder_bytes(folder) for folder in three] == before, "the parts stay as they are"


def test_parts_of_a_tree_and_of_its_tars_make_the_same_data_set(
    webvision: Path, as_tars: Path, reference: Path, tmp_path: Path, build_small: Build, folder_bytes: FolderBytes
) -> None:
    """One machine has unpacked the archives, the other reads them in place."""
    for number, source in ((1, as_tars), (2, webvision)):
        build_small(source, tmp_path / str(number), part=Part(number=number, parts=2))
    join_quietly(tmp_path / "out", [tmp_path / "1", tmp_path / "2"])
    assert folder_bytes(tmp_path / "out") == folder_bytes(reference)


def test_more_parts_than_shards_leave_some_with_nothing_to_do(
    tmp_path: Path, build_small: Build, encode: Draw, write_list: WriteList, folder_bytes: FolderBytes
) -> None:
    """Of a list, with repeated and filtered rows in it; some parts have only bad images."""
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(encode(i) if i else b"")
    rows = [(f"{i}.jpg", min(i, 2)) for i in range(12)] + [("3.jpg", 2), ("4.jpg", 3)]
    source = write_list(tmp_path / "list.csv", rows)
    chosen = {"class_ids": (0, 2), "max_reject_fraction": 1.0}
    folders = build_parts(build_small, source, tmp_path / "parts", 4, **chosen)
    assert sum(not list(folder.rglob("*.outcomes")) for folder in folders) == 0, "repeated rows are noted in each"
    assert sum(not list(folder.rglob("b*.outcomes")) for folder in folders) == 2
    join_quietly(tmp_path / "out", folders)
    build_small(source, tmp_path / "whole", **chosen)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_every_shard_is_in_one_part_and_parts_are_balanced(sizes: list[int], count: int) -> None:
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    shards = [
        PlannedShard(name=str(i), band=0, start=stop - size, stop=stop)
        for i, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]
    shares = [Part(number=number, parts=count).share(shards) for number in range(1, count + 1)]
    assert sorted(shard.start for share in shares for shard in share) == [shard.start for shard in shards]
    loads = [sum(shard.stop - shard.start for shard in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_a_part_says_what_it_is(
    webvision: Path, tmp_path: Path, ingest: Callable[..., Completed], build_small: Build
) -> None:
    out = tmp_path / "part"
    options = ["--size", 16, "--max-reject-fraction", 0.5, "--workers", 1, "--part", "2/3"]
    done = ingest("build-shards", webvision, out, *options)
    assert done.returncode == 0, done.stderr
    assert "part 2 of 3, complete" in done.stdout
    assert "wv-ingest finalize OUT PART_DIR…" in done.stdout
    with pytest.raises(UnfinishedBuildError, match=r"is part 2 of 3 of a build, complete; `wv-ingest finalize"):
        Manifest.load(out)
    again = build_small(webvision, out, part=Part(number=2, parts=3))
    assert isinstance(again, PartResult)
    assert again.packed_rows == 0
    with pytest.raises(BuildMismatchError, match="with part 2/3, now it is 3/3; finish it as it was begun"):
        build_small(webvision, out, part=Part(number=3, parts=3))
    with pytest.raises(BuildMismatchError, match="with part 2/3, now it is none"):
        build_small(webvision, out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1/0", "a build has 1 part or more, got 1/0; expected a part and how many there are, like 3/16"),
        ("0/0", "a build has 1 part or more"),
        ("0/3", "parts are numbered 1/3 … 3/3, got 0/3"),
        ("4/3", "parts are numbered 1/3 … 3/3, got 4/3"),
        ("3", "expected a part and how many there are, like 3/16, got '3'"),
    ],
)
def test_a_part_that_can_not_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Part.parse(text)


def test_a_finished_data_set_is_no_place_for_a_part(webvision: Path, reference: Path, build_small: Build) -> None:
    with pytest.raises(OutputExistsError, match="holds a finished data set; a part needs a folder of its own"):
        build_small(webvision, reference, part=Part(number=1, parts=2))


def test_what_is_missing_or_no_part_is_named(
    three: list[Path], tmp_path: Path, reference: Path, webvision: Path, build_small: Build
) -> None:
    out = tmp_path / "out"
    shutil.copytree(three[0], tmp_path / "again")
    (tmp_path / "nothing").mkdir()
    build_small(webvision, tmp_path / "of-five", part=Part(number=5, parts=5))
    shutil.copytree(three[2], tmp_path / "begun")
    (tmp_path / "begun" / BUILD_DIR / "part.json").unlink()
    for folders, message in (
        (
            three[1:2],
            "parts 1 and 3 of 3 are missing; build what is missing with `wv-ingest build-shards … --part 1/3`",
        ),
        ([tmp_path / "of-five"], "parts 1, 2, 3 and 4 of 5 are missing"),
        (three[:2], "part 3 of 3 is missing"),
        ([*three, tmp_path / "again"], "part 1/3 is there twice"),
        ([*three, tmp_path / "of-five"], "is part 5/5 and .*part1 is part 1/3; all must be of the same number"),
        ([*three[:2], tmp_path / "begun"], "part 3/3 is not complete; run its build command again"),
        ([*three[:2], reference], "is a finished data set, expected a part"),
        ([*three[:2], tmp_path / "nothing"], "is no part of a build"),
        ([*three[:2], tmp_path / "absent"], "no such folder"),
    ):
        with pytest.raises(PartsError, match=message):
            join_quietly(out, folders)
        assert not out.exists()
    with pytest.raises(PartsError, match="is one of the parts; give the data set a folder of its own"):
        join_quietly(three[0], three)


def test_parts_of_other_builds_are_refused(
    three: list[Path],
    webvision: Path,
    tmp_path: Path,
    build_small: Build,
    monkeypatch: pytest.MonkeyPatch,
    draw_webvision: Callable[..., Path],
) -> None:
    """Another option, seed or codec, other rows, or files that one machine does not have."""
    last = Part(number=3, parts=3)
    build_small(webvision, tmp_path / "seed", part=last, seed=7)
    build_small(webvision, tmp_path / "size", part=last, size_px=17)
    build_small(draw_webvision(tmp_path / "raw", [150, 70, 31, 0, 9, 5]), tmp_path / "rows", part=last)
    shutil.copytree(webvision, tmp_path / "stray", copy_function=os.link)
    (tmp_path / "stray" / "google" / "stray.jpg").write_bytes(b"")
    build_small(tmp_path / "stray", tmp_path / "unlisted", part=last)
    monkeypatch.setattr("wv_ingest.build.codecs", lambda: {"decoder": "other 1.0", "encoder": "other 1.0"})
    build_small(webvision, tmp_path / "codecs", part=last)
    for name, message in (
        ("seed", "was built with seed 7, .*part1 with 0; build all parts alike"),
        ("size", "was built with size 17, .* with 16"),
        ("rows", "was built from other rows or classes"),
        ("unlisted", r"has another plan than .* \(unlisted differ\).* or build all parts with --no-unlisted"),
        ("codecs", "was built with decoder other 1.0, .* with Pillow"),
    ):
        with pytest.raises(PartsError, match=message):
            join_quietly(tmp_path / "out", [*three[:2], tmp_path / name])
    assert not (tmp_path / "out").exists()


def test_a_part_resumed_with_other_codecs_is_refused(
    three: list[Path], webvision: Path, build_small: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wv_ingest.build.codecs", lambda: {"decoder": "other 1.0", "encoder": "other 1.0"})
    with pytest.raises(BuildMismatchError, match=r"with decoder Pillow.*, now it is other 1\.0"):
        build_small(webvision, three[0], part=Part(number=1, parts=3))


def no_links(source: object, target: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_parts_on_another_file_system_are_copied_and_compared(
    three: list[Path],
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder_bytes: FolderBytes,
    webvision: Path,
    build_small: Build,
) -> None:
    monkeypatch.setattr("wv_ingest.transfer.os.link", no_links)
    tar = sorted(three[1].rglob("*.tar"))[0]
    sound = tar.read_bytes()
    tar.write_bytes(sound[:700] + bytes([sound[700] ^ 1]) + sound[701:])
    with pytest.raises(PartsError, match=f"{tar.name}: checksum .*, part.json says .*: copy the part again"):
        join_quietly(tmp_path / "out", three)
    os.truncate(tar, 1024)
    with pytest.raises(PartsError, match=rf"{tar.name}: has 1,024 bytes, part.json says .* --part 2/3`"):
        join_quietly(tmp_path / "out", three)
    build_small(webvision, three[1], part=Part(number=2, parts=3))  # as the message says
    join_quietly(tmp_path / "out", three)
    assert folder_bytes(tmp_path / "out") == folder_bytes(reference)
    assert join_quietly(tmp_path / "out", three).complete_before


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, which may have other names elsewhere."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["b*.outcomes", "b*.idx", "b*.tar", "repeated.outcomes", "plan.json"])
def test_a_damaged_file_of_a_part_is_named_and_nothing_is_made_of_it(
    three: list[Path],
    reference: Path,
    webvision: Path,
    tmp_path: Path,
    build_small: Build,
    folder_bytes: FolderBytes,
    kind: str,
) -> None:
    """Parts on the same file system: nothing needs to be copied, and all is read nevertheless."""
    damaged = sorted((three[1] / BUILD_DIR).glob(kind))[0]
    flip(damaged)
    with pytest.raises(
        PartsError,
        match=rf"^{damaged}: checksum [0-9a-f]{{32}}, part.json says [0-9a-f]{{32}}: copy the part again, or",
    ):
        join_quietly(tmp_path / "out", three)
    assert not (tmp_path / "out" / "manifest.json").exists()
    part = Part(number=2, parts=3)
    if "b*" not in kind:
        with pytest.raises((PartsError, BuildMismatchError), match=rf"remove {three[1] / BUILD_DIR}"):
            build_small(webvision, three[1], part=part)
        shutil.rmtree(three[1])
    again = build_small(webvision, three[1], part=part)
    assert again.packed_rows > 0, "what is damaged is packed again"
    join_quietly(tmp_path / "out", three)
    assert folder_bytes(tmp_path / "out") == folder_bytes(reference)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"part": 2}', '{"plan": "0", "files": {"plan.json": 1}}'])
def test_a_part_whose_notes_are_no_json_or_lack_keys_is_one_line(
    three: list[Path], webvision: Path, tmp_path: Path, ingest: Callable[..., Completed], text: str
) -> None:
    (three[1] / BUILD_DIR / "part.json").write_text(text, encoding="latin-1")
    done = ingest("finalize", tmp_path / "out", *three)
    assert done.returncode == 1
    assert f"{BUILD_DIR}/part.json: is damaged" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_resumed_build_whose_plan_is_damaged_says_so(
    webvision: Path, tmp_path: Path, build_small: Build, leave_unfinished: Callable[[Path, Path], None]
) -> None:
    out = tmp_path / "out"
    leave_unfinished(webvision, out)
    for data in (b"", b"{", b"\xff"):
        (out / BUILD_DIR / "plan.json").write_bytes(data)
        with pytest.raises(BuildMismatchError, match=r"plan.json: is damaged \(.*\); remove .*\.build and start again"):
            build_small(webvision, out)
    shutil.rmtree(out / BUILD_DIR)
    build_small(webvision, out)


KILL = """
import os, signal, sys
from wv_ingest import join
calls = 0
def killing(original):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    return call
setattr(join, sys.argv[1], killing(getattr(join, sys.argv[1])))
from wv_ingest.cli import main
main(sys.argv[3:])
"""


@pytest.mark.parametrize(("function", "call"), [("bring", 1), ("bring", 6), ("write_state", 1), ("finalize", 1)])
def test_a_killed_finalize_goes_on(
    three: list[Path],
    reference: Path,
    tmp_path: Path,
    folder_bytes: FolderBytes,
    function: str,
    call: int,
    build_small: Build,
    webvision: Path,
    start_ranks: Callable[..., list[BaseProcess]],
) -> None:
    """kill -9 just before the so manieth call of a function; then the same command again."""
    out = tmp_path / "out"
    arguments = ["finalize", *map(str, [out, *three]), "--max-reject-fraction", "0.5"]
    (killed,) = start_ranks(1, KILL, function, call, *arguments, stderr=tmp_path / "stderr")
    killed.join(120)
    assert killed.exitcode == -9, (tmp_path / "stderr").read_text()
    with pytest.raises(UnfinishedBuildError, match="run the same `wv-ingest` command again"):
        Manifest.load(out)
    join_quietly(out, three)
    assert folder_bytes(out) == folder_bytes(reference)


def test_an_unfinished_build_is_no_place_to_join_parts(
    three: list[Path], webvision: Path, tmp_path: Path, leave_unfinished: Callable[[Path, Path], None]
) -> None:
    leave_unfinished(webvision, tmp_path / "out")
    with pytest.raises(BuildMismatchError, match="holds an unfinished build of something else"):
        join_quietly(tmp_path / "out", three)


def test_the_limit_of_rejects_is_of_a_parts_rows_and_then_of_all(
    three: list[Path], webvision: Path, tmp_path: Path, build_small: Build
) -> None:
    with pytest.raises(BuildError, match=r"more than --max-reject-fraction 0\.01"):
        build_small(webvision, tmp_path / "part", part=Part(number=1, parts=3), max_reject_fraction=0.01)
    with pytest.raises(BuildError, match=r"26 of 264 rows rejected .* 0\.05"):
        join_quietly(tmp_path / "out", three, 0.05)
    assert not (tmp_path / "out").exists()


def test_parts_without_one_readable_image_are_refused_when_joined(
    tmp_path: Path, build_small: Build, write_list: WriteList
) -> None:
    source = write_list(tmp_path / "list.csv", [(f"absent{i}.jpg", i % 2) for i in range(6)])
    folders = build_parts(build_small, source, tmp_path / "parts", 2, max_reject_fraction=1.0)
    with pytest.raises(NothingReadableError, match="no readable image in 6 rows"):
        join_quietly(tmp_path / "out", folders, 1.0)
    assert not (tmp_path / "out").exists()
