"""`wv-ingest duplicates`, and the options about duplicates that `build-shards` shares with it."""

from collections.abc import Callable
from pathlib import Path

import click

from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.duplicates import MAX_NEAR_DISTANCE, NEAR_DISTANCE, Conflict, DuplicateOptions
from wv_ingest.mark_duplicates import mark_again
from wv_ingest.report_html import refresh_report
from wv_ingest.summary import print_marked


def _distance(_: click.Context, __: click.Parameter, value: str) -> int | None:
    """A number of bits; None for `off`."""
    if value == "off":
        return None
    if not value.isdecimal() or int(value) > MAX_NEAR_DISTANCE:
        raise click.BadParameter(f"expected off or 0 … {MAX_NEAR_DISTANCE}, got {value}")
    return int(value)


def duplicate_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--conflict` and `--near-distance` to a command."""
    conflict = click.option(
        "--conflict",
        type=click.Choice([rule.value for rule in Conflict]),
        default=Conflict.KEEP.value,
        show_default=True,
        help="A picture in several classes: each keeps it, none does, or as keep and some are listed.",
    )
    near = click.option(
        "--near-distance",
        metavar="BITS|off",
        callback=_distance,
        default=str(NEAR_DISTANCE),
        show_default=True,
        help="Bits of 64 in which pictures of a class may differ and be the same; half of it between classes. "
        "off: only equal files are.",
    )
    return conflict(near(command))


@click.command("duplicates")
@click.argument("shards", type=click.Path(path_type=Path))
@duplicate_options
@one_line_errors
def duplicates_command(shards: Path, *, conflict: str, near_distance: int | None) -> None:
    """Look for duplicates in SHARDS anew and exclude them, as build-shards does; no shard is touched.

    Of the copies in a class the first by key stays. What `exclude --keys` has excluded stays excluded.
    duplicates.parquet says of each copy what it is a copy of.

    \b
    Examples:
      wv-ingest duplicates shards/train --conflict drop
      wv-ingest duplicates shards/train --near-distance off
    """
    options = DuplicateOptions(conflict=Conflict(conflict), near_distance=near_distance)
    with stoppable("run the same command again") as progress:
        marked = mark_again(shards, options, progress)
        refresh_report(shards, progress)
    print_marked(shards, marked)
