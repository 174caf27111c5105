"""`wv-ingest`: the commands that make and inspect shards. Options in, one call, a table or one line of error out."""

import json
from pathlib import Path
from typing import Any

import click

from wv_ingest.build import build, build_part, plan_only
from wv_ingest.build_options import DEFAULT_REJECT_FRACTION, BuildOptions
from wv_ingest.check import CheckOptions, codecs
from wv_ingest.cli_duplicates import duplicate_options, duplicates_command
from wv_ingest.cli_errors import one_line_errors, stoppable
from wv_ingest.cli_exclude import exclude_command
from wv_ingest.cli_finalize import finalize_command
from wv_ingest.cli_grow import append_command, merge_command
from wv_ingest.cli_index import index_command
from wv_ingest.cli_report import report_command
from wv_ingest.cli_sample_data import sample_data_command
from wv_ingest.cli_verify import verify_command
from wv_ingest.counts import stats_document
from wv_ingest.duplicates import Conflict, DuplicateOptions
from wv_ingest.parts import Part
from wv_ingest.pool import WorkerLimits
from wv_ingest.ray_pool import RayOptions
from wv_ingest.report_html import REPORT_FILE, add_report
from wv_ingest.selection import parse_classes
from wv_ingest.sources import SourceOptions
from wv_ingest.summary import print_conflicts, print_dry_run, print_part, print_stats, print_summary
from wv_ingest.webdataset_urls import is_spec
from wv_shards import Dataset


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wv-toolkit")
def main() -> None:
    """Turn raw web images into verified shards.

    \b
    wv-ingest build-shards RAW SHARDS     check, resize and pack
    wv-ingest verify SHARDS               read everything back
    wv-ingest stats SHARDS                what is in them
    wv-ingest report SHARDS               the same and more as a page, with pictures
    """


@main.command("build-shards")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--source-format",
    type=click.Choice(["webvision", "folders", "list", "webdataset"]),
    help="Layout of SOURCE. Default: detected.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val"]),
    default="train",
    show_default=True,
    help="WebVision: which lists; recorded for all.",
)
@click.option(
    "--classes-from",
    type=click.Path(path_type=Path),
    metavar="TRAIN_SHARDS",
    help="Use the classes (names and ids) of these shards: for validation sets.",
)
@click.option(
    "--only",
    type=click.Choice(["google", "flickr", "all"]),
    default="all",
    show_default=True,
    help="WebVision: the rows of one search engine; the others are counted as filtered.",
)
@click.option(
    "--classes",
    metavar="IDS",
    help="Only these classes, as in 0-49 or 0-49,60; their ids become 0 … k−1, other rows are counted as filtered.",
)
@click.option("--path-column", default="path", show_default=True, help="Of a list: the column of paths.")
@click.option(
    "--label-column",
    default="label",
    show_default=True,
    help="Of a list: the column of labels. Whole numbers are class ids, anything else is names, sorted.",
)
@click.option(
    "--label-key",
    metavar="KEY",
    help="WebDataset: the label is this value of a sample's .json, as in meta.class; a whole number or a name. "
    "Default: the number in .cls, else label in .json.",
)
@click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="WebDataset: names of the classes, one a line, in the order of their ids.",
)
@click.option(
    "--spool",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="WebDataset: where URLs and pipes are copied to before they are read. Default: in OUT, until it is finished.",
)
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(0),
    default=256,
    show_default=True,
    help="Shorter side in pixels; nothing is enlarged. 0: keep, and leave sound JPEGs' coded data untouched.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Of JPEGs that are encoded anew."
)
@click.option(
    "--subsampling",
    type=click.Choice(["4:2:0", "4:2:2", "4:4:4"]),
    default="4:2:0",
    show_default=True,
    help="Of the colour of JPEGs that are encoded anew.",
)
@click.option(
    "--keep-metadata", is_flag=True, help="Leave EXIF, GPS and comments in JPEGs; without it they are cut out."
)
@click.option(
    "--check",
    type=click.Choice(["full", "header"]),
    default="full",
    show_default=True,
    help="header: look only at the segments of JPEGs that are kept as they are, and decode none of them.",
)
@click.option(
    "--shard-mb",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="A shard's size in MB, at most, about. Small sets are cut finer, to give all workers work.",
)
@duplicate_options
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides the order in the shards.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes. Default: one for each core, of this machine or of the Ray cluster.",
)
@click.option(
    "--executor",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where the workers are: on this machine, or on a Ray cluster whose nodes all see SOURCE and OUT.",
)
@click.option(
    "--ray-address",
    default="auto",
    show_default=True,
    help="Of the cluster, as ray.init takes it; local: start one on this machine.",
)
@click.option(
    "--part",
    metavar="I/N",
    help="Pack only the I-th of N shares of the shards, here; `wv-ingest finalize` joins the parts of all machines.",
)
@click.option(
    "--max-reject-fraction",
    type=click.FloatRange(0.0, 1.0),
    default=DEFAULT_REJECT_FRACTION,
    show_default=True,
    help="Stop when more of the rows than this are rejected.",
)
@click.option("--max-bytes", type=click.IntRange(1), default=50_000_000, show_default=True, help="Reject larger files.")
@click.option(
    "--max-pixels", type=click.IntRange(1), default=100_000_000, show_default=True, help="Reject images of more pixels."
)
@click.option(
    "--max-side", type=click.IntRange(1), default=20_000, show_default=True, help="Reject images with a longer side."
)
@click.option(
    "--min-side", type=click.IntRange(1), default=8, show_default=True, help="Reject images with a shorter side."
)
@click.option(
    "--max-aspect",
    type=click.FloatRange(1.0),
    default=20.0,
    show_default=True,
    help="Reject images whose longer side is more than so many times the shorter.",
)
@click.option(
    "--no-unlisted", is_flag=True, help="WebVision: do not look for files that no list names (a walk of all folders)."
)
@click.option(
    "--max-cpu-s", type=float, default=60.0, show_default=True, help="Reject files that take longer, in CPU time."
)
@click.option(
    "--max-memory-mb", type=int, default=4096, show_default=True, help="Reject files for which a worker needs more."
)
@click.option("--no-report", is_flag=True, help="Do not write OUT/report.html at the end.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@one_line_errors
def build_shards(
    source: str,
    out: Path,
    *,
    source_format: Any,
    split: Any,
    classes_from: Path | None,
    only: Any,
    classes: str | None,
    path_column: str,
    label_column: str,
    label_key: str | None,
    class_names: Path | None,
    spool: Path | None,
    size_px: int,
    quality: int,
    subsampling: Any,
    keep_metadata: bool,
    check: Any,
    shard_mb: int,
    seed: int,
    workers: int | None,
    executor: Any,
    ray_address: str,
    part: str | None,
    max_reject_fraction: float,
    max_bytes: int,
    max_pixels: int,
    max_side: int,
    min_side: int,
    max_aspect: float,
    no_unlisted: bool,
    max_cpu_s: float,
    max_memory_mb: int,
    no_report: bool,
    dry_run: bool,
    conflict: str,
    near_distance: int | None,
) -> None:
    """Check, resize and pack the images of SOURCE into shards in OUT.

    SOURCE is a WebVision root (info/, google/, flickr/, val_images_256/, or their tars as downloaded, which are read
    in place), a folder of class folders, a list (CSV, TSV, JSON lines, Parquet) of paths and labels, or WebDataset
    tars: a folder of them, or as the package webdataset (extra [webdataset]) understands it, with braces, '::',
    URLs and pipe:.
    Every row ends in a shard or in rejects.parquet. A build that was stopped, even by a power cut, goes on when the
    same command is run again.

    \b
    Examples:
      wv-ingest build-shards /data/webvision shards/train
      wv-ingest build-shards /data/webvision shards/val --split val --classes-from shards/train
      wv-ingest build-shards /data/webvision shards/mini --only google --classes 0-49
      wv-ingest build-shards photos/list.csv shards --path-column file --label-column class --size 0
      wv-ingest build-shards 'wds/train-{000..146}.tar' shards/train --label-key meta.class
      wv-ingest build-shards 'pipe:aws s3 cp s3://bucket/a.tar -' shards/a --spool /scratch
      wv-ingest build-shards /data/webvision shards/train --dry-run
      wv-ingest build-shards /data/webvision parts/03 --part 3/16
    """
    try:
        options = BuildOptions(
            check=CheckOptions(
                size_px=size_px,
                quality=quality,
                subsampling=subsampling,
                keep_metadata=keep_metadata,
                decode=check,
                max_bytes=max_bytes,
                max_pixels=max_pixels,
                max_side_px=max_side,
                min_side_px=min_side,
                max_aspect=max_aspect,
            ),
            source=SourceOptions(
                split=split,
                source_format=source_format,
                path_column=path_column,
                label_column=label_column,
                classes_from=classes_from,
                only=only,
                class_ids=None if classes is None else parse_classes(classes),
                label_key=label_key,
                class_names=class_names,
            ),
            limits=WorkerLimits(max_cpu_s=max_cpu_s, max_memory_mb=max_memory_mb),
            seed=seed,
            shard_mb=shard_mb,
            duplicates=DuplicateOptions(conflict=Conflict(conflict), near_distance=near_distance),
            max_reject_fraction=max_reject_fraction,
            spool=spool,
            part=None if part is None else Part.parse(part),
            ray=RayOptions(address=ray_address, actors=workers) if executor == "ray" else None,
            unlisted=not no_unlisted,
            **({} if workers is None else {"workers": workers}),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    given = source if source_format in (None, "webdataset") and is_spec(source) else Path(source)
    click.echo(f"decoder: {codecs()['decoder']}")
    with stoppable("run the same command again to go on, finished shards are kept") as progress:
        if dry_run:
            print_dry_run(plan_only(given, options, progress), options)
        elif options.part is not None:
            print_part(build_part(given, out, options, progress), out)
        else:
            result = build(given, out, options, progress)
            print_summary(result, out)
            print_conflicts(out, result.manifest)
            if not no_report and not (result.complete_before and (out / REPORT_FILE).exists()):
                add_report(out, progress)


@main.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of tables.")
@one_line_errors
def stats(shards: Path, *, as_json: bool) -> None:
    """Print what SHARDS hold: images and bytes by class and by band, rejects by reason.

    \b
    Examples:
      wv-ingest stats shards/train
      wv-ingest stats shards/train --json | jq '.bands'
    """
    with Dataset.open(shards) as dataset:
        document = stats_document(dataset)
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        print_stats(document)


main.add_command(sample_data_command, "sample-data")
main.add_command(exclude_command)
main.add_command(duplicates_command)
main.add_command(verify_command)
main.add_command(append_command)
main.add_command(merge_command)
main.add_command(finalize_command, "finalize")
main.add_command(report_command, "report")
main.add_command(index_command, "index")

if __name__ == "__main__":
    main()
