"""Mixup: a picture is blended with a partner of its own stream, and learns both labels.

After Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. A stream lies on one rank whatever their
number, so partners, and with them the gradient, do not depend on how many ranks share a batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wv_shards import combine

_SALT = 0x6D697875  # "mixu"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """How much of itself a picture keeps in a step, and how far away its partner is; alike on all ranks."""

    share: float
    """λ in [0, 1]."""
    distance: int
    """Partner of the i-th of n: the (i + 1 + distance mod (n − 1))-th, cyclically; never itself where n > 1."""

    @classmethod
    def draw(cls, alpha: float, *, seed: int, step: int) -> "Mix":
        """λ ~ Beta(α, α), from (seed, step) alone."""
        generator = np.random.default_rng(int(combine(seed, step, _SALT)))
        return cls(share=float(generator.beta(alpha, alpha)), distance=int(generator.integers(1 << 30)))

    def partners(self, streams: Tensor, active: Tensor) -> Tensor:
        """Place of each picture's partner, (n,) int64; a permutation.

        streams: (n,) the pictures' streams, rising. active: (n,) bool, who has and is a partner; the others, and who is
        alone in its stream, stay as they are. All on the CPU.
        """
        places = torch.arange(len(streams))
        some = active.nonzero().squeeze(1)
        places[some] = some[self._turned(streams[some])]
        return places

    def _turned(self, streams: Tensor) -> Tensor:
        _, sizes = torch.unique_consecutive(streams, return_counts=True)
        size = sizes.repeat_interleave(sizes)
        first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        within = torch.arange(len(streams)) - first
        ahead = torch.where(size > 1, 1 + self.distance % (size - 1).clamp(min=1), 0)
        return torch.as_tensor(first + (within + ahead) % size)

    def blend(self, images: Tensor, partners: Tensor) -> Tensor:
        """λ·own + (1 − λ)·partner's, (n, 3, S, S)."""
        return torch.lerp(images[partners], images, self.share)
