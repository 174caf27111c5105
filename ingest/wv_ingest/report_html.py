"""Writes `report.html`, one page about a finished data set. Nothing of the data set is changed.

    report_data (facts) ─► report_pictures (small JPEGs) ─► report_page, report_gallery (text) ─► one file

The page depends on the data set alone, not on where it lies or when it was made.
"""

from pathlib import Path

from wv_ingest.progress import Progress
from wv_ingest.report_data import gather
from wv_ingest.report_page import render
from wv_ingest.report_pictures import rejected_thumbnails, thumbnails
from wv_shards import Dataset, write_atomic

REPORT_FILE = "report.html"


def write_report(shards: Path, out: Path, progress: Progress, source: Path | None = None) -> None:
    """Write the page about the data set in `shards` to `out`, whole or not at all.

    Args:
        shards: the data set.
        out: the page.
        progress: told what is being done.
        source: what the data set was built from, to show rejected files too.

    Raises:
        ShardsError: no finished data set, a table that is missing or can't be read.
        OSError: no space, no permission.
    """
    with Dataset.open(shards) as dataset:
        progress.note("counting for the report")
        data = gather(dataset)
        progress.note(f"drawing the report, {len(data.names)} pictures")
        rejected = {}
        if source is not None:
            paths = [example.path for known in data.rejects.values() for example in known.examples]
            rejected = rejected_thumbnails(source, paths)
        page = render(data, thumbnails(dataset, data.names), rejected)
    write_atomic(out, page.encode())


def add_report(shards: Path, progress: Progress) -> None:
    """Give a finished build its page. The data set is whole without it, so what goes wrong is a warning."""
    try:
        write_report(shards, shards / REPORT_FILE, progress)
    except Exception as error:
        progress.warn(
            f"no {REPORT_FILE}: {' '.join(str(error).split()) or type(error).__name__}; run `wv-ingest report {shards}`"
        )
