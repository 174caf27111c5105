"""The same crops for all peers that use torchvision's transforms, on PIL images or on tensors."""

from typing import Any

from torchvision import transforms
from torchvision.transforms import v2

from wv_bench.peers.protocol import CROP_RATIO, CROP_SCALE, FLIP, MEAN, STD, Setup


def pil_crops(setup: Setup) -> Any:
    """PIL image → (3, S, S) tensor, as the training scripts of most people have it.

    uint8 leaves out what makes float32 of it: the fastest that these transforms can do.
    """
    crop = [
        transforms.RandomResizedCrop(setup.size_px, scale=CROP_SCALE, ratio=CROP_RATIO),
        transforms.RandomHorizontalFlip(FLIP),
    ]
    if setup.dtype == "uint8":
        return transforms.Compose([*crop, transforms.PILToTensor()])
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def tensor_crops(setup: Setup) -> Any:
    """(3, H, W) uint8 tensor → (3, S, S) uint8 tensor, with the v2 transforms that torchvision recommends for speed."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(setup.size_px, scale=CROP_SCALE, ratio=CROP_RATIO, antialias=True),
            v2.RandomHorizontalFlip(FLIP),
        ]
    )
