"""The exceptions of this room: mistakes of the user or the data, each a message of one line.

What is no user's mistake (a broken invariant) is an `assert` and keeps its traceback.
"""

from dataclasses import dataclass


class TrainError(Exception):
    """Base: the message says what was expected, what was found and what to do."""


class RecipeError(TrainError):
    """A recipe that cannot be read; the message names the key's whole path, and its file and line where they are known.

    `key_path` is the path alone, "" where no key is to blame.
    """

    def __init__(self, message: str, *, key_path: str = "") -> None:
        super().__init__(message)
        self.key_path = key_path


class ModelError(TrainError):
    """An unknown model, or one that does not take the recipe's images."""


class CheckpointError(TrainError):
    """A checkpoint that does not belong here (another data set, a newer format, not a checkpoint), or was not saved."""


class ExportError(TrainError):
    """A model that cannot be written for use elsewhere, or whose file does not agree with it."""


class ClassMismatchError(TrainError):
    """Data with other classes than the training set's."""


class RunDirectoryError(TrainError):
    """An output folder that holds something else, or a run where none was expected (or the reverse)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NonFiniteBatch:
    """A global batch whose loss was no number."""

    step: int
    ordinals: list[int]


class NonFiniteLossError(TrainError):
    """The loss became NaN or infinite in each of `batches`, the last ones of the run."""

    def __init__(self, message: str, *, batches: list[NonFiniteBatch]) -> None:
        super().__init__(message)
        self.batches = batches


class FieldError(ValueError):
    """One field of a configuration has a bad value; whoever knows the key's path puts it in front."""

    def __init__(self, field: str, expected: str, found: object) -> None:
        super().__init__(f"{field}: expected {expected}, found {found!r}")
        self.field = field
        self.expected = expected
        self.found = found
