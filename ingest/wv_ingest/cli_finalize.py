"""`wv-ingest finalize`: the parts of a build, from many machines, become one data set."""

from pathlib import Path

import click

from wv_ingest.build_options import DEFAULT_REJECT_FRACTION
from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.join import join
from wv_ingest.report_html import add_report
from wv_ingest.summary import print_summary


@click.command("finalize")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("parts", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="PART_DIR…")
@click.option(
    "--max-reject-fraction",
    type=click.FloatRange(0.0, 1.0),
    default=DEFAULT_REJECT_FRACTION,
    show_default=True,
    help="Stop when more of all rows than this are rejected.",
)
@one_line_errors
def finalize_command(out: Path, parts: tuple[Path, ...], *, max_reject_fraction: float) -> None:
    """Join all parts of a build into the data set OUT: the bytes are those of a build on one machine.

    PART_DIR… are the folders that `wv-ingest build-shards SOURCE PART_DIR --part I/N` made, all N of them, of the same
    source with the same options and codecs. The source is not needed. All files are compared with the
    checksums that the parts have noted. Shards are hard-linked where OUT is on the same file system, else copied. The
    parts stay as they are; delete them afterwards.

    \b
    Example, on two machines and then on one of them:
      wv-ingest build-shards /data/webvision /shared/parts/1 --part 1/2
      wv-ingest build-shards /data/webvision /shared/parts/2 --part 2/2
      wv-ingest finalize /shared/shards/train /shared/parts/*
    """
    with stoppable("run the same command again to go on") as progress:
        print_summary(join(out, parts, max_reject_fraction, progress), out)
        add_report(out, progress)
    click.echo(f"the parts are not needed any more: {', '.join(map(str, parts[:3]))}{', …' if len(parts) > 3 else ''}")
