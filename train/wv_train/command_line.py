"""How a command ends: expected mistakes as one line and exit code 1, wrong usage 2, Ctrl-C 130; never a traceback."""

import os
import sys
from typing import NoReturn

import click

from wv_loader import LoaderError
from wv_shards import ShardsError
from wv_train.errors import TrainError


def run_command(name: str, command: click.Command) -> None:
    """Run a command of click with the process's arguments; returns where all went well."""
    rank = os.environ.get("RANK", "0")
    first = rank == "0"
    name = name if first else f"{name} (rank {rank})"
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        _exit(2, f"{name}: {error.format_message()}" if first else "")  # all ranks got the same options
    except (TrainError, LoaderError, ShardsError) as error:
        _exit(1, f"{name}: {error}")
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _exit(1, f"{name}: {where}{error.strerror or error}")
    except (click.Abort, KeyboardInterrupt):
        _exit(130, f"{name}: interrupted")


def _exit(code: int, line: str) -> NoReturn:
    if line:
        sys.stderr.write(line + "\n")
    sys.exit(code)
