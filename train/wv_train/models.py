"""Models by name: timm's, and this project's small `wv_resnet_*`. Splits parameters into backbone and head.

Does not load weights and does not train.
"""

from typing import Any

import torch
from torch import nn

from wv_train.errors import ModelError
from wv_train.resnet import SmallResNet, batch_norm, group_norm, relu, silu
from wv_train.table import close_matches

SMALL_MODELS = {
    "wv_resnet_16_32_64": ((16, 32, 64), batch_norm, relu),
    "wv_resnet_32_64_128": ((32, 64, 128), batch_norm, relu),
    "wv_resnet_16_32_64_gn": ((16, 32, 64), group_norm, silu),
    "wv_resnet_32_64_128_gn": ((32, 64, 128), group_norm, silu),
}
"""Name → channels of the three stages, normalisation, activation. `_gn`: samples do not depend on their batch."""

_DEFAULT_MEAN = (0.485, 0.456, 0.406)
_DEFAULT_STD = (0.229, 0.224, 0.225)


def make_model(name: str, classes: int) -> nn.Module:
    """A freshly initialised model with a head of `classes` outputs; draws from torch's global generator.

    Raises ModelError for a name that is neither ours nor timm's.
    """
    if name in SMALL_MODELS:
        return SmallResNet(classes, *SMALL_MODELS[name])
    import timm  # takes as long to load as torch; a small model starts without it

    if not timm.is_model(name):
        known = [*SMALL_MODELS, *timm.list_models()]
        hint = close_matches(name, known) or f"; small models here: {', '.join(SMALL_MODELS)}"
        raise ModelError(f"model {name}: neither one of wv-toolkit's nor of timm's{hint}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return model


def check_model(model: nn.Module, name: str, *, size_px: int, classes: int, device: torch.device) -> None:
    """Show the model one blank image. Raises ModelError if it does not take `size_px` or gives other than (1, K)."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            shape = tuple(model(torch.zeros(1, 3, size_px, size_px, device=device)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise ModelError(f"model {name} does not take images of {size_px} px ({reason[0]}); set size_px") from error
    finally:
        model.train(was_training)
    if shape != (1, classes):
        raise ModelError(f"model {name} gives {shape} for one image, expected {(1, classes)}")


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel (of values in [0, 1]) that the model was designed for."""
    config: dict[str, Any] = getattr(model, "default_cfg", None) or {}
    return tuple(config.get("mean", _DEFAULT_MEAN)), tuple(config.get("std", _DEFAULT_STD))


def head_parameter_ids(model: nn.Module) -> set[int]:
    """`id` of every parameter of the head: timm's `get_classifier`, or a module named fc, classifier or head.

    Raises ModelError if there is none.
    """
    heads: list[object] = []
    if callable(getattr(model, "get_classifier", None)):
        found = model.get_classifier()  # type: ignore[operator]  # checked to be callable
        heads = list(found) if isinstance(found, (tuple, list)) else [found]
    if not any(isinstance(head, nn.Module) and any(True for _ in head.parameters()) for head in heads):
        heads = [getattr(model, name, None) for name in ("fc", "classifier", "head", "last_linear")]
    ids = {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    if not ids:
        raise ModelError(f"{type(model).__name__}: no head found: no get_classifier(), fc, classifier or head")
    return ids


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups, each with `part` ("backbone" or "head"), `params` and `weight_decay`.

    Biases and normalisation layers (parameters of one dimension) are not decayed. Empty groups are left out.
    """
    head = head_parameter_ids(model)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = ("head" if id(parameter) in head else "backbone", parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {"part": part, "params": parameters, "weight_decay": weight_decay if decayed else 0.0}
        for (part, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
