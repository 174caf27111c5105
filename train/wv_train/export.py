"""Writes a trained model as one file for use elsewhere, safetensors or ONNX, and checks it against the model on logits.

Which run, checkpoint and weights are meant is the business of `cli_export`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import xxhash
from torch import Tensor, nn

from wv_shards import atomic_file
from wv_train.errors import ExportError
from wv_train.models import make_model, normalization
from wv_train.trained import Trained

TOLERANCE = 1e-4
"""Largest difference of a logit that passes, times the largest logit or 1: float32 sums in another order."""
BATCHES = (3, 1)
"""Sizes of the batches on which a file is checked; the graph is traced with another."""
_TRACED_BATCH = 2

RunFile = Callable[[Path, Tensor], Tensor]
"""Logits (B, K) of a file for images (B, 3, S, S)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far a file's logits are from the model's."""

    largest: float
    """Largest absolute difference of a logit."""
    largest_logit: float

    @property
    def passes(self) -> bool:
        """False where it is above `TOLERANCE`, or not a number."""
        return self.largest <= TOLERANCE * max(1.0, self.largest_logit)


def metadata(trained: Trained) -> dict[str, str]:
    """What a file says of itself; lists are JSON."""
    recipe, info = trained.recipe, trained.run.read_info()
    mean, std = normalization(trained.model)
    return {
        "format": "pt",  # what others look for in a safetensors file
        "model": recipe.model,
        "num_classes": str(len(trained.classes)),
        "classes": json.dumps(trained.classes, ensure_ascii=False),
        "size_px": str(recipe.size_px),
        "eval_crop_fraction": str(recipe.augment.eval_crop_fraction),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "input": "float32 (batch, 3, size, size), RGB, values in [0, 1] minus mean, over std",
        "weights": trained.weights,
        "step": str(trained.step),
        "recipe_digest": xxhash.xxh3_128_hexdigest(json.dumps(info["recipe"], sort_keys=True).encode()),
        "manifest_digest": info["manifest_digest"],
        "wv_toolkit": version("wv-toolkit"),
    }


def write_safetensors(trained: Trained, path: Path) -> Difference:
    """Write the model's tensors under timm's names; the file appears only if it agrees with the model.

    Raises ExportError: it does not, or cannot be written.
    """
    from safetensors.torch import load_file, save

    tensors = {key: value.contiguous() for key, value in trained.model.state_dict().items()}

    def run(file: Path, images: Tensor) -> Tensor:
        model = make_model(trained.recipe.model, len(trained.classes)).eval()
        model.load_state_dict(load_file(file))
        return _logits(model.to(memory_format=torch.channels_last), images)  # as ours: the same sums

    return _write(path, save(tensors, metadata(trained)), trained.model, run, trained.recipe.size_px, torch.float32)


def write_onnx(trained: Trained, path: Path, *, normalize: bool) -> Difference:
    """Write the model as a graph of ONNX, images (batch, 3, S, S) → logits (batch, K), any batch size.

    normalize: the graph takes uint8 RGB images and normalises them itself. The file appears only if ONNX Runtime, on a
    CPU, agrees with the model. Raises ExportError: it does not, cannot be written, or packages are missing.
    """
    try:
        import onnx  # noqa: F401  # what the exporter needs
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package {error.name}, which is not installed: run `make setup EXTRAS=dev,onnx`, or "
            "pip install onnx onnxscript onnxruntime; or export to .safetensors"
        ) from error

    model = _WithNormalization(trained.model).eval() if normalize else trained.model
    dtype = torch.uint8 if normalize else torch.float32
    size_px = trained.recipe.size_px
    facts = metadata(trained) | ({"input": "uint8 (batch, 3, size, size), RGB"} if normalize else {})
    program = torch.onnx.export(
        model,
        (_images(_TRACED_BATCH, size_px, dtype),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # dynamo=True and no file
    program.model.metadata_props.update(facts)

    def run(file: Path, images: Tensor) -> Tensor:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return _write(path, program.model_proto.SerializeToString(), model, run, size_px, dtype)


class _WithNormalization(nn.Module):
    """uint8 images → logits, as the trainer normalises them (`Batch.normalized`)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        mean, std = normalization(model)
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor([m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.float() * self.scale - self.shift)
        return logits


def _write(
    path: Path,
    data: bytes,
    model: nn.Module,
    run: RunFile,
    size_px: int,
    dtype: torch.dtype,
) -> Difference:
    """Write, check what lies on the disk, and give it its name only then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(data)
            file.flush()
            difference = _compare(model, Path(file.name), run, size_px, dtype)
            if not difference.passes:
                raise ExportError(
                    f"{path}: not written: its logits are up to {difference.largest:.2g} from the model's, allowed is "
                    f"{TOLERANCE:g} of the largest, {difference.largest_logit:.3g}"
                )
    except OSError as error:
        raise ExportError(f"{path}: not written: {error.strerror or error}") from error
    return difference


def _compare(model: nn.Module, file: Path, run: RunFile, size_px: int, dtype: torch.dtype) -> Difference:
    largest = largest_logit = 0.0
    for size in BATCHES:
        images = _images(size, size_px, dtype)
        ours, theirs = _logits(model, images), run(file, images)
        # max() of Python drops a NaN, that of torch keeps it.
        largest = float(torch.tensor([largest, (ours - theirs).abs().max()]).max())
        largest_logit = max(largest_logit, float(ours.abs().max()))
    return Difference(largest=largest, largest_logit=largest_logit)


def _images(size: int, size_px: int, dtype: torch.dtype) -> Tensor:
    """(size, 3, S, S) of noise, the same at every call."""
    generator = torch.Generator().manual_seed(size)
    shape = (size, 3, size_px, size_px)
    if dtype is torch.uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits
