"""`wv-ingest exclude`: take-downs and other samples that must not be shown, by their keys."""

from pathlib import Path
from typing import BinaryIO

import click

from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.exclude import exclude_keys
from wv_ingest.report_html import refresh_report


@click.command("exclude")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option(
    "--keys", type=click.File("rb"), required=True, metavar="FILE", help="Keys, one a line; - is standard input."
)
@click.option("--undo", is_flag=True, help="Show these samples again, unless they are excluded as duplicates too.")
@click.option("--ignore-unknown", is_flag=True, help="Pass over keys that no sample has, instead of changing nothing.")
@one_line_errors
def exclude_command(shards: Path, *, keys: BinaryIO, undo: bool, ignore_unknown: bool) -> None:
    """Keep the samples with these keys from being shown: they stay in their tars, the overlay `exclude` names them.

    Keys are the names in the tars and the column `key` of samples.parquet. Doing it twice changes nothing.

    \b
    Examples:
      wv-ingest exclude shards/train --keys takedowns.txt
      wv-ingest exclude shards/train --keys takedowns.txt --undo
      tar tf shards/train/b09-000003.tar | sed -n 's/[.]jpg$//p' | wv-ingest exclude shards/train --keys -
    """
    lines = (line.strip().decode("utf-8", "backslashreplace") for line in keys)
    done = exclude_keys(shards, filter(None, lines), undo=undo, ignore_unknown=ignore_unknown)
    if done.changed:
        with stoppable("the samples are as asked, `wv-ingest report` writes the page") as progress:
            refresh_report(shards, progress)
    what = "shown again" if undo else "excluded"
    unknown = f", {done.unknown:,} unknown keys passed over" if done.unknown else ""
    click.echo(
        f"{shards}: {done.changed:,} samples {what} for {done.keys:,} keys{unknown}; excluded "
        f"{done.excluded_before:,} before, {done.excluded_after:,} now, of {done.samples:,}"
    )
