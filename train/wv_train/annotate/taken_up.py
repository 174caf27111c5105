"""What a command of `wv-annotate` says of an earlier process's work."""

import click


def say_taken_up(anew: str | None, kept: str) -> None:
    """On stderr. anew: what kept that work from being used; kept: what was used of it, empty where nothing was."""
    if anew is not None:
        click.echo(f"begun anew, what was there was of another kind: {anew}", err=True)
    elif kept:
        click.echo(kept, err=True)
