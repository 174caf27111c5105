"""The model at work on a rank: normalised images in, logits out, gradients summed over ranks.

Knows DDP, mixed precision, compilation, frozen backbones and micro-batches; what is learned is the business of `step`.
"""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from wv_loader import Batch
from wv_train.distributed import World
from wv_train.errors import TrainError
from wv_train.models import freeze_backbone, normalization


class Learner:
    """A model with what it needs to be trained on this rank's device."""

    def __init__(
        self, model: nn.Module, *, world: World, amp: str, micro_batch: int | None = None, compile_model: bool = False
    ) -> None:
        self.model, self.world, self.micro_batch = model, world, micro_batch
        self._dtype = amp_dtype(amp, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self._dtype is torch.float16)
        mean, std = (torch.tensor(values, device=world.device).view(1, 3, 1, 1) for values in normalization(model))
        self._scale, self._shift = 1.0 / (255.0 * std), mean / std
        self._fast: nn.Module = torch.compile(model) if compile_model else model  # type: ignore[assignment]
        self._frozen: bool | None = None
        self._distributed: DistributedDataParallel | None = None
        self.begin_phase(frozen=False)

    def begin_phase(self, *, frozen: bool) -> None:
        """Put the model into training mode, its backbone learning or frozen."""
        self.model.train()
        freeze_backbone(self.model, frozen)
        self._noting = [
            module
            for module in self.model.modules()
            if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        ]
        if self.world.size == 1 or frozen == self._frozen:
            return
        self._frozen, self._distributed = frozen, None  # the old one lets go of the parameters first
        device_ids = [self.world.device] if self.world.device.type == "cuda" else None
        # Running statistics are only written in training, so rank 0's are broadcast before an evaluation instead.
        self._distributed = DistributedDataParallel(
            self._fast,
            device_ids=device_ids,
            forward_sync_buffers=False,
        )

    def model_changed(self) -> None:
        """After some of its parameters have become others; the next phase sums up their gradients."""
        self._frozen, self._distributed = None, None

    def images(self, batch: Batch) -> Tensor:
        """(n, 3, S, S) float32, channels-last; invalid slots show the valid pictures in turn.

        They weigh nothing in the loss, but batch norm would see them: an epoch's last batch may be two pictures and
        padding, whose statistics blow up the gradient. On a rank that has no valid picture nothing can be done.
        """
        images = batch.images.float().mul_(self._scale).sub_(self._shift)
        valid = batch.on_host().valid
        if bool(valid.all()):
            return images
        found = valid.nonzero().squeeze(1)
        if not len(found):
            return images
        source = torch.arange(len(valid))
        source[~valid] = found[torch.arange(len(valid) - len(found)) % len(found)]
        return images[source.to(images.device)].contiguous(memory_format=torch.channels_last)

    def pieces(self, samples: int) -> list[slice]:
        """Micro-batches of `samples` slots, as even as can be; one piece where none was asked for."""
        count = -(-samples // self.micro_batch) if self.micro_batch else 1
        borders = [samples * index // count for index in range(count + 1)]
        return [slice(first, last) for first, last in itertools.pairwise(borders)]

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, K) float32, to learn from. Raises TrainError where the model can't be compiled."""
        with self._precision(), _compiler_errors():
            logits: Tensor = (self._distributed or self._fast)(images)
        return logits.float()

    def look(self, images: Tensor) -> Tensor:
        """The same logits (n, K) without gradient; batch norm uses the pictures' statistics and does not note them."""
        with torch.no_grad(), self._statistics_unnoted(), self._precision(), _compiler_errors():
            return torch.cat([self._fast(images[piece]).float() for piece in self.pieces(len(images))])

    def apart(self) -> AbstractContextManager[None]:
        """Around forward and backward of all micro-batches but the last: gradients are summed over ranks with that."""
        return self._distributed.no_sync() if self._distributed is not None else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add to the gradients; takes part in their sum over ranks."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    @contextmanager
    def _statistics_unnoted(self) -> Iterator[None]:
        for module in self._noting:
            module.track_running_stats = False
        try:
            yield
        finally:
            for module in self._noting:
                module.track_running_stats = True

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.world.device.type, self._dtype, enabled=self._dtype is not None)


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, None for none: `auto` is bf16 on a GPU that has it, else fp16, and nothing on a CPU."""
    if amp == "off" or (amp == "auto" and device.type != "cuda"):
        return None
    if amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if amp == "bf16" else torch.float16


def with_synchronized_batch_norm(model: nn.Module, world: World) -> nn.Module:
    """The model with batch norm's statistics taken over all ranks; the parameters stay the same objects.

    Raises TrainError on a CPU, where torch has none.
    """
    if world.size == 1:
        return model
    if world.device.type != "cuda":
        raise TrainError("sync_batch_norm: expected GPUs, found a CPU: torch has it for GPUs only; set it to false")
    from timm.layers.norm_act import convert_sync_batchnorm  # slow to load

    converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # timm leaves it untyped
    return converted


@contextmanager
def _compiler_errors() -> Iterator[None]:
    """What torch.compile raises as one line; costs nothing where nothing is compiled."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TrainError(
            f"--compile: {reason[0]}; leave --compile out, or name an empty folder by TORCHINDUCTOR_CACHE_DIR: "
            "a compilation that was cut off may have left half a file in the old one"
        ) from error
