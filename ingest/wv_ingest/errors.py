"""What a person can get wrong when building shards. Every message is one line: expected, found, what to do."""


class IngestError(Exception):
    """Base of the user's mistakes and of builds that had to stop; the command line prints it and exits with 1."""


class SourceError(IngestError):
    """The source is not what it should be: layout, list, labels."""


class BuildError(IngestError):
    """The build stopped: too many rejects, nothing readable, a worker died. It can be resumed."""


class BuildMismatchError(IngestError):
    """The output directory holds the build of something else: other source, options or codecs."""


class PartsError(IngestError):
    """The folders given are not all parts of one build, each once and complete."""


class MergeError(IngestError):
    """Data sets that do not fit together."""


class NothingReadableError(BuildError):
    """Not one row of the source could be packed: most likely the wrong folder. Nothing is left behind."""


class WorkerDiedError(BuildError):
    """A worker process ended without an answer (killed, out of memory, crashed decoder)."""


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; `signal_number` says which. Like KeyboardInterrupt it is no error."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
