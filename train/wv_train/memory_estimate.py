"""How much memory a rank will need, before anything is trained: counted where it can be, else estimated.

Activations are what autograd keeps for the backward pass: two small batches go forward and every tensor that is saved
is counted once, by its storage. A batch's share of them grows in proportion to its images. What is left out: the
gradients that exist for a moment during the backward pass, workspaces of convolutions, and what an allocator keeps.

Against the growth of this process's memory on a CPU (activations and images, six networks from wv_resnet_16_32_64 to
inception_resnet_v2, batches of 4 to 512): 0.97 to 1.06 of the estimate after the forward pass, 0.99 to 1.5 at the
backward pass's peak; the small networks need most beyond it, the large ones hardly anything.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wv_train.recipe import Recipe

_FEW, _MORE = 2, 3
"""Images of the two passes: batch norm wants more than one."""
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelBytes:
    """Bytes of one rank's model, all on its device."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    """One each parameter, and under DDP as much again for its buckets."""
    optimizer: int
    """SGD's momentum."""
    average: int
    """The weights' average (ema_decay)."""
    activations: int
    """Kept from the forward to the backward pass."""
    images: int
    """The batch as it comes, and normalised."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations + self.images


def model_bytes(
    model: nn.Module, recipe: Recipe, *, rank_batch: int, world_size: int, dtype: torch.dtype | None
) -> ModelBytes:
    """Of a rank that shows its model `rank_batch` images a step, under autocast to `dtype` unless it is None."""
    parameters = sum(_bytes(parameter) for parameter in model.parameters())
    weights = parameters + sum(_bytes(buffer) for buffer in model.buffers())
    pixels = rank_batch * 3 * recipe.size_px**2
    return ModelBytes(
        weights=weights,
        gradients=parameters * (2 if world_size > 1 else 1),
        optimizer=parameters if recipe.optimizer.momentum > 0 else 0,
        average=weights if recipe.ema_decay > 0 else 0,
        activations=activation_bytes(model, size_px=recipe.size_px, images=rank_batch, dtype=dtype),
        images=pixels * (1 + _FLOAT_BYTES),
    )


def activation_bytes(model: nn.Module, *, size_px: int, images: int, dtype: torch.dtype | None = None) -> int:
    """What a training step's forward pass of `images` images keeps for the backward pass, without parameters and input.

    Runs the model on its own device. The model is as it was afterwards, but for torch's random state.
    """
    few, more = (saved_bytes(model, _blank(model, count, size_px), dtype=dtype) for count in (_FEW, _MORE))
    each = (more - few) / (_MORE - _FEW)
    return max(0, round(few + (images - _FEW) * each))


def saved_bytes(model: nn.Module, images: Tensor, *, dtype: torch.dtype | None = None) -> int:
    """Bytes of all storages that autograd saves in a training forward pass, without parameters, buffers, images."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    was_training = model.training
    skipped = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), images)}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor  # kept until the graph goes, so that no address is used twice

    model.train()
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast(images.device.type, dtype, enabled=dtype is not None),
        ):
            logits = model(images)
        del logits
    finally:
        model.train(was_training)
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
    return sum(found.values())


def _blank(model: nn.Module, images: int, size_px: int) -> Tensor:
    device = next(model.parameters()).device
    blank = torch.zeros(images, 3, size_px, size_px, device=device)
    return blank.to(memory_format=torch.channels_last)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
