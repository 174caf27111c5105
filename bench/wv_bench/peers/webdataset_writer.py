"""The usual way to make WebDataset shards: a pool decodes, reduces and encodes, `webdataset.ShardWriter` writes.

Run as `python webdataset_writer.py LIST OUT SIZE QUALITY WORKERS` by an interpreter that has webdataset and Pillow.
LIST has a path and a label a line, tab between them; SIZE 0 decodes the files and stores them as they are.
"""

import io
import multiprocessing
import os
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import PIL
import webdataset
from PIL import Image

_SHARD_BYTES = 64_000_000


def main(list_path: str, out: str, size_px: int, quality: int, workers: int) -> None:
    """Write shards of all files and sync them."""
    rows = [line.split("\t") for line in Path(list_path).read_text().splitlines()]
    Path(out).mkdir()
    pattern = os.path.join(out, "shard-%06d.tar")
    with (
        webdataset.ShardWriter(pattern, maxsize=_SHARD_BYTES, verbose=0) as sink,
        multiprocessing.Pool(workers) as pool,
    ):
        images = pool.imap(partial(_image, size_px=size_px, quality=quality), [path for path, _ in rows], chunksize=16)
        for (path, label), data in zip(rows, images, strict=True):
            sink.write({"__key__": Path(path).stem, "jpg": data, "cls": label})
    for shard in Path(out).iterdir():
        with open(shard, "rb") as file:
            os.fsync(file.fileno())
    print(f"webdataset {version('webdataset')}, PIL {PIL.__version__}")


def _image(path: str, *, size_px: int, quality: int) -> bytes:
    """The file, its shorter side reduced to `size_px`."""
    with Image.open(path) as image:
        shorter = min(image.size)
        if not size_px:
            image.load()
            return Path(path).read_bytes()
        factor = min(1.0, size_px / shorter)
        wanted = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image.draft(None, (2 * wanted[0], 2 * wanted[1]))
        small = image.convert("RGB").resize(wanted, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
