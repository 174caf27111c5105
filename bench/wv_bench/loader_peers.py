"""Which peers `wv-bench loader` has, and how their processes are started."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One way to use another loader."""

    name: str
    module: str
    """Its file in peers/."""
    dtype: str = "uint8"
    writes: bool = False
    """It has a format of its own."""
    device: str = "cpu"
    """Type of the device that its batches are on."""
    ours: bool = False
    """It needs nothing but what this toolkit needs, and so runs on its interpreter."""


PEERS = (
    Peer(name="torch DataLoader", module="torch_folder", dtype="float32"),
    Peer(name="torch DataLoader", module="torch_folder"),
    Peer(name="webdataset", module="webdataset_tars", dtype="float32"),
    Peer(name="webdataset", module="webdataset_tars"),
    Peer(name="FFCV", module="ffcv_beton", writes=True),
    Peer(name="MosaicML Streaming", module="mosaic_streaming", writes=True),
    Peer(name="LitData", module="litdata_chunks", writes=True),
    Peer(name="SPDL", module="spdl_pipeline"),
    Peer(name="Grain", module="grain_records", writes=True),
    Peer(name="DALI (CPU)", module="dali_webdataset"),
    Peer(name="torchvision, GPU decode", module="torchvision_cuda", device="cuda", ours=True),
)


def environment(work: Path) -> dict[str, str]:
    """Of a peer's process: it finds this one package, and no other of this environment.

    A link in a folder of its own does that for a checkout and for an installed package alike.
    """
    only = work / "path"
    only.mkdir(parents=True, exist_ok=True)
    link = only / _HERE.name
    link.unlink(missing_ok=True)  # the toolkit may have moved since
    link.symlink_to(_HERE)
    return {**os.environ, "PYTHONPATH": str(only), "PYTHONUNBUFFERED": "1"}


def pillow_of(python: Path) -> str:
    """Which Pillow an interpreter has, for the first line of output."""
    asked = "import PIL; print(('Pillow-SIMD ' if 'post' in PIL.__version__ else 'stock Pillow ') + PIL.__version__)"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)  # noqa: S603 - the user's
    return done.stdout.strip() if done.returncode == 0 else "no Pillow"
