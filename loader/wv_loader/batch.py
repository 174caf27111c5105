"""Last stage: what a training loop receives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


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
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("images", "labels", "ordinals", "valid")
        }
        return replace(self, **moved)
