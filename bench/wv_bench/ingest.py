"""`wv-bench ingest`: what build-shards costs on top of what has to be done anyway.

Rivals over the same files, in turns, each timed whole with the start of its processes and with its output synced:

    --check header    `tar cf`, and a loop that reads, hashes and writes
    --size 0          loops that read, decode in full and write, one for each decoder that is installed
    --size 256        a loop that reads, decodes, reduces, encodes and writes, with the same Pillow

and, given an interpreter that has them, `webdataset.ShardWriter` fed by a pool of stock Pillow.
"""

import csv
import io
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import xxhash
from PIL import Image

from wv_bench.measure import interleave, machine, report
from wv_ingest.build import build
from wv_ingest.build_options import BuildOptions
from wv_ingest.check import Accepted, CheckOptions, check_image, codecs
from wv_ingest.progress import Progress
from wv_ingest.sources import SourceOptions
from wv_shards import checksum

_CHUNK = 16
_CLASSES = 10
_PEER = Path(__file__).parent / "peers" / "webdataset_writer.py"
_DECODERS = {"Pillow": "PIL", "simplejpeg": "simplejpeg", "OpenCV": "cv2", "nvImageCodec": "nvidia.nvimgcodec"}
"""Name: module."""


@click.command("ingest")
@click.option("--images", type=click.IntRange(1), default=2000, show_default=True, help="How many files.")
@click.option("--size", "size_px", type=click.IntRange(0), default=256, show_default=True, help="As in build-shards.")
@click.option(
    "--check",
    type=click.Choice(["full", "header"]),
    default="full",
    show_default=True,
    help="As in build-shards; header goes with --size 0.",
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes, on all sides.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Turns.")
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="JPEGs to use, again and again, each made distinct by a comment. Default: drawn ones, 500×375.",
)
@click.option(
    "--unchanged-only",
    is_flag=True,
    help="Of the JPEGs, only those that build-shards --size 0 keeps: in sRGB, upright. Others it has to encode anew.",
)
@click.option(
    "--peer-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Interpreter of an environment with webdataset and stock Pillow: runs webdataset.ShardWriter as a peer.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def command(
    images: int,
    size_px: int,
    check: Any,
    workers: int,
    repeats: int,
    source: Path | None,
    unchanged_only: bool,
    peer_python: Path | None,
    as_json: bool,
) -> None:
    """Time build-shards against bare loops, tar and webdataset over the same files.

    \b
    Examples:
      wv-bench ingest --images 2000 --size 256
      wv-bench ingest --images 20000 --size 0 --check header --source photos
      wv-bench ingest --size 256 --peer-python .venv-peer/bin/python
    """
    if check == "header" and size_px:
        raise click.UsageError("--check header is about files that are kept: it goes with --size 0")
    options = BuildOptions(
        check=CheckOptions(size_px=size_px, decode=check), source=SourceOptions(), workers=workers, shard_mb=64
    )
    with tempfile.TemporaryDirectory(prefix="wv-bench-") as folder:
        root = Path(folder)
        paths = _prepare(root, images, source, unchanged_only=unchanged_only)
        read_mb = sum(path.stat().st_size for path in paths) / 1e6
        contestants = _contestants(root, paths, options, peer_python)
        timings = interleave(contestants, repeats)
        hash_us = _checksum_us(paths[: min(len(paths), 400)], options.check)
    about = {**machine(("numpy", "pyarrow")), "decoder": codecs()["decoder"]}
    title = f"{images:,} files, {read_mb:,.1f} MB, --size {size_px} --check {check}, {workers} processes"
    report(title, "images", timings, next(iter(contestants)), about, as_json=as_json)
    if not as_json:
        ours = next(timing for timing in timings if timing.name == "build-shards")
        click.echo(f"build-shards: {ours.median_rate * read_mb / images:,.1f} MB/s read (median)")
        share = hash_us / 1000 / ours.cpu_ms_per_item
        click.echo(f"checksums: {hash_us:.1f} µs an image, {share:.1%} of build-shards' CPU time")
        click.echo(f"decoder: {about['decoder']}")


def _contestants(
    root: Path, paths: list[Path], options: BuildOptions, peer_python: Path | None
) -> dict[str, Callable[[], int]]:
    """Name: a run, which returns how many files it handled. The first is the reference."""
    outs = (root / f"out{i}" for i in count())
    check, workers = options.check, options.workers
    runs: dict[str, Callable[[Path], int]] = {}
    if check.decode == "header":
        runs["bare loop"] = partial(_bare_loop, paths, "", check, workers)
        runs["tar cf"] = partial(_tar, root, len(paths))
    else:
        installed = [name for name, module in _DECODERS.items() if _is_installed(module)]
        for name in installed if not check.size_px else installed[:1]:
            runs[f"bare loop, {name}"] = partial(_bare_loop, paths, name, check, workers)
    if peer_python is not None:
        runs["webdataset.ShardWriter"] = partial(_peer, root, peer_python, check, workers, len(paths))
    runs["build-shards"] = partial(_build, root / "list.csv", options)
    return {name: lambda run=run: _cleared(run, next(outs)) for name, run in runs.items()}  # type: ignore[misc] # the default


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _cleared(run: Callable[[Path], int], out: Path) -> int:
    """Run into `out`; its removal is not part of anybody's work, but cheap beside it."""
    done = run(out)
    shutil.rmtree(out)
    return done


def _prepare(root: Path, images: int, source: Path | None, *, unchanged_only: bool) -> list[Path]:
    """Write the files and their list; returns their paths."""
    if source is None:
        originals: Iterable[bytes] = (_draw(seed) for seed in range(min(images, 64)))
    else:
        originals = (path.read_bytes() for path in sorted(source.iterdir()) if path.is_file())
    jpegs = [data for data in islice(originals, images) if data.startswith(b"\xff\xd8")]
    if unchanged_only:
        results = ((data, check_image(data, CheckOptions(size_px=0))) for data in jpegs)
        jpegs = [data for data, result in results if isinstance(result, Accepted) and result.kept]
    if not jpegs:
        raise click.UsageError(f"no JPEG files in {source}")
    (root / "images").mkdir()
    paths = []
    for i, data in enumerate(islice(cycle(jpegs), images)):
        comment = f"wv-bench {i}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        paths.append(root / "images" / f"{i:07d}.jpg")
        paths[-1].write_bytes(data[:2] + segment + data[2:])
    with open(root / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows((f"images/{path.name}", i % _CLASSES) for i, path in enumerate(paths))
    os.sync()
    return paths


def _draw(seed: int) -> bytes:
    """A picture with about the detail of a photo: smooth colours and some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((500, 375))
    grain = random.normal(0, 12, (375, 500, 1))
    pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)  # (H, W, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _build(source: Path, options: BuildOptions, out: Path) -> int:
    with Progress(io.StringIO()) as progress:
        return build(source, out, options, progress).manifest.rows


def _tar(root: Path, files: int, out: Path) -> int:
    out.mkdir()
    subprocess.run(["tar", "cf", out / "all.tar", "-C", root, "images"], check=True)  # noqa: S603, S607 - tar is tar
    _sync(out / "all.tar")
    return files


def _peer(root: Path, python: Path, options: CheckOptions, workers: int, files: int, out: Path) -> int:
    rows = list(csv.reader((root / "list.csv").read_text().splitlines()))[1:]
    listed = root / "peer.tsv"
    listed.write_text("".join(f"{root / path}\t{label}\n" for path, label in rows))
    arguments = [listed, out, options.size_px, options.quality, workers]
    subprocess.run([python, _PEER, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the user's
    return files


def _bare_loop(paths: list[Path], decoder: str, options: CheckOptions, workers: int, out: Path) -> int:
    """Every process reads, does the work, and appends to a file of its own."""
    out.mkdir()
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    work = partial(_bare, decoder=decoder, out=out, size_px=options.size_px, quality=options.quality)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        done = sum(pool.imap_unordered(work, chunks))
        pool.close()
        pool.join()
    for file in out.iterdir():
        _sync(file)
    return done


def _bare(paths: list[Path], *, decoder: str, out: Path, size_px: int, quality: int) -> int:
    """Read, decode (and reduce and encode), write; without a decoder read, hash, write. Returns how many."""
    decode = _decode_with(decoder) if decoder else checksum
    with open(out / str(os.getpid()), "ab", buffering=0) as file:
        for path in paths:
            data = path.read_bytes()
            file.write(data if not size_px else _reduce(data, size_px, quality))
            if not size_px:
                decode(data)
    return len(paths)


def _reduce(data: bytes, size_px: int, quality: int) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        shorter = min(image.size)
        wanted = (round(image.width * size_px / shorter), round(image.height * size_px / shorter))
        if size_px < shorter:
            image.draft(None, (2 * wanted[0], 2 * wanted[1]))
        small = image.resize(wanted, Image.Resampling.BICUBIC) if size_px < shorter else image
        buffer = io.BytesIO()
        small.convert("RGB").save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()


def _decode_with(name: str) -> Callable[[bytes], object]:
    if name == "Pillow":
        return lambda data: Image.open(io.BytesIO(data)).load()
    if name == "simplejpeg":
        import simplejpeg

        return lambda data: simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True, strict=False)
    if name == "OpenCV":
        import cv2

        cv2.setNumThreads(1)
        return lambda data: cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    from nvidia import nvimgcodec

    codec = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
    )
    return lambda data: codec.decode(data)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _checksum_us(paths: list[Path], options: CheckOptions) -> float:
    """Microseconds of processor time that the checksums of one image take: source, image, tar."""
    stored = []
    for path in paths:
        result = check_image(data := path.read_bytes(), options)
        if isinstance(result, Accepted):
            stored.append((data, result.data))
    digest = xxhash.xxh3_128()
    before = time.process_time()
    for data, image in stored:
        checksum(data)
        checksum(image)
        digest.update(image)
    return 1e6 * (time.process_time() - before) / len(stored)
