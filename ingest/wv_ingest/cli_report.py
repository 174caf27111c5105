"""The command `wv-ingest report`: options in, one page out. `report_html` does the work."""

from pathlib import Path

import click

from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.errors import SourceError
from wv_ingest.report_html import REPORT_FILE, write_report


@click.command("report")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The page. Default: SHARDS/report.html."
)
@click.option("--source", type=click.Path(path_type=Path), help="What SHARDS were built from: show rejected files too.")
@one_line_errors
def report_command(shards: Path, out: Path | None, source: Path | None) -> None:
    """Write a page of one file about SHARDS: account, classes by size, rejects, sizes, sources, duplicates, samples.

    `build-shards` has written it already, unless told not to. The page loads nothing from anywhere; pictures are in it.

    \b
    Examples:
      wv-ingest report shards/train
      wv-ingest report shards/train -o train.html --source /data/webvision
    """
    out = out or shards / REPORT_FILE
    if out.suffix not in (".html", ".htm"):
        raise click.UsageError(f"expected --out to end in .html, got {out.name}")
    if source is not None and not source.exists():
        raise SourceError(f"{source}: no such file or folder; expected what {shards} were built from")
    with stoppable("run the same command again") as progress:
        write_report(shards, out, progress, source)
    click.echo(f"report: {out}")
