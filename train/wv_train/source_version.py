"""Which code runs: the commit of the toolkit's source tree, where it is a checkout of git."""

import os
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path


def source_line() -> str:
    """Version of the package, and the commit where there is one, for a person."""
    commit = source_commit()
    return f"wv-toolkit {version('wv-toolkit')}" + (f", commit {commit}" if commit else "")


@cache
def source_commit(root: Path | None = None) -> str | None:
    """The commit, 12 digits, with `-dirty` where tracked files differ from it.

    None: `root` (the toolkit's source tree) is no checkout, as where the package was installed, or git can't tell.
    """
    root = root or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # git would go on to look in the folders above, which are someone else's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # may run beside a git command that holds the lock
    try:
        found = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, check=True, timeout=30, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
