"""What can go wrong in the loader that a user can mend, as one small exception tree, and what is only warned of."""


class LoaderError(Exception):
    """Base of the loader's errors; one line: expected, found, what to do."""


class OptionError(LoaderError, ValueError):
    """An option that can't be; the message says which, what was expected and what was found."""


class EngineError(LoaderError):
    """There is no such engine, or it can't work on this machine or with these options."""


class StateMismatchError(LoaderError):
    """A saved state belongs to another plan; the message names what differs."""


class BadSampleBudgetError(LoaderError):
    """More samples failed than the budget allows; the message counts them by reason."""


class StorageError(LoaderError):
    """Nothing can be read any more: the disk or the mount is gone, which no budget for bad images is for."""


class QuarantineWarning(UserWarning):
    """The quarantine log can't be written any more; the run goes on."""
