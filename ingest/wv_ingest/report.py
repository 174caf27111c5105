"""Tables about shards for a person, and the same facts as one JSON-able document.

Counts come from manifest and index; nothing is decoded.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from wv_ingest.build import BuildOptions, BuildResult, DryRun
from wv_shards import Dataset, Manifest, band_range, verify

_CLASSES_SHOWN = 20


def class_figures(counts: list[int]) -> dict[str, Any]:
    """Smallest, median and largest class, and how many times the largest is the smallest that is not empty."""
    some = sorted(count for count in counts if count)
    return {
        "classes": len(counts),
        "without": len(counts) - len(some),
        "min": some[0] if some else 0,
        "median": float(np.median(some)) if some else 0.0,
        "max": some[-1] if some else 0,
        "imbalance": some[-1] / some[0] if some else math.nan,
    }


def _two_columns(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


def _add_class_figures(table: Table, counts: list[int]) -> None:
    figures = class_figures(counts)
    without = f" ({figures['without']} without images)" if figures["without"] else ""
    table.add_row("classes", f"{figures['classes']:,}{without}")
    table.add_row(
        "images a class: min / median / max", f"{figures['min']:,} / {figures['median']:,.0f} / {figures['max']:,}"
    )
    table.add_row("imbalance ratio", f"{figures['imbalance']:,.1f}")


_OWN_NAMES = {"missing": "missing", "repeated-row": "repeated rows", "filtered": "filtered"}


def _add_account(table: Table, packed: int, rejects: dict[str, int]) -> None:
    """What became of the rows; these lines add up to the rows of the source."""
    table.add_row("images packed", f"{packed:,}")
    for reason, count in sorted(rejects.items(), key=lambda item: (item[0] in _OWN_NAMES, -item[1])):
        table.add_row(_OWN_NAMES.get(reason, f"rejected: {reason}"), f"{count:,}")


def _add_unlisted(table: Table, files: int, first: Sequence[str]) -> None:
    names = f" ({', '.join(first)}{', …' if files > len(first) else ''})" if files else ""
    table.add_row("files that no list names", f"{files:,}{names}")


def print_summary(result: BuildResult, out: Path) -> None:
    """What the build made of the source."""
    manifest = result.manifest
    if result.complete_before:
        print(f"{out}: already complete, nothing to do")
    table = _two_columns(str(out))
    table.add_row("rows of the source", f"{manifest.rows:,}")
    _add_account(table, manifest.samples, manifest.rejects)
    for name, origin in manifest.sources.items():
        table.add_row(f"{name}: rows / packed", f"{origin.rows:,} / {origin.samples:,}")
    if manifest.unlisted is not None:
        _add_unlisted(table, manifest.unlisted.files, manifest.unlisted.first)
    for reason, count in manifest.metadata_gaps.items():
        table.add_row(f"without metadata: {reason}", f"{count:,}")
    _add_class_figures(table, [c.samples for c in manifest.classes])
    table.add_row("shards", f"{len(manifest.shards):,}")
    table.add_row("bytes", decimal(sum(shard.bytes for shard in manifest.shards)))
    if not result.complete_before:
        if result.packed_rows < manifest.rows - manifest.rejects.get("filtered", 0):
            table.add_row("rows done in this run", f"{result.packed_rows:,}")
        table.add_row("seconds", f"{result.seconds:,.1f}")
        table.add_row("rows a second", f"{result.packed_rows / result.seconds:,.0f}")
    Console().print(table)


def print_dry_run(plan: DryRun, options: BuildOptions) -> None:
    """What a build would do."""
    rows = len(plan.order.order)
    table = _two_columns("plan (nothing has been written)")
    table.add_row("source format", plan.source.source_format)
    table.add_row("rows", f"{plan.source.rows_in_all:,}")
    table.add_row("repeated rows", f"{len(plan.order.repeated):,}")
    if plan.source.left_out is not None:
        counts = Counter(plan.source.left_out.column("reason").to_pylist())
        for reason, count in sorted(counts.items()):
            table.add_row("filtered rows" if reason == "filtered" else f"rows rejected: {reason}", f"{count:,}")
    if plan.lookup.places is not None:
        table.add_row("rows found in tars", f"{int((plan.lookup.places['tar'] >= 0).sum()):,}")
    if plan.lookup.unlisted is not None:
        _add_unlisted(table, plan.lookup.unlisted.files, plan.lookup.unlisted.first)
    _add_class_figures(table, plan.source.class_rows().tolist())
    table.add_row("bytes a row, by trial", f"{plan.bytes_per_row:,}")
    table.add_row("bytes in all, about", decimal(rows * plan.bytes_per_row))
    table.add_row(f"shards of {options.shard_mb} MB or less", f"{len(plan.shards):,}")
    bands = Table(title="bands", title_justify="left")
    for name in ("band", "classes of", "rows", "shards"):
        bands.add_column(name, justify="right")
    for band, start, stop in plan.order.bands:
        low, high = band_range(band)
        shards = sum(shard.band == band for shard in plan.shards)
        bands.add_row(str(band), f"{low:,} … {high:,} rows", f"{stop - start:,}", f"{shards:,}")
    console = Console()
    console.print(table)
    console.print(bands)


def stats_document(dataset: Dataset) -> dict[str, Any]:
    """All that `stats` prints, JSON-able."""
    manifest = dataset.manifest
    labels, sizes = np.asarray(dataset.index["label"]), np.asarray(dataset.index["size"])
    class_bytes = np.bincount(labels, weights=sizes, minlength=len(manifest.classes)).astype(np.int64).tolist()
    return {
        "format_version": manifest.format_version,
        "digest": manifest.digest,
        "split": manifest.split,
        "seed": manifest.seed,
        "options": manifest.options,
        "codecs": manifest.codecs,
        "rows": manifest.rows,
        "samples": manifest.samples,
        "rejects": manifest.rejects,
        "sources": {name: asdict(origin) for name, origin in manifest.sources.items()},
        "unlisted": None if manifest.unlisted is None else asdict(manifest.unlisted),
        "metadata_gaps": manifest.metadata_gaps,
        "shards": len(manifest.shards),
        "shard_bytes": sum(shard.bytes for shard in manifest.shards),
        "image_bytes": int(sizes.sum(dtype=np.int64)),
        "per_class": class_figures([c.samples for c in manifest.classes]),
        "bands": _bands(manifest, class_bytes),
        "classes": [
            {
                "class_id": c.class_id,
                "original_id": c.class_id if c.original_id is None else c.original_id,
                "name": c.name,
                "band": c.band,
                "rows": c.rows,
                "samples": c.samples,
                "bytes": n,
            }
            for c, n in zip(manifest.classes, class_bytes, strict=True)
        ],
    }


def _bands(manifest: Manifest, class_bytes: list[int]) -> list[dict[str, Any]]:
    bands: dict[int, dict[str, Any]] = {}
    for info, n in zip(manifest.classes, class_bytes, strict=True):
        if info.band is not None:
            empty = {"band": info.band, "classes": 0, "rows": 0, "samples": 0, "bytes": 0, "shards": 0}
            band = bands.setdefault(info.band, empty)
            for name, value in (("classes", 1), ("rows", info.rows), ("samples", info.samples), ("bytes", n)):
                band[name] += value
    for shard in manifest.shards:
        if shard.band in bands:
            bands[shard.band]["shards"] += 1
    return [bands[band] for band in sorted(bands)]


def print_stats(document: dict[str, Any]) -> None:
    """The document as tables; of the classes the largest and the smallest."""
    table = _two_columns(f"{document['split']}, {document['digest']}")
    table.add_row("rows of the source", f"{document['rows']:,}")
    _add_account(table, document["samples"], document["rejects"])
    for name, origin in document["sources"].items():
        table.add_row(f"{name}: rows / packed", f"{origin['rows']:,} / {origin['samples']:,}")
    _add_class_figures(table, [c["samples"] for c in document["classes"]])
    table.add_row("shards", f"{document['shards']:,}")
    table.add_row("bytes of shards", decimal(document["shard_bytes"]))
    table.add_row("bytes of images", decimal(document["image_bytes"]))
    console = Console()
    console.print(table)
    console.print(_columns("bands", document["bands"], ["band", "classes", "rows", "samples", "shards", "bytes"]))
    classes = sorted(document["classes"], key=lambda c: (-c["samples"], c["class_id"]))
    columns = ["class_id", "name", "band", "rows", "samples", "bytes"]
    if len(classes) <= _CLASSES_SHOWN:
        console.print(_columns("classes", classes, columns))
        return
    half = _CLASSES_SHOWN // 2
    console.print(_columns(f"the {half} largest of {len(classes):,} classes", classes[:half], columns))
    console.print(_columns(f"the {half} smallest", classes[-half:], columns))


def _columns(title: str, rows: list[dict[str, Any]], names: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name == "name" else "right")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in names))
    return table


def _cell(name: str, value: Any) -> str:
    if name == "bytes":
        return decimal(value)
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def print_verified(directory: Path) -> bool:
    """Verify the shards, print every problem on a line of its own; True if there is none."""
    manifest = Manifest.load(directory)
    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("verify", total=sum(shard.bytes for shard in manifest.shards))
        problems = verify(directory, lambda count: bar.advance(task, count))
    for problem in problems:
        print(" ".join(f"{problem.path}: {problem.kind}: {problem.message}".splitlines()))
    if not problems:
        print(f"{directory}: {manifest.samples:,} images in {len(manifest.shards):,} shards, all as the manifest says")
    return not problems
