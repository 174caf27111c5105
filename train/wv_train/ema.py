"""An average of the weights over the steps, to be evaluated beside them.

After Polyak and Juditsky (1992), exponential as in Tarvainen and Valpola, "Mean teachers are better role models", 2017.
"""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """A copy of the model whose parameters and buffers follow it: ema ← d·ema + (1 − d)·now.

    d is `decay`, but at most (1 + t) / (10 + t) after t updates, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights after a step."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        mine, now = list(self.model.state_dict().values()), list(model.state_dict().values())
        floating = [index for index, value in enumerate(mine) if value.is_floating_point()]
        torch._foreach_lerp_([mine[i] for i in floating], [now[i] for i in floating], 1.0 - decay)
        for index, value in enumerate(mine):
            if not value.is_floating_point():
                value.copy_(now[index])

    def state(self) -> dict[str, Tensor]:
        """The averaged weights, under the model's own names; not a copy."""
        return dict(self.model.state_dict())

    def load_state(self, state: dict[str, Tensor], updates: int) -> None:
        """Go on with averaged weights that were saved after so many updates."""
        self.model.load_state_dict(state)
        self.updates = updates
