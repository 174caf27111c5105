"""`wv-ingest append` and `merge`: data sets that grow."""

from pathlib import Path

import click

from wv_ingest.append import AppendOptions, AppendResult, append
from wv_ingest.build_options import DEFAULT_REJECT_FRACTION
from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.merge import merge
from wv_ingest.report_html import add_report, refresh_report


@click.command("append")
@click.argument("shards", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--classes-from",
    type=click.Path(path_type=Path),
    metavar="TRAIN_SHARDS",
    help="Use the classes of these shards: for a validation set whose training set has got new ones.",
)
@click.option("--path-column", default="path", show_default=True, help="Of a list: the column of paths.")
@click.option("--label-column", default="label", show_default=True, help="Of a list: the column of labels.")
@click.option("--workers", type=click.IntRange(1), help="Processes. Default: one for each core.")
@click.option(
    "--max-reject-fraction",
    type=click.FloatRange(0.0, 1.0),
    default=DEFAULT_REJECT_FRACTION,
    show_default=True,
    help="Stop when more than this of all rows, old and new, are rejected.",
)
@click.option("--no-unlisted", is_flag=True, help="WebVision: do not look for files that no list names.")
@one_line_errors
def append_command(
    shards: Path,
    source: Path,
    *,
    classes_from: Path | None,
    path_column: str,
    label_column: str,
    workers: int | None,
    max_reject_fraction: float,
    no_unlisted: bool,
) -> None:
    """Pack the images of SOURCE that SHARDS do not have yet into new shards of it.

    SOURCE is the folder that SHARDS were built from, with more files and longer lists, or another one of the same kind
    whose paths are new. Options and codecs are those of SHARDS. What is packed stays as it is; what was rejected or
    missing is tried again; new classes get the ids after the last one. Overlays (exclusions, ledgers) hold for
    the grown data set. SHARDS can be read until the last moment, and an append that was stopped goes on when the same
    command is run again.

    \b
    Examples:
      wv-ingest append shards/train /data/webvision
      wv-ingest append shards/train more/list.csv --path-column file --label-column class
    """
    options = AppendOptions(
        path_column=path_column,
        label_column=label_column,
        classes_from=classes_from,
        max_reject_fraction=max_reject_fraction,
        unlisted=not no_unlisted,
        **({} if workers is None else {"workers": workers}),
    )
    with stoppable("run the same command again to go on, finished shards are kept") as progress:
        result = append(shards, source, options, progress)
        _print_appended(result, shards)
        if result.changed:
            refresh_report(shards, progress)


def _print_appended(result: AppendResult, shards: Path) -> None:
    old, new = result.before, result.manifest
    if not result.changed:
        click.echo(f"{shards}: nothing new in {result.packed_before:,} rows that are packed; nothing has been changed")
        return
    lines = [
        ("images", old.samples, new.samples),
        ("rejects", sum(old.rejects.values()), sum(new.rejects.values())),
        ("rows", old.rows, new.rows),
        ("classes", len(old.classes), len(new.classes)),
        ("shards", len(old.shards), len(new.shards)),
    ]
    for reason in sorted(old.rejects | new.rejects):
        lines += [(f"rejected: {reason}", old.rejects.get(reason, 0), new.rejects.get(reason, 0))]
    click.echo(f"{shards}: {new.samples - old.samples:,} images appended in {result.seconds:,.1f} s")
    for name, was, now in lines:
        if now == was and ":" in name:
            continue
        click.echo(f"  {name:<32} {was:>12,} before {now:>12,} now {now - was:>+12,}")


@click.command("merge")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("shards", type=click.Path(path_type=Path), nargs=-1, required=True)
@one_line_errors
def merge_command(out: Path, shards: tuple[Path, ...]) -> None:
    """Make one data set in OUT of the data sets SHARDS SHARDS…, which stay as they are.

    They need the same classes at the same ids (one may have more), and no key in common. Tars are linked where OUT is
    on the same file system, else copied. Exclusions are merged; other overlays of the first data set hold for OUT.
    A merge that was stopped goes on when the same command is run again.

    \b
    Example:
      wv-ingest merge shards/all shards/google shards/flickr
    """
    if len(shards) < 2:
        raise click.UsageError("a merge needs two data sets or more")
    with stoppable("run the same command again to go on") as progress:
        manifest = merge(out, shards, progress)
        add_report(out, progress)
    click.echo(
        f"{out}: {manifest.samples:,} images in {len(manifest.shards):,} shards, {len(manifest.classes):,} classes, "
        f"{sum(manifest.rejects.values()):,} rejects, from {len(shards)} data sets"
    )
