"""What `wv-bench train` times: the bare loop that a user of PyTorch would write, and a step of wv-train in parts."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from wv_loader import Batch
from wv_train.distributed import World
from wv_train.gate import GateConfig
from wv_train.guard import ClassGuard
from wv_train.judge import StepSetting
from wv_train.learner import Learner, amp_dtype
from wv_train.ledger import Ledger
from wv_train.models import make_model, normalization
from wv_train.optim import make_optimizer
from wv_train.recipe import OptimizerConfig
from wv_train.step import TrainStep

AMP = ("auto", "bf16", "fp16", "off")
LEARNING_RATE = 0.01
"""Small: nothing is to be learnt, and nothing to become NaN."""
OPEN_GATE = GateConfig(start=1e-9, end=1e-9)
"""Does all that a gate does and keeps everything, so that both sides learn from the same samples."""

Step = Callable[[Batch], None]


def bench_model(name: str, classes: int, device: torch.device) -> nn.Module:
    """The model in training mode, channels-last, from the same seed each time.

    Raises:
        ModelError: no such model.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # the fastest convolutions: the bar is not to be lowered by slow ones
    model = make_model(name, classes).to(device).to(memory_format=torch.channels_last)
    return model.train()


def bare_step(model_name: str, *, classes: int, amp: str, device: torch.device) -> Step:
    """Forward, cross-entropy, backward, SGD with momentum as torch has it by default, and nothing more.

    Args:
        model_name: timm's, or one of wv-toolkit's small.
        classes: K.
        amp: one of AMP; off on a CPU.
        device: of the model and of the batches.

    Raises:
        ModelError: no such model.
    """
    model = bench_model(model_name, classes, device)
    config = OptimizerConfig()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=LEARNING_RATE,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    mean, std = normalization(model)
    dtype = amp_dtype(amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = model(batch.normalized(mean, std))  # (B, K)
        loss = F.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        scaler.step(optimizer)
        scaler.update()

    return step


def full_step(model_name: str, *, classes: int, samples: int, amp: str, world: World) -> TrainStep:
    """A step of wv-train with all its parts. samples: N, rows of the ledger.

    Raises:
        ModelError: no such model.
    """
    model = bench_model(model_name, classes, world.device)
    optimizer = make_optimizer(model, OptimizerConfig())
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return TrainStep(
        learner=Learner(model, world=world, amp=amp),
        optimizer=optimizer,
        ledger=Ledger(samples),
        guard=ClassGuard(classes),
        seed=0,
    )


def setting_of(gate: GateConfig, classes: int, device: torch.device, *, two_passes: bool = False) -> StepSetting:
    """What a phase with this gate asks of a step, all classes weighing alike."""
    return StepSetting(
        class_weights=torch.ones(classes, device=device),
        gate=gate,
        threshold=gate.start,
        label_smoothing=0.0,
        denominator="all",
        two_passes=two_passes,
    )


def synthetic_batch(batch_size: int, size_px: int, classes: int, device: torch.device) -> Batch:
    """Noise, with labels, on the device, in the loader's memory format; every slot another sample, 0 … B − 1."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch_size, size_px, size_px, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(
        images=pixels.permute(0, 3, 1, 2),  # (B, 3, S, S) channels-last
        labels=torch.randint(0, classes, (batch_size,), generator=generator),
        ordinals=torch.arange(batch_size),
        valid=torch.ones(batch_size, dtype=torch.bool),
        index=0,
    )
    return batch.to(device)
