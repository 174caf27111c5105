"""Weights to start from: reads a file of them, fits them to a model, and says what became of the head.

Reads tensors and plain values only, never a pickle that runs code. Saving a run is `checkpoint`'s business.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wv_shards import file_checksum
from wv_train.errors import ModelError
from wv_train.models import head_names

_STATES = ("ema", "state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which checkpoints keep a model, the better weights first: ours, and timm's training scripts'."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What DDP and torch.compile put before a parameter's name."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """What a file holds."""

    path: Path
    digest: str
    """xxh3_128 of the file, in hexadecimal."""
    tensors: dict[str, Tensor]
    classes: list[str] | None
    """Names of the head's classes, where the file says them: ours do."""
    kind: str
    """Which weights, where the file holds several: the key in it."""


def read_weights(path: Path) -> Weights:
    """Read a .safetensors file, a state dict of torch (.pth, .pt), or a checkpoint of wv-train or timm, onto the CPU.

    Raises ModelError: missing, damaged, not weights, or a pickle with more in it than tensors and plain values.
    """
    content: Any
    classes: Any = None
    try:
        digest = file_checksum(path)
        if path.suffix == ".safetensors":
            content, classes = _read_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: weights cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        raise ModelError(
            f"{path}: expected weights (.safetensors, or .pth and .pt with tensors and plain values only: what would "
            "run code is not loaded), found another file or a damaged one"
        ) from error
    kind = ""
    if isinstance(content, Mapping):
        classes = content.get("classes", classes)
        kind = next((key for key in _STATES if isinstance(content.get(key), Mapping)), "")
        content = content[kind] if kind else content
    tensors = {_unwrapped(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"{path}: expected a model's tensors by name, found none; give a state dict or a checkpoint")
    named = classes if isinstance(classes, list) else None
    return Weights(path=path, digest=digest, tensors=tensors, classes=named, kind=kind)


def load_weights(model: nn.Module, weights: Weights, classes: list[str]) -> str:
    """Copy a file's weights into `model`; returns one line that says what was taken and what was not.

    The head stays as it was made where the file's is of another number of classes, of other classes (where it names
    them), or missing. Auxiliary classifiers that this model is made without are dropped. Raises ModelError for any
    other difference, with the names of tensors.
    """
    own = model.state_dict()
    heads = tuple(f"{name}." for name in head_names(model))
    found, dropped = dict(weights.tensors), ""
    for key in [key for key in found if key.lower().startswith("aux") and key not in own]:
        del found[key]
        dropped = ", its auxiliary classifier left out"
    theirs = {key: found[key] for key in found if key.startswith(heads)}
    rows = max((value.shape[0] for value in theirs.values() if value.ndim), default=0)
    if rows == len(classes) and weights.classes in (None, classes):
        head = f"its head of {rows:,} classes too"
    else:
        found = {key: value for key, value in found.items() if key not in theirs}
        found |= {key: own[key] for key in own if key.startswith(heads)}
        others = " other" if rows == len(classes) else ""
        was = f"head of {rows:,}{others} classes replaced by" if rows else "no head in the file:"
        head = f"{was} a new one of {len(classes):,}"
    # Files from before torch 0.4.1 do not count the batches; only a cumulative average needs the number.
    found |= {key: own[key] for key in own if key.endswith("num_batches_tracked") and key not in found}
    if difference := _difference(own, found):
        raise ModelError(f"{weights.path}: weights of another model than {type(model).__name__}: {difference}")
    model.load_state_dict(found)
    kind = f" ({weights.kind})" if weights.kind else ""
    return f"weights of {weights.path}{kind}, xxh3 {weights.digest}: {head}{dropped}"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors by name, and what the file says of the classes: ours hold their names."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no dictionary
    return tensors, json.loads(metadata.get("classes", "null"))


def _unwrapped(key: Any) -> str:
    name = str(key)
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _difference(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps tensors from fitting, `` where nothing does."""
    shaped = [key for key in own if key in found and own[key].shape != found[key].shape]
    lists = {
        "missing": [key for key in own if key not in found],
        "unexpected": [key for key in found if key not in own],
        "of another shape": [f"{key} {tuple(found[key].shape)} for {tuple(own[key].shape)}" for key in shaped],
    }
    return "; ".join(f"{len(names):,} {what} ({_some(names)})" for what, names in lists.items() if names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
