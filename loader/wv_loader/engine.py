"""What a decode engine is, and which one a name means. Engines draw no boxes themselves."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wv_loader.augment import Crops
from wv_loader.decode_pillow import PillowEngine
from wv_loader.errors import LoaderError
from wv_loader.read import Failure

ENGINES = ("auto", "turbo", "pillow")


class Engine(Protocol):
    """Decodes, crops and resizes. Safe to call from several threads; the GIL is free while pixels are made."""

    @property
    def name(self) -> str:
        """One of ENGINES."""

    @property
    def description(self) -> str:
        """Libraries and versions, for a person."""

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


def make_engine(name: str) -> Engine:
    """The engine of a name; `auto` is the fastest that is built here.

    Raises:
        LoaderError: no such engine, or it is not built here.
    """
    if name not in ENGINES:
        raise LoaderError(f"engine {name!r}: expected one of {', '.join(ENGINES)}")
    built = find_spec("wv_loader._turbo") is not None
    if name == "pillow" or (name == "auto" and not built):
        return PillowEngine()
    if not built:
        raise LoaderError(
            "engine 'turbo' is not built here: install a C compiler, python3-dev and libjpeg-dev and run `make setup`, "
            "or take engine 'pillow'"
        )
    from wv_loader.decode_turbo import TurboEngine  # its kernel may be missing

    return TurboEngine()
