"""SPDL: a pipeline of threads in one process; FFmpeg decodes, crops and resizes (spdl.io).

SPDL needs FFmpeg's libraries, which its wheel does not bring. `make bench-setup` takes those of the package `av` (links
beside SPDL's own library); importing `av` first brings in what they need themselves.
"""

import math
import random
import sys
from collections.abc import Iterator

import av  # noqa: F401 - for its libraries
import spdl.io
import torch
from spdl.pipeline import PipelineBuilder

from wv_bench.peers.protocol import CROP_RATIO, CROP_SCALE, FLIP, Epoch, Setup, image_files, serve


def open_loader(setup: Setup) -> Epoch:
    """Decode on threads, one batch per call of `convert_frames`, as its best practices say: no tensor per image."""
    files = [(str(path), label) for path, label in image_files(setup)]

    def decode(item: tuple[str, int]) -> tuple[object, int]:
        packets = spdl.io.demux_image(item[0])
        region = _crop(packets.width, packets.height)
        flip = ",hflip" if random.random() < FLIP else ""  # noqa: S311 - no secret
        size = setup.size_px
        # FFmpeg's bilinear scaler antialiases as Pillow's does.
        desc = f"crop={region},scale={size}:{size}:flags=bilinear{flip},format=pix_fmts=rgb24"
        return spdl.io.decode_packets(packets, filter_desc=desc), item[1]

    def batch(items: list[tuple[object, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        frames, labels = zip(*items, strict=True)
        return spdl.io.to_torch(spdl.io.convert_frames(list(frames))), torch.tensor(labels)

    def epoch(number: int) -> Iterator[int]:
        random.Random(number).shuffle(files)  # noqa: S311 - no secret
        pipeline = (
            PipelineBuilder()
            .add_source(files)
            .pipe(decode, concurrency=setup.workers)
            .aggregate(setup.batch_size, drop_last=True)
            .pipe(batch)
            .add_sink(2)
            .build(num_threads=setup.workers)
        )
        with pipeline.auto_stop():
            for pixels, _labels in pipeline:
                yield len(pixels)

    return epoch


def _crop(width: int, height: int) -> str:
    """RandomResizedCrop's region as FFmpeg's filter takes it: width:height:x:y."""
    for _ in range(10):
        area = width * height * random.uniform(*CROP_SCALE)  # noqa: S311 - no secret
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))  # noqa: S311
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return f"{w}:{h}:{random.randint(0, width - w)}:{random.randint(0, height - h)}:exact=1"  # noqa: S311
    w, h = min(width, round(height * CROP_RATIO[1])), min(height, round(width / CROP_RATIO[0]))
    return f"{w}:{h}"


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    serve(given, ("spdl", "av", "torch"), lambda _data: open_loader(given))
