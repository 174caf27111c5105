"""SGD over backbone and head, and a phase's learning rate as a pure function of its step."""

import math

import torch
from torch import nn

from wv_train.models import parameter_groups
from wv_train.recipe import OptimizerConfig, Phase


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """SGD with momentum; its groups carry `part` (see `models.parameter_groups`). Rates are set each step."""
    groups = parameter_groups(model, config.weight_decay)
    # torch's own choice on a CPU is a loop in Python over parameters, a few calls each: three times as slow.
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    return torch.optim.SGD(
        groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, fused=True if on_cpu else None
    )


def learning_rate(phase: Phase, step: int, phase_steps: int) -> float:
    """Rate at `step` (0 is the first) of a phase of `phase_steps`: warm-up, then the phase's schedule.

    The warm-up rises linearly and lies over the schedule's beginning. cosine ends at 0.
    """
    progress = min(1.0, step / phase_steps)
    rate = phase.lr
    if phase.schedule == "step":
        rate *= phase.gamma ** sum(progress >= milestone for milestone in phase.milestones)
    elif phase.schedule == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * progress))
    if step < phase.warmup_steps:
        rate *= (step + 1) / phase.warmup_steps
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, phase: Phase, rate: float) -> tuple[float, float]:
    """Give each group its part's rate; returns (backbone's, head's)."""
    backbone, head = rate * phase.backbone_factor, rate * phase.head_factor
    for group in optimizer.param_groups:
        group["lr"] = head if group["part"] == "head" else backbone
    return backbone, head
