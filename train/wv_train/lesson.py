"""Pictures on their way through the model, to be learned from: blended or not, whole or in pieces."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from wv_train.judge import Slots, StepSetting, sample_losses
from wv_train.learner import Learner
from wv_train.mixup import Mix


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """m pictures of a rank with what they are asked for."""

    images: Tensor
    """(m, 3, S, S) as the model takes them."""
    slots: Slots
    """(m,) each."""
    setting: StepSetting
    mix: Mix | None = None
    partners: Tensor | None = None
    """(m,) int64 place of each picture's partner, where they are blended."""

    def forward(self, learner: Learner) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Piece by piece: its slots, logits (p, K), and its losses (p,) or, blended, (2, p): own and partner's.

        The caller goes backward on each piece before it asks for the next; ranks sum up with the last one.
        """
        images = self.images
        if self.mix is not None and self.partners is not None:
            images = self.mix.blend(images, self.partners)
        pieces = learner.pieces(len(images))
        for piece in pieces:
            with nullcontext() if piece is pieces[-1] else learner.apart():
                logits = learner.forward(images[piece])
                losses = sample_losses(logits, self.slots.at(piece), self.setting)
                if self.partners is not None:
                    others = sample_losses(logits, self.slots.at(self.partners[piece]), self.setting)
                    losses = torch.stack([losses, others])
                yield piece, logits, losses

    def loss_weights(self, weights: Tensor) -> Tensor:
        """Of the losses that `forward` gives for all m: (m,), or (2, m) where blended. weights: (m,)."""
        if self.mix is None or self.partners is None:
            return weights
        return torch.stack([self.mix.share * weights, (1.0 - self.mix.share) * weights[self.partners]])

    def mean_losses(self, losses: Tensor) -> Tensor:
        """(p,) what a sample's row says, of a piece's losses."""
        return losses if self.mix is None else self.mix.share * losses[0] + (1.0 - self.mix.share) * losses[1]
