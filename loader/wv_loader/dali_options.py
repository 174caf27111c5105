"""Options of the engines in which DALI decodes, checked once."""

from dataclasses import dataclass

from wv_loader.checks import number, truth, whole

_MAX_PREFETCH = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class DaliOptions:
    """How DALI works, where it decodes; nothing that is shown depends on it, but for rounding.

    Raises:
        OptionError: one of them can't be.
    """

    prefetch: int = 2
    """Batches that DALI has in hand at a time, 1 … 16; each costs memory for its pixels, on a GPU there."""
    hw_decoder_load: float = 0.9
    """Of the JPEGs that a GPU's hardware decoder can take, how much goes there (0 … 1); its cores decode the rest."""
    region: bool | None = None
    """Decode the part of an image that its crop needs; False: whole images; None: parts on a CPU, whole images on a
    GPU, where nvImageCodec 0.9.0 is reported to fail, or to crash the process, on parts of good JPEGs (issue 55)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefetch", whole("dali.prefetch", self.prefetch, 1, _MAX_PREFETCH))
        object.__setattr__(self, "hw_decoder_load", number("dali.hw_decoder_load", self.hw_decoder_load, 0, 1))
        if self.region is not None:
            object.__setattr__(self, "region", truth("dali.region", self.region))
