"""torchvision's decoder on the GPU (nvJPEG): whole batches of files to `decode_jpeg`, then its crops there.

Not a loader, but the way that its documentation shows: files are read on threads, two batches ahead.
"""

import random
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from wv_bench.peers.crops import tensor_crops
from wv_bench.peers.protocol import Epoch, Setup, image_files, serve

_AHEAD = 2


def open_loader(setup: Setup) -> Epoch:
    """A batch is decoded by one call; cropping and resizing are calls for each image, as images differ in size."""
    files = [(str(path), label) for path, label in image_files(setup)]
    crops = tensor_crops(setup)

    def batch(files: list[Future[torch.Tensor]], labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = decode_jpeg([file.result() for file in files], mode=ImageReadMode.RGB, device=setup.device)
        return torch.stack([crops(image) for image in images]), torch.tensor(labels, device=setup.device)

    def epoch(number: int) -> Iterator[int]:
        random.Random(number).shuffle(files)  # noqa: S311 - no secret
        coming: deque[tuple[list[Future[torch.Tensor]], list[int]]] = deque()
        with ThreadPoolExecutor(setup.workers) as pool:
            for first in range(0, setup.batches * setup.batch_size, setup.batch_size):
                chosen = files[first : first + setup.batch_size]
                coming.append(([pool.submit(read_file, path) for path, _ in chosen], [label for _, label in chosen]))
                if len(coming) > _AHEAD:
                    yield len(batch(*coming.popleft())[0])
            while coming:
                yield len(batch(*coming.popleft())[0])

    return epoch


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    finish = partial(torch.cuda.synchronize, given.device) if given.device.startswith("cuda") else None
    serve(given, ("torch", "torchvision"), lambda _data: open_loader(given), finish=finish)
