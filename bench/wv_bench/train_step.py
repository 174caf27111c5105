"""Training steps that `wv-bench train` times: the plainest one, and that of wv-train."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from wv_loader import Batch
from wv_train.distributed import World
from wv_train.guard import ClassGuard
from wv_train.judge import StepSetting
from wv_train.learner import Learner, amp_dtype
from wv_train.ledger import Ledger
from wv_train.models import make_model, normalization
from wv_train.optim import make_optimizer
from wv_train.recipe import OptimizerConfig
from wv_train.step import Place, TrainStep

STEPS = ("plain", "wv-train")
AMP = ("auto", "bf16", "fp16", "off")
_LEARNING_RATE = 0.01
"""Small: nothing is to be learnt, and nothing to become NaN."""

Step = Callable[[Batch], None]


def make_step(name: str, model_name: str, *, classes: int, samples: int, amp: str, device: torch.device) -> Step:
    """A model and what trains it on a batch; channels-last, by SGD with momentum.

    Args:
        name: one of STEPS. `plain` is forward, cross-entropy, backward and optimiser, so the fastest consumer;
            `wv-train` also has the ledger, which waits for the device once a step.
        samples: N, rows of the ledger.
        amp: one of AMP; off on a CPU.

    Raises:
        ModelError: no such model.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the fastest convolutions: the bar is not to be lowered by slow ones
    model = make_model(model_name, classes).to(device).to(memory_format=torch.channels_last)
    model.train()
    optimizer = make_optimizer(model, OptimizerConfig())
    for group in optimizer.param_groups:
        group["lr"] = _LEARNING_RATE
    if name == "wv-train":
        world = World(rank=0, size=1, device=device)
        step = TrainStep(
            learner=Learner(model, world=world, amp=amp),
            optimizer=optimizer,
            ledger=Ledger(samples),
            guard=ClassGuard(classes),
            seed=0,
        )
        weights = torch.ones(classes, device=device)
        setting = StepSetting(class_weights=weights, gate=None, threshold=0.0, label_smoothing=0.0, denominator="all")

        def full(batch: Batch) -> None:
            step(batch, setting, Place())

        return full
    mean, std = normalization(model)
    dtype = amp_dtype(amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def plain(batch: Batch) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = model(batch.normalized(mean, std))  # (B, K)
        loss = F.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        scaler.step(optimizer)
        scaler.update()

    return plain


def synthetic_batch(batch_size: int, size_px: int, classes: int, device: torch.device) -> Batch:
    """Noise, with labels, on the device, in the loader's memory format; ordinals as the loader has them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch_size, size_px, size_px, 3), dtype=torch.uint8, generator=generator)
    return Batch(
        images=pixels.permute(0, 3, 1, 2).to(device),  # (B, 3, S, S) channels-last
        labels=torch.randint(0, classes, (batch_size,), generator=generator).to(device),
        ordinals=torch.from_numpy(np.full(batch_size, 0, dtype=np.int64)),
        valid=torch.ones(batch_size, dtype=torch.bool, device=device),
        index=0,
    )
