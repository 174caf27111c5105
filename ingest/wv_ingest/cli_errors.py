"""What the commands share: errors as one line with exit code 1, and a Ctrl-C that clears up. It holds no command."""

import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import NoReturn, ParamSpec

import click

from wv_ingest.errors import IngestError, Stopped
from wv_ingest.progress import Progress
from wv_shards import ShardsError

Parameters = ParamSpec("Parameters")


def one_line_errors(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """The user's mistakes and the machine's limits become one line and exit code 1; wrong usage stays click's 2."""

    @wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (IngestError, ShardsError) as error:
            fail(str(error))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                fail("no space left on the device; free some and run the same command again, what is done is kept")
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}")

    return wrapped


def fail(message: str) -> NoReturn:
    """Print `message` as one line of error and end with exit code 1."""
    click.echo(f"wv-ingest: {' '.join(message.splitlines())}", err=True)
    sys.exit(1)


@contextmanager
def stoppable(advice: str) -> Iterator[Progress]:
    """Progress of a command that SIGINT and SIGTERM end with `advice` and the shell's exit code, after clearing up.

    Inside they raise Stopped, once; a second signal can't interrupt what that sets going.
    """

    def stop(signal_number: int, _: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise Stopped(signal_number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Progress() as progress:
            try:
                yield progress
            except Stopped as stopped:
                progress.note(f"stopped; {advice}")
                sys.exit(128 + stopped.signal_number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
