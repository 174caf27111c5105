"""`wv-bench ingest`: what build-shards costs on top of decoding, resizing and encoding.

The peer is a bare loop that reads each file and decodes, reduces and encodes it with the same Pillow on as many
spawned processes, and writes nothing. Both sides are timed whole, process start included, in turns.
"""

import csv
import io
import multiprocessing
import tempfile
from collections.abc import Iterable
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path

import click
import numpy as np
from PIL import Image

from wv_bench.measure import interleave, machine, report
from wv_ingest.build import BuildOptions, build
from wv_ingest.check import CheckOptions, codecs
from wv_ingest.progress import Progress
from wv_ingest.sources import SourceOptions

_CHUNK = 16
_CLASSES = 10


@click.command("ingest")
@click.option("--images", type=click.IntRange(1), default=2000, show_default=True, help="How many files.")
@click.option("--size", "size_px", type=click.IntRange(0), default=256, show_default=True, help="As in build-shards.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes, on both sides.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Turns.")
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="JPEGs to use, again and again, each made distinct by a comment. Default: drawn ones, 500×375.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def command(images: int, size_px: int, workers: int, repeats: int, source: Path | None, as_json: bool) -> None:
    """Time build-shards against a bare loop over the same files.

    \b
    Example:
      wv-bench ingest --images 2000 --size 256 --workers 2
    """
    with tempfile.TemporaryDirectory(prefix="wv-bench-") as folder:
        root = Path(folder)
        paths = _prepare(root, images, source)
        read_mb = sum(path.stat().st_size for path in paths) / 1e6
        options = BuildOptions(check=CheckOptions(size_px=size_px), source=SourceOptions(), workers=workers)
        outs = (root / f"out{i}" for i in count())
        contestants = {
            "bare loop": lambda: _bare_loop(paths, size_px, options.check.quality, workers),
            "build-shards": lambda: _build(root / "list.csv", next(outs), options),
        }
        timings = interleave(contestants, repeats)
    about = {**machine(("numpy", "pyarrow")), "decoder": codecs()["decoder"]}
    title = f"{images:,} files, {read_mb:,.1f} MB, --size {size_px}, {workers} processes"
    report(title, "images", timings, "bare loop", about, as_json=as_json)
    if not as_json:
        for timing in timings:
            click.echo(f"{timing.name}: {timing.median_rate * read_mb / images:,.1f} MB/s read (median)")
        click.echo(f"decoder: {about['decoder']}")


def _prepare(root: Path, images: int, source: Path | None) -> list[Path]:
    """Write the files and their list; returns their paths."""
    if source is None:
        originals: Iterable[bytes] = (_draw(seed) for seed in range(min(images, 64)))
    else:
        originals = (path.read_bytes() for path in sorted(source.iterdir()) if path.is_file())
    jpegs = [data for data in islice(originals, images) if data.startswith(b"\xff\xd8")]
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


def _build(source: Path, out: Path, options: BuildOptions) -> int:
    with Progress(io.StringIO()) as progress:
        return build(source, out, options, progress).manifest.rows


def _bare_loop(paths: list[Path], size_px: int, quality: int, workers: int) -> int:
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        done = sum(pool.imap_unordered(partial(_bare, size_px=size_px, quality=quality), chunks))
        pool.close()
        pool.join()
    return done


def _bare(paths: list[Path], *, size_px: int, quality: int) -> int:
    """Read, decode, reduce, encode; with size 0 read and decode. Returns how many."""
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            shorter = min(image.size)
            if not 0 < size_px < shorter:
                image.load()
                continue
            wanted = (round(image.width * size_px / shorter), round(image.height * size_px / shorter))
            image.draft(None, (2 * wanted[0], 2 * wanted[1]))
            small = image.resize(wanted, Image.Resampling.BICUBIC).convert("RGB")
            small.save(io.BytesIO(), "JPEG", quality=quality)
    return len(paths)
