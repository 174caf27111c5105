"""Records the loss curves in curves.npz, which the plateau rule is tested on: `python record.py DATA_FOLDER [CURVE …]`.

Each curve is a real run of the small network on images with human label noise (CIFAR-10N, `worse`: 40% of the labels
wrong), 5,000 of them at half their size, shifted and mirrored at random: the loss of every step, as the trainer hands
it to the detector.
"""

import io
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from wv_train.models import make_model

CURVES = {
    # name: (batch, steps, rate, step at which the rate falls to a tenth, weight decay)
    "falling": (128, 5000, 0.05, None, 5e-4),
    "rate_step": (128, 5000, 0.05, 2500, 5e-4),
    "noisy": (64, 6000, 0.05, None, 5e-4),
    "slow": (128, 4000, 0.0003, None, 5e-4),
    "stable": (128, 5000, 0.05, None, 1e-2),
}
_IMAGES = 5_000


def record(data: Path, name: str) -> NDArray[np.float16]:
    """Train; (steps,) losses, to three digits or so."""
    batch, steps, rate, fall, decay = CURVES[name]
    archive = np.load(data / "cifar10n_train.npz")
    jpeg, offsets = archive["jpeg"], archive["offsets"]
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in range(_IMAGES)]
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.47).div(0.25)  # (N, 3, 32, 32)
    pixels = F.pad(F.avg_pool2d(pixels, 2), (2, 2, 2, 2))  # (N, 3, 20, 20)
    labels = torch.from_numpy(archive["worse"][:_IMAGES].astype(np.int64))
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = make_model("wv_resnet_16_32_64", 10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    losses: list[float] = []
    order: list[int] = []
    while len(losses) < steps:
        if len(order) < batch:
            order = random.permutation(_IMAGES).tolist()
        chosen, order = order[:batch], order[batch:]
        x, y = random.integers(0, 5, 2)
        shown = pixels[chosen, :, y : y + 16, x : x + 16]
        mirrored = torch.from_numpy(random.random(batch) < 0.5)
        shown = torch.where(mirrored[:, None, None, None], shown.flip(3), shown)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.1 if fall is not None and len(losses) >= fall else 1.0)
        loss = F.cross_entropy(model(shown.contiguous(memory_format=torch.channels_last)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 500 == 0:
            print(name, len(losses), np.mean(losses[-500:]), flush=True)
    return np.array(losses, dtype=np.float16)


if __name__ == "__main__":
    torch.set_num_threads(1)
    file = Path(__file__).with_name("curves.npz")
    curves = dict(np.load(file)) if file.exists() else {}
    for wanted in sys.argv[2:] or CURVES:
        curves[wanted] = record(Path(sys.argv[1]), wanted)
    np.savez_compressed(file, **curves)
