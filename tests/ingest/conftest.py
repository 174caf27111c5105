"""Drawn sources for ingest, and the command line as a real process."""

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wv_ingest import pool
from wv_ingest.build import BuildResult, PartResult, build, build_part
from wv_ingest.build_options import BuildOptions
from wv_ingest.check import CheckOptions
from wv_ingest.cli import main
from wv_ingest.errors import BuildError
from wv_ingest.progress import Progress
from wv_ingest.report_html import REPORT_FILE
from wv_ingest.sources import SourceOptions

Draw = Callable[..., bytes]


@pytest.fixture(autouse=True, scope="module")
def warm_workers(request: pytest.FixtureRequest, warm: ForkServerContext) -> Iterator[None]:
    """For builds in this process: spawned workers import for most of their time.

    Spawned are those of command lines that are processes, and of tests of the pool itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem != "test_ingest_pool":
            patch.setattr(pool, "multiprocessing", SimpleNamespace(get_context=lambda _: warm))
        yield


def encode(seed: int, width: int = 24, height: int = 20, file_format: str = "JPEG", **options: object) -> bytes:
    """A small picture of coarse random colours as a file of the given format."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session", name="encode")
def encode_fixture() -> Draw:
    return encode


def draw_webvision(root: Path, class_sizes: Sequence[int], *, val_per_class: int = 2, digits: int = 4) -> Path:
    """A tree in WebVision's layout: class c has class_sizes[c] images, of which every tenth file is broken."""
    lists: dict[str, list[str]] = {"google": [], "flickr": []}
    number = 0
    for label, size in enumerate(class_sizes):
        for i in range(size):
            source = ("google", "flickr")[i % 2]
            path = f"{source}/q{label + 1:0{digits}d}/img{i:04d}.jpg"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            data = encode(number)
            if number % 10 == 9:
                data = (b"", b"no image at all", data[:-20])[number // 10 % 3]
            (root / path).write_bytes(data)
            lists[source].append(f"{path} {label}")
            number += 1
    (root / "info").mkdir(parents=True, exist_ok=True)
    for source, lines in lists.items():
        (root / "info" / f"train_filelist_{source}.txt").write_text("".join(line + "\n" for line in lines))
    synsets = [f"n{10_000 + label:08d} thing {label}, entity {label}" for label in range(len(class_sizes))]
    (root / "info" / "synsets.txt").write_text("".join(line + "\n" for line in synsets))
    (root / "val_images_256").mkdir()
    val = [(f"val{i:06d}.jpg", i % len(class_sizes)) for i in range(val_per_class * len(class_sizes))]
    for i, (name, _) in enumerate(val):
        (root / "val_images_256" / name).write_bytes(encode(1_000_000 + i))
    (root / "info" / "val_filelist.txt").write_text("".join(f"{name} {label}\n" for name, label in val))
    return root


@pytest.fixture(scope="session", name="draw_webvision")
def draw_webvision_fixture() -> Callable[..., Path]:
    return draw_webvision


@pytest.fixture(scope="session")
def webvision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only by agreement: 5 classes of 4 … 150 rows, one class without any, a tenth of the files broken."""
    return draw_webvision(tmp_path_factory.mktemp("webvision") / "raw", [150, 70, 31, 0, 9, 4])


def write_list(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("path", "label")) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="session", name="write_list")
def write_list_fixture() -> Callable[..., Path]:
    return write_list


@pytest.fixture(scope="session")
def build_small() -> Callable[..., BuildResult | PartResult]:
    """Build with one worker and small images, in this process; with `part`, only that part."""

    def run(
        source: Path, out: Path, *, size_px: int = 16, workers: int = 1, **options: object
    ) -> BuildResult | PartResult:
        source_options = {name: options.pop(name) for name in SourceOptions.__slots__ if name in options}
        given: dict[str, object] = {"max_reject_fraction": 0.5, **options}
        chosen = BuildOptions(
            check=CheckOptions(size_px=size_px), source=SourceOptions(**source_options), workers=workers, **given
        )
        with Progress(io.StringIO()) as progress:
            return (build if chosen.part is None else build_part)(source, out, chosen, progress)

    return run


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "wv_ingest.cli", *map(str, arguments)]


@pytest.fixture(scope="session")
def start_ingest() -> Callable[..., subprocess.Popen[str]]:
    """`wv-ingest` as a process of its own."""

    def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command(*arguments), stdout=pipe, stderr=pipe, text=True, env=environment, **options)

    return start


@pytest.fixture(scope="session")
def ingest() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `wv-ingest` to its end in this process, which has imported it; only what ends a process needs its own."""

    def run(
        *arguments: object, input_text: str | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        with pytest.MonkeyPatch.context() as patch:
            if cwd:
                patch.chdir(cwd)
            result = CliRunner().invoke(main, words, input=input_text, env={"OMP_NUM_THREADS": "1", "COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback, which nobody may see
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    return run


def folder_bytes(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != REPORT_FILE)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="session", name="folder_bytes")
def folder_bytes_fixture() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, by its relative name, but for the report: commands write it, `build` does not."""
    return folder_bytes


@pytest.fixture(scope="session")
def reference(webvision: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`webvision`, built by the command line in one go, with one worker. Read-only by agreement."""
    out = tmp_path_factory.mktemp("reference") / "shards"
    subprocess.run(build_command(webvision, out, workers=1), check=True, capture_output=True)
    return out


def build_command(source: Path, out: Path, *, workers: int) -> list[str]:
    options = ["--size", "16", "--workers", str(workers), "--max-reject-fraction", "0.5"]
    return command("build-shards", source, out, *options)


@pytest.fixture(scope="session", name="build_command")
def build_command_fixture() -> Callable[..., list[str]]:
    """The command that makes `reference`, for `build_small` the same options."""
    return build_command


@pytest.fixture
def leave_unfinished(build_small: Callable[..., BuildResult]) -> Callable[[Path, Path], None]:
    """Stop a build near its end, by its limit of rejects: some shards are packed, some are not."""

    def leave(source: Path, out: Path) -> None:
        with pytest.raises(BuildError, match="max-reject-fraction"):
            build_small(source, out, max_reject_fraction=0.08)
        assert len(list((out / ".build").glob("*.outcomes"))) > 2

    return leave
