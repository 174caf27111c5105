"""`wv-ingest verify`: is a data set what was built, and if not, can it be mended?"""

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.errors import SourceError
from wv_ingest.repair import RepairOptions, repair
from wv_ingest.webdataset_urls import is_spec, tar_urls
from wv_shards import Manifest, Problem, verify


@click.command("verify")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option(
    "--repair",
    "source",
    is_flag=False,
    flag_value="",
    metavar="[SOURCE]",
    help="Mend what can be mended: shards from SOURCE, which must be as it was; the rest without one.",
)
@click.option("--path-column", default="path", show_default=True, help="Of a list: the column of paths.")
@click.option("--label-column", default="label", show_default=True, help="Of a list: the column of labels.")
@click.option("--workers", type=click.IntRange(1), help="Processes of a repair. Default: one for each core.")
@one_line_errors
def verify_command(
    shards: Path, *, source: str | None, path_column: str, label_column: str, workers: int | None
) -> None:
    """Read all of SHARDS back and compare it with manifest and index.

    Every problem is one line; the exit code is 1 if there is any, after a repair if any is left. What a repair makes
    takes its place only if its checksum is the one that the manifest has.

    \b
    Examples:
      wv-ingest verify shards/train
      wv-ingest verify shards/train --repair /data/webvision
      wv-ingest verify shards/train --repair
    """
    if source:
        _refuse_missing(source)
    problems = _verified(shards)
    if problems and source is not None:
        options = RepairOptions(
            path_column=path_column,
            label_column=label_column,
            **({} if workers is None else {"workers": workers}),
        )
        _print_problems(problems)
        with stoppable("run the same command again to go on") as progress:
            done = repair(shards, problems, Path(source) if source else None, options, progress)
        for text in done.mended:
            click.echo(f"mended: {text}")
        for text in done.left:
            click.echo(f"not mended: {text}")
        problems = _verified(shards) if done.mended else problems
        if problems:
            click.echo(f"{len(problems)} problems are left")
    else:
        _print_problems(problems)
    if problems:
        sys.exit(1)
    manifest = Manifest.load(shards)
    click.echo(f"{shards}: {manifest.samples:,} images in {len(manifest.shards):,} shards, all as the manifest says")


def _refuse_missing(source: str) -> None:
    """Said at once: else a mistyped SOURCE is told after all shards have been read, or never."""
    if is_spec(source):
        tar_urls(source)
    elif not Path(source).exists():
        raise SourceError(f"{source}: no such file or folder; expected what the shards were built from")


def _verified(directory: Path) -> list[Problem]:
    manifest = Manifest.load(directory)
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("verify", total=sum(shard.bytes for shard in manifest.shards))
        return verify(directory, lambda count: bar.advance(task, count))


def _print_problems(problems: list[Problem]) -> None:
    for problem in problems:
        click.echo(" ".join(f"{problem.path}: {problem.kind}: {problem.message}".splitlines()))
