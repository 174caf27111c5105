"""What a training says before its first step: engine, device, data, model, and a line for each phase. Pure."""

import numpy as np
import torch
from torch import nn

from wv_train.distributed import World
from wv_train.phase_plan import PhasePlan
from wv_train.prepare import Facts
from wv_train.recipe import Recipe
from wv_train.source_version import source_line


def opening_lines(
    recipe: Recipe, world: World, model: nn.Module, plans: list[PhasePlan], facts: Facts, *, compiled: bool = False
) -> list[str]:
    """What runs here, for a person: engine, device, world, batch, classes, imbalance, seed, model, phases."""
    counts = np.array(facts.class_counts)
    some = counts[counts > 0]
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    lines = [
        facts.engine_line,
        f"device {device}, world size {world.size}, global batch {recipe.batch_size}, "
        f"torch threads {torch.get_num_threads()}, seed {recipe.seed}",
        f"{int(counts.sum()):,} samples in {len(counts):,} classes, {some.min():,} to {some.max():,} a class "
        f"(imbalance {some.max() / some.min():.1f})",
        f"model {recipe.model}: {parameters_of(model):,} parameters, {recipe.size_px} px",
        source_line(),
    ]
    if facts.pretrained_line:
        lines.append(facts.pretrained_line)
    elif not recipe.pretrained and not any(phase.backbone_factor for phase in recipe.phases):
        lines.append("warning: every phase freezes the backbone, which stays as it was drawn; start with --pretrained")
    if facts.held_out is not None:
        lines += facts.held_out.lines()
    if empty := int((counts == 0).sum()):
        lines.append(f"warning: {empty:,} classes have no sample and will not be learned")
    if compiled:
        lines.append("the model is compiled: the first steps take minutes, and a signal is granted after them")
    return [*lines, *(_phase_line(plan) for plan in plans)]


def _phase_line(plan: PhasePlan) -> str:
    """Length, rates, and whatever is not as usual."""
    phase, gate = plan.phase, plan.phase.gate
    parts = [f"at most {plan.steps:,} steps" if phase.until else f"{plan.steps:,} steps"]
    parts.append(f"lr {phase.lr:g} {phase.schedule}")
    if phase.backbone_factor == 0:
        parts.append("backbone frozen")
    elif (phase.backbone_factor, phase.head_factor) != (1.0, 1.0):
        parts.append(f"of it {phase.backbone_factor:g} for the backbone and {phase.head_factor:g} for the head")
    if phase.labels is not None:
        parts.append(f"learns the {plan.outputs:,} clusters of {phase.labels}, not validated")
    if plan.new_head:
        parts.append("new head")
    if (curriculum := phase.curriculum) is not None:
        weights = ", ".join(f"{weight:g}" for weight in curriculum.weights[: curriculum.max_tier])
        parts.append(f"tiers up to {curriculum.max_tier} of {curriculum.overlay}, weights {weights}")
    if (teacher := phase.teacher) is not None:
        parts.append(f"soft labels of {teacher.overlay}, label share {teacher.label_share:g}")
    parts += [f"balance {phase.balance:g}", f"class weights {phase.class_weights}"]
    if phase.logit_prior != "none":
        parts.append(f"logit prior {phase.logit_prior}")
    if phase.loss.kind != "cross_entropy":
        parts.append(f"loss {phase.loss}")
    if phase.label_smoothing:
        parts.append(f"label smoothing {phase.label_smoothing:g}")
    if phase.mixup_alpha:
        parts.append(f"mixup {phase.mixup_alpha:g}")
    if gate is not None:
        unit = "a share of " if gate.unit == "share" else ""
        parts.append(f"gate {gate.kind} {unit}{gate.start:g} to {gate.end:g} ({gate.schedule})")
        parts.append("loss over the kept" if phase.denominator == "kept" else "loss over all")
        if gate.skip_visits:
            parts.append(f"not read after {gate.skip_visits} visits far under it")
    return f"phase {phase.name}: {', '.join(parts)}"


def parameters_of(model: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in model.parameters())
