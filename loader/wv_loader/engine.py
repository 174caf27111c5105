"""What a decode engine is, and how one is made; which one a name means is engine_choice.py's. Engines draw no boxes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from wv_loader.augment import Crops
from wv_loader.dali_options import DaliOptions
from wv_loader.decode_pillow import PillowEngine
from wv_loader.engine_choice import ENGINES, choose_engine
from wv_loader.read import Failure

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs

    from wv_loader.decode_dali import DaliEngine

__all__ = ["ENGINES", "Engine", "engine_line", "is_dali", "make_engine"]


class Engine(Protocol):
    """Decodes, crops and resizes. Safe to call from several threads; the GIL is free while pixels are made."""

    @property
    def name(self) -> str:
        """One of ENGINES."""

    @property
    def description(self) -> str:
        """Libraries and versions, for a person."""

    @property
    def reason(self) -> str:
        """Why `auto` took it, and what it passed over; "" where it was named."""

    def decode(
        self,
        data: Sequence[bytes | memoryview | Failure | None],
        widths: NDArray[np.int64],
        heights: NDArray[np.int64],
        crops: Crops,
        out: NDArray[np.uint8],
    ) -> list[Failure | None]:
        """Decode some samples of a batch.

        Args:
            data: n image files; what is not bytes is passed over and its slot zeroed.
            widths, heights: (n,) of the stored images as the index has them; the boxes refer to these.
            crops: n boxes and flips.
            out: (n, S, S, 3) uint8, written in place; slots without an image are zeroed.

        Returns:
            For each sample why it failed, or None. A sample's fault is never raised.
        """


def make_engine(
    name: str,
    device: "torch.device | None" = None,
    *,
    has_effects: bool = False,
    processes: int = 0,
    dali: DaliOptions | None = None,
) -> "Engine | DaliEngine":
    """The engine of a name; `auto` is the fastest that works here.

    Args:
        name, device, has_effects, processes: as of `choose_engine`.
        dali: options where DALI decodes; None: the defaults.

    Raises:
        EngineError: no such engine, or it can't work here.
    """
    choice = choose_engine(name, device, has_effects=has_effects, processes=processes)
    if not choice.name.startswith("dali"):
        return _cpu_engine(choice.name, choice.reason)
    import torch

    from wv_loader.decode_dali import DaliEngine  # DALI may be missing

    on = None
    if choice.name == "dali-gpu":
        index = None if device is None else device.index
        on = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    cpu = _cpu_engine(choose_engine("auto", None).name, "")
    return DaliEngine(on, cpu, dali or DaliOptions(), choice.reason)


def is_dali(engine: "Engine | DaliEngine") -> "TypeIs[DaliEngine]":
    """Whether DALI decodes: batch by batch, in threads of its own."""
    return engine.name.startswith("dali")


def _cpu_engine(name: str, reason: str) -> Engine:
    if name == "pillow":
        return PillowEngine(reason)
    from wv_loader.decode_turbo import TurboEngine  # its kernel may be missing

    return TurboEngine(reason)


def engine_line(engine: "Engine | DaliEngine") -> str:
    """What decodes here and why, as the first line that a command says."""
    reason = f": {engine.reason}" if engine.reason else ""
    return f"engine {engine.name} ({engine.description}){reason}"
