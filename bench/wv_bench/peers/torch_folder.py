"""torch's DataLoader over torchvision's ImageFolder: what most people start with."""

import sys
from collections.abc import Iterator

from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from wv_bench.peers.crops import pil_crops
from wv_bench.peers.protocol import Epoch, Setup, serve


def open_loader(setup: Setup) -> Epoch:
    """Workers that stay, and two batches ahead each (torch's default)."""
    loader = DataLoader(
        ImageFolder(setup.folder, transform=pil_crops(setup)),
        batch_size=setup.batch_size,
        shuffle=True,
        num_workers=setup.workers,
        drop_last=True,
        persistent_workers=True,
    )

    def epoch(_number: int) -> Iterator[int]:
        for images, _labels in loader:
            yield len(images)

    return epoch


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    serve(given, ("torch", "torchvision", "pillow"), lambda _data: open_loader(given))
