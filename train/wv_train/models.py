"""Models by name: timm's, and this project's small `wv_resnet_*`. Splits parameters into backbone and head.

Does not load weights (see `weights`) and does not train. Which models the project's method was made for: see `zoo`.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

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

CIFAR_MODELS = {"wv_resnet34_cifar": "resnet34"}
"""Name → timm's model that it is, with the stem of papers on CIFAR: one 3×3 convolution at full size, no pooling."""

SMALL_SIZE_PX = 32
"""What the small ones were made for; they take any size from 8 px up."""

_DEFAULT_MEAN = (0.485, 0.456, 0.406)
_DEFAULT_STD = (0.229, 0.224, 0.225)
_HEAD_NAMES = ("fc", "classifier", "head", "last_linear")
_frozen: WeakKeyDictionary[nn.Module, list[nn.Parameter]] = WeakKeyDictionary()
"""Parameters that `freeze_backbone` has stopped, by model: those of others stay as they were made."""


def make_model(name: str, classes: int) -> nn.Module:
    """A freshly initialised model with a head of `classes` outputs; draws from torch's global generator.

    Raises ModelError for a name that is neither ours nor timm's.
    """
    if name in SMALL_MODELS:
        return SmallResNet(classes, *SMALL_MODELS[name])
    _check_timm_name(CIFAR_MODELS.get(name, name))
    import timm  # takes as long to load as torch; a small model starts without it

    model: nn.Module = timm.create_model(CIFAR_MODELS.get(name, name), pretrained=False, num_classes=classes)
    if name in CIFAR_MODELS:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model


def own_size_px(name: str) -> int:
    """Side of the images that a model was designed for: 224 for most, 299 for Inception. Makes no model.

    Raises ModelError for a name that is neither ours nor timm's.
    """
    if name in SMALL_MODELS or name in CIFAR_MODELS:
        return SMALL_SIZE_PX
    _check_timm_name(name)
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    assert config is not None  # of a name that timm knows
    return int(config.input_size[-1])


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


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that are the head, without those inside them: `("fc",)`, or two for a distilled model.

    As timm says (`default_cfg["classifier"]`, else `get_classifier`), else a module named fc, classifier, head or
    last_linear. Raises ModelError if there is none.
    """
    named = dict(model.named_modules())
    config: dict[str, Any] = getattr(model, "default_cfg", None) or {}
    said = config.get("classifier") or ()
    names = [said] if isinstance(said, str) else list(said)
    if not names and callable(getattr(model, "get_classifier", None)):
        found = model.get_classifier()  # type: ignore[operator]  # checked to be callable
        heads = found if isinstance(found, (tuple, list)) else (found,)
        names = [name for name, module in named.items() if any(module is head for head in heads)]
    for choice in (names, _HEAD_NAMES):
        if with_weights := tuple(name for name in choice if name in named and _has_parameters(named[name])):
            return with_weights
    raise ModelError(f"{type(model).__name__}: no head found: no get_classifier(), fc, classifier or head")


def head_parameter_ids(model: nn.Module) -> set[int]:
    """`id` of every parameter of the head, see `head_names`. Raises ModelError if there is none."""
    return {id(parameter) for name in head_names(model) for parameter in model.get_submodule(name).parameters()}


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What the head sees: normalised images (B, 3, S, S) → (B, D), by timm's `forward_features` and `forward_head`."""
    maps = model.forward_features(images)  # type: ignore[operator]  # a method of timm's models and of ours
    return torch.as_tensor(model.forward_head(maps, pre_logits=True))  # type: ignore[operator]  # the same


def freeze_backbone(model: nn.Module, frozen: bool) -> list[nn.Module]:
    """Stop, or start again, the gradients of all but the head; the head's stay as they are.

    Idempotent and reversible: parameters that never learned (a fixed position embedding) do not learn afterwards.

    Returns:
        The backbone's layers with running statistics, put into evaluation mode: a frozen backbone must give an image
        the same features in every batch. `model.train()` undoes that, so whoever calls it puts them back. Not frozen:
        an empty list, and these layers are in the model's own mode again.
    """
    head = {id(module) for name in head_names(model) for module in model.get_submodule(name).modules()}
    head_parameters = head_parameter_ids(model)
    stopped = _frozen.setdefault(model, [])
    if frozen:
        stopped += [p for p in model.parameters() if p.requires_grad and id(p) not in head_parameters]
        for parameter in stopped:
            parameter.requires_grad_(False)
    else:
        for parameter in _frozen.pop(model):
            parameter.requires_grad_(True)
    layers = [
        module
        for module in model.modules()
        if getattr(module, "running_mean", None) is not None and id(module) not in head
    ]
    for layer in layers:
        layer.train(model.training and not frozen)
    return layers if frozen else []


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


def _check_timm_name(name: str) -> None:
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        known = [*SMALL_MODELS, *CIFAR_MODELS, *timm.list_models()]
        hint = close_matches(name, known) or f"; small models here: {', '.join(SMALL_MODELS)}"
        raise ModelError(f"model {name}: neither one of wv-toolkit's nor of timm's{hint}")
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:  # the name behind the dot
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise ModelError(f"model {name}: timm knows no such weights of it; it knows {tags}") from error


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
