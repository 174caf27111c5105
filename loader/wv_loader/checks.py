"""Checks of single options: what can't be is refused by name, with what was expected and what was found.

Numbers of NumPy, and arrays and tensors without dimensions, are numbers; truth values and texts are none. Nothing is
rounded. Which options there are is not known here.
"""

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wv_loader.errors import OptionError

LARGEST = 2**31 - 1
"""Of whole numbers, unless another limit is given."""
_SHOWN = 80


def refuse(name: str, expected: str, found: object) -> OptionError:
    """The error that says so."""
    text = " ".join(repr(found).split())
    return OptionError(f"{name}: expected {expected}, got {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}")


def whole(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """The value as an int from low to high.

    Raises:
        OptionError: it is none.
    """
    one = plain(value)
    try:
        found = None if isinstance(one, bool) else operator.index(one)
    except TypeError:
        found = None
    if found is None or not low <= found <= high:
        raise refuse(name, f"a whole number from {low} to {high}", value)
    return found


def whole_or_none(name: str, value: Any, low: int, high: int = LARGEST) -> int | None:
    """The same, or None."""
    return None if value is None else whole(name, value, low, high)


def number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float from low to high.

    Raises:
        OptionError: it is none.
    """
    one = plain(value)
    if isinstance(one, bool) or not isinstance(one, int | float) or not low <= one <= high:
        raise refuse(name, f"a number from {low:g} to {high:g}", value)
    return float(one)


def truth(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        OptionError: it is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise refuse(name, "True or False", value)
    return bool(value)


def one_path(name: str, value: Any) -> Path:
    """The path of a text or a path.

    Raises:
        OptionError: it is neither.
    """
    if not isinstance(value, str | os.PathLike):
        raise refuse(name, "a path", value)
    return Path(value)


def several(value: Any) -> list[Any] | None:
    """What an ordered collection holds; None: it is none, or a text."""
    if getattr(value, "ndim", 0) == 1 or (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
        return list(value)
    return None


def plain(value: Any) -> Any:
    """Python's number of NumPy's or torch's; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
