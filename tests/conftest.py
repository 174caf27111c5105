"""Fixtures shared by all rooms: the real test data, and small drawn data sets that need no ingest."""

import gc
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from wv_shards import (
    INDEX_FILE,
    REJECTS_FILE,
    REJECTS_SCHEMA,
    SAMPLES_FILE,
    SAMPLES_SCHEMA,
    ClassInfo,
    Manifest,
    ShardWriter,
    band_of,
    checksum,
    file_checksum,
    key_hash,
    table_checksums,
    write_index,
    write_timm_info,
)

# Examples are not timed: these machines are shared and noisy.
settings.register_profile(
    "shared", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("shared")

REPOSITORY = Path(__file__).resolve().parent.parent

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(
    [
        *("wv_train.cli", "wv_train.cli_eval", "wv_train.trainer", "torch.utils.tensorboard", "wv_loader"),
        "torch._dynamo",  # loaded by every optimiser as it is made, in as much time as torch itself
        *("wv_ingest.cli", "wv_ingest.pack", "wv_ingest.index_shards", "wv_ingest.repair", "wv_ingest.report_pictures"),
    ]
)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real photos, odd files and noisy labels; not part of the repository."""
    folder = Path(os.environ.get("WV_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"no test data at {folder.name}: set WV_TEST_DATA to the folder that holds photos/ and torture/"
        if os.environ.get("WV_REQUIRE_TEST_DATA") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


def draw_jpeg(seed: int, width: int = 24, height: int = 20, quality: int = 85) -> bytes:
    """A small JPEG, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="session", name="draw_jpeg")
def draw_jpeg_fixture() -> Callable[..., bytes]:
    return draw_jpeg


def draw_dataset(
    directory: Path, class_sizes: Sequence[int], *, shard_samples: int = 64, seed: int = 0, rejects: int = 0
) -> Path:
    """Write a finished data set of drawn JPEGs: class c has class_sizes[c] samples, packed by band as ingest does."""
    directory.mkdir(parents=True, exist_ok=True)
    samples = [(f"c{c:03d}-{i:05d}", c) for c, n in enumerate(class_sizes) for i in range(n)]
    bands = sorted({band for n in class_sizes if (band := band_of(n)) is not None})
    finished, facts = [], []
    for band in bands:
        members = [(k, c) for k, c in samples if band_of(class_sizes[c]) == band]
        members.sort(key=lambda member: (key_hash(member[0], seed), member[0]))
        for number, start in enumerate(range(0, len(members), shard_samples)):
            with ShardWriter(directory, f"b{band:02d}-{number:06d}") as writer:
                for key, label in members[start : start + shard_samples]:
                    image = draw_jpeg(key_hash(key, seed) % 2**32)
                    path = f"drawn/{key}.jpg"
                    writer.add(
                        key, image, label, {"path": path, "source": "drawn", "query": "q0001"}, width=24, height=20
                    )
                    facts.append((key, path, "drawn", "q0001", label, 24, 20, len(image), checksum(image), None, None))
                finished.append(writer.finish(band))
    write_index(directory / INDEX_FILE, [shard.records for shard in finished], len(facts))
    columns = [list(column) for column in zip(*facts, strict=True)] or [[] for _ in SAMPLES_SCHEMA]
    pq.write_table(pa.table(columns_of(SAMPLES_SCHEMA, columns), schema=SAMPLES_SCHEMA), directory / SAMPLES_FILE)
    rejected = [[f"drawn/bad{i}.jpg" for i in range(rejects)], [0] * rejects, ["empty"] * rejects, [""] * rejects]
    pq.write_table(pa.table(columns_of(REJECTS_SCHEMA, rejected), schema=REJECTS_SCHEMA), directory / REJECTS_FILE)
    manifest = Manifest(
        seed=seed,
        split="train",
        classes=tuple(
            ClassInfo(class_id=c, name=f"class {c}", rows=n + (rejects if c == 0 else 0), samples=n, band=band_of(n))
            for c, n in enumerate(class_sizes)
        ),
        shards=tuple(shard.info for shard in finished),
        samples=len(facts),
        rows=len(facts) + rejects,
        rejects={"empty": rejects} if rejects else {},
        index_checksum=file_checksum(directory / INDEX_FILE),
        tables=table_checksums(directory),
    )
    write_timm_info(directory, manifest)
    manifest.save(directory)
    return directory


@pytest.fixture(scope="session")
def reseal() -> Callable[[Path], None]:
    """Makes a manifest fit an index that was changed, as if the data set had been written with it."""

    def fit(directory: Path) -> None:
        changed = replace(Manifest.load(directory), index_checksum=file_checksum(directory / INDEX_FILE))
        changed.save(directory)

    return fit


def columns_of(schema: pa.Schema, columns: list[list[object]]) -> list[pa.Array]:
    return [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]


@pytest.fixture(scope="session", name="draw_dataset")
def draw_dataset_fixture() -> Callable[..., Path]:
    return draw_dataset


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only by agreement: 6 classes of 3 … 120 samples."""
    return draw_dataset(tmp_path_factory.mktemp("small") / "shards", [120, 61, 30, 17, 8, 3], rejects=2)


def pytest_configure() -> None:
    """A suite in the background of a shell has Ctrl-C ignored, and so would the programs that tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make: to go through all that is imported takes a second each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a GPU, so that `make gpu-check` runs all of it and nothing else."""
    for item in items:
        if "cuda" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """A GPU: without one its tests skip, and fail where WV_REQUIRE_GPU=1 says that there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    message = "no CUDA device: this test needs a GPU"
    if os.environ.get("WV_REQUIRE_GPU") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def dali() -> None:
    """The extra [dali]: without it its tests skip, and fail where WV_REQUIRE_DALI=1 says that it is there."""
    try:
        import_module("nvidia.dali")
    except ImportError as error:
        message = f"the extra [dali] is not installed (make setup EXTRAS=dev,dali): {error}"
        if os.environ.get("WV_REQUIRE_DALI") == "1":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def our_commands() -> dict[str, Callable[[Sequence[str]], int]]:
    """By name: what the installed script does with words, in this process; its exit code.

    A Python of its own for each would spend most of its time importing torch once more.
    """

    def starter(load: Callable[[], Callable[[], object]]) -> Callable[[Sequence[str]], int]:
        def start(words: Sequence[str]) -> int:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", list(words))
                try:
                    load()()
                except SystemExit as ended:
                    return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            return 0

        return start

    ours = (point for point in entry_points(group="console_scripts") if point.name.startswith("wv-"))
    return {point.name: starter(point.load) for point in ours}


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """Processes that are forked off one that has imported torch and our modules.

    Each is a process of its own, to be killed or stopped, that begins in a hundredth of the time. What they don't show
    is how a Python begins and how it goes down.
    """
    return WARM


def free_port() -> int:
    """On loopback; nobody has it at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(scope="session", name="free_port")
def free_port_fixture() -> Callable[[], int]:
    return free_port


_WARM_START = """
import os, sys, torch
os.setsid()
for number, name in ((1, os.devnull), (2, stderr)):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
os.environ.update(environment)
torch.set_num_threads(1)
sys.argv = ["warm", *words]
exec(code, {"__name__": "__main__"})
"""


@pytest.fixture(scope="session")
def start_ranks() -> Callable[..., list[BaseProcess]]:
    """Start warm processes that run `code` with `words` as arguments: one, or the ranks of a group without launcher."""

    def start(ranks: int, code: str, *words: object, stderr: Path) -> list[BaseProcess]:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
        started = []
        for rank in range(ranks):
            environment = {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
            if ranks > 1:
                environment |= {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            names = {
                "code": code, "words": [str(word) for word in words], "environment": environment, "stderr": str(stderr),
            }  # fmt: skip
            process = WARM.Process(target=exec, args=(_WARM_START, names))
            process.start()
            started.append(process)
        return started

    return start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs root and mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
