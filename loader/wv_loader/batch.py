"""Last stage: what a training loop receives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFacts:
    """What a batch is of, (n,) each, in the memory of the host: to look at without waiting for a device."""

    labels: torch.Tensor
    ordinals: torch.Tensor
    valid: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """This rank's share of one global batch, n = B/W slots."""

    images: torch.Tensor
    """(n, 3, S, S) uint8, channels-last in memory; zeros where not valid."""
    labels: torch.Tensor
    """(n,) int64 class ids; 0 where padded."""
    ordinals: torch.Tensor
    """(n,) int64; −1 where padded."""
    valid: torch.Tensor
    """(n,) bool; False where the slot is padded or its sample failed."""
    index: int
    """b, number of the global batch within its epoch."""
    masked: int = 0
    """Slots that are not valid, as a number that needs no device to be asked."""
    seed: int = 0
    """For random numbers of your own: of the loader's seed, the epoch and b, alike on all ranks and after a resume."""
    host: HostFacts | None = None
    """Labels, ordinals and mask as they were before they went to a device; None where they went nowhere."""

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        """The images as a model wants them.

        Args:
            mean, std: per channel, on the scale 0 … 1.

        Returns:
            (n, 3, S, S) float32, channels-last, on the images' device.
        """
        scale = torch.tensor([1 / (255 * s) for s in std], device=self.images.device).view(1, 3, 1, 1)
        shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=self.images.device).view(
            1, 3, 1, 1
        )
        return self.images.float().mul_(scale).sub_(shift)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; asynchronous from pinned memory."""
        facts = self.on_host() if self.labels.device.type == "cpu" else self.host
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("images", "labels", "ordinals", "valid")
        }
        return replace(self, **moved, host=facts)

    def on_host(self) -> HostFacts:
        """Labels, ordinals and mask in the host's memory; waits for the device only where nobody kept them."""
        return self.host or HostFacts(labels=self.labels.cpu(), ordinals=self.ordinals.cpu(), valid=self.valid.cpu())


def batch_memory(shape: tuple[int, ...], take: Callable[[], NDArray[np.uint8]]) -> Callable[[], torch.Tensor]:
    """What gives the (shape) uint8 tensors of a loop's batches, of uninitialised memory.

    Args:
        shape: of a tensor.
        take: gives arrays of that shape. Where CUDA is it is not asked: the memory is pinned by torch, whose allocator
            uses memory again by itself, and not before it has been copied to the device.
    """
    if torch.cuda.is_available():
        return lambda: torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return lambda: torch.from_numpy(take())
