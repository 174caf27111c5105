"""The exceptions of this room: mistakes of the user or the data, each a message of one line.

What is no user's mistake (a broken invariant) is an `assert` and keeps its traceback.
"""


class TrainError(Exception):
    """Base: the message says what was expected, what was found and what to do."""


class RecipeError(TrainError):
    """A recipe that cannot be read; the message begins with the key's whole path."""


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


class NonFiniteLossError(TrainError):
    """The loss became NaN or infinite; `ordinals` are the batch's samples."""

    def __init__(self, message: str, *, ordinals: list[int]) -> None:
        super().__init__(message)
        self.ordinals = ordinals


class FieldError(ValueError):
    """One field of a configuration has a bad value; whoever knows the key's path puts it in front."""

    def __init__(self, field: str, expected: str, found: object) -> None:
        super().__init__(f"{field}: expected {expected}, found {found!r}")
        self.field = field
        self.expected = expected
        self.found = found
