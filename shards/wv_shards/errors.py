"""What can be wrong with a data set on disk, as one small exception tree.

Every message is one line for a person: what was expected, what was found, what to do.
"""


class ShardsError(Exception):
    """Base of all errors about a directory of shards."""


class NotADatasetError(ShardsError):
    """The directory is missing, or holds no manifest and no unfinished build."""


class UnfinishedBuildError(ShardsError):
    """The directory holds a build that has not been finished: no reader may use it."""


class FormatVersionError(ShardsError):
    """The directory was written by a newer version of the format."""


class CorruptDataError(ShardsError):
    """Bytes on disk are not the bytes that were written."""


class OverlayMismatchError(ShardsError):
    """An overlay belongs to another data set, or is of another kind."""


class OutputExistsError(ShardsError):
    """The output directory holds something that must not be overwritten."""


class OpenFilesError(ShardsError):
    """A shard can't be opened because too many other files are: no fault of the shard or its disk."""
