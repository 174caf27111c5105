"""Tables about builds and shards for a person, on the terminal. It counts nothing: `counts` and the build do."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from wv_ingest.build import BuildResult, DryRun, PartResult
from wv_ingest.build_options import BuildOptions
from wv_ingest.counts import class_figures
from wv_ingest.duplicates import Conflict
from wv_ingest.mark_duplicates import Marked
from wv_shards import DUPLICATES_FILE, Dataset, DuplicatesInfo, Manifest, band_range

_CLASSES_SHOWN = 20
_CONFLICTS_SHOWN = 20


def _shown(text: str) -> str:
    """A name on one line: control characters, and what is no character, as Python writes them in a string."""
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text
    )


def _two_columns(title: str) -> Table:
    table = Table(title=escape(_shown(title)), title_justify="left", show_header=False)
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
    table.add_row("imbalance ratio", "–" if figures["imbalance"] is None else f"{figures['imbalance']:,.1f}")


_OWN_NAMES = {"missing": "missing", "repeated-row": "repeated rows", "filtered": "filtered"}


def _add_account(table: Table, packed: int, rejects: dict[str, int]) -> None:
    """What became of the rows; these lines add up to the rows of the source."""
    table.add_row("images packed", f"{packed:,}")
    for reason, count in sorted(rejects.items(), key=lambda item: (item[0] in _OWN_NAMES, -item[1])):
        table.add_row(_OWN_NAMES.get(reason, escape(_shown(f"rejected: {reason}"))), f"{count:,}")


def _add_unlisted(table: Table, files: int, first: Sequence[str]) -> None:
    names = f" ({', '.join(first)}{', …' if files > len(first) else ''})" if files else ""
    table.add_row("files that no list names", escape(_shown(f"{files:,}{names}")))


def print_summary(result: BuildResult, out: Path) -> None:
    """What the build made of the source."""
    manifest = result.manifest
    if result.complete_before:
        print(f"{_shown(str(out))}: already complete, nothing to do")
    table = _two_columns(str(out))
    table.add_row("rows of the source", f"{manifest.rows:,}")
    _add_account(table, manifest.samples, manifest.rejects)
    for name, origin in manifest.sources.items():
        table.add_row(escape(_shown(f"{name}: rows / packed")), f"{origin.rows:,} / {origin.samples:,}")
    if manifest.unlisted is not None:
        _add_unlisted(table, manifest.unlisted.files, manifest.unlisted.first)
    for reason, count in manifest.metadata_gaps.items():
        table.add_row(escape(_shown(f"without metadata: {reason}")), f"{count:,}")
    _add_class_figures(table, [c.samples for c in manifest.classes])
    table.add_row("shards", f"{len(manifest.shards):,}")
    table.add_row("bytes", decimal(sum(shard.bytes for shard in manifest.shards)))
    if manifest.duplicates is not None:
        _add_duplicates(table, manifest.samples, manifest.duplicates)
    if not result.complete_before:
        if result.packed_rows < manifest.rows - manifest.rejects.get("filtered", 0):
            table.add_row("rows done in this run", f"{result.packed_rows:,}")
        if result.noisy_rows:
            table.add_row("files that a decoder complained of", f"{result.noisy_rows:,}")
        table.add_row("seconds", f"{result.seconds:,.1f}")
        table.add_row("rows a second", f"{result.packed_rows / result.seconds:,.0f}")
    Console().print(table)


def print_part(result: PartResult, out: Path) -> None:
    """What a part packed, and what comes next."""
    print(f"{_shown(str(out))}: part {result.part.number} of {result.part.parts}, complete")
    table = _two_columns("")
    table.add_row("rows of this part", f"{result.rows:,}")
    _add_account(table, result.rows - sum(result.rejects.values()), result.rejects)
    table.add_row("shards planned for this part", f"{result.shards:,}")
    if result.packed_rows < result.rows:
        table.add_row("rows done in this run", f"{result.packed_rows:,}")
    table.add_row("seconds", f"{result.seconds:,.1f}")
    Console().print(table)
    print("when all parts are complete: wv-ingest finalize OUT PART_DIR…")


def _add_duplicates(table: Table, samples: int, found: DuplicatesInfo) -> None:
    """Copies by kind, and images before and after they are left out."""
    table.add_row("copies within a class: same file / same picture", f"{found.exact:,} / {found.near:,}")
    table.add_row(f"images also in another class (--conflict {found.conflict})", f"{found.conflicts:,}")
    table.add_row("images packed / without duplicates", f"{samples:,} / {samples - found.excluded:,}")
    if found.cut_short:
        table.add_row("pictures with too many lookalikes to compare all", f"{found.cut_short:,}")


def print_conflicts(directory: Path, manifest: Manifest) -> None:
    """With `--conflict report`: some of the images whose picture stands in another class, a line each."""
    found = manifest.duplicates
    if found is None or found.conflict != Conflict.REPORT or not found.conflicts:
        return
    table = pq.read_table(directory / DUPLICATES_FILE, filters=[("same_class", "==", False)])
    both = np.sort(np.stack([table.column("ordinal").to_numpy(), table.column("first").to_numpy()], axis=1), axis=1)
    pairs = np.unique(both, axis=0)  # two samples may name one another
    shown = pairs[:_CONFLICTS_SHOWN]
    with Dataset.open(directory) as dataset:
        keys = dataset.keys(shown.ravel().tolist())
        names = [_shown(manifest.classes[label].name) for label in dataset.index["label"][shown.ravel()].tolist()]
    for at in range(0, len(keys), 2):
        print(f"{keys[at]} ({names[at]}) and {keys[at + 1]} ({names[at + 1]}) show the same")
    if len(pairs) > len(shown):
        path = _shown(str(directory / DUPLICATES_FILE))
        print(f"… and {len(pairs) - len(shown):,} more: {path}, where same_class is false")


def print_marked(directory: Path, marked: Marked) -> None:
    """What `duplicates` found, and how many images were shown before and are now."""
    manifest = marked.manifest
    table = _two_columns(str(directory))
    assert manifest.duplicates is not None
    _add_duplicates(table, manifest.samples, manifest.duplicates)
    table.add_row("images shown before / now", f"{marked.shown_before:,} / {marked.shown_now:,}")
    Console().print(table)
    print_conflicts(directory, manifest)


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
    if options.part is not None:
        own = options.part.share(plan.shards)
        share = f"{len(own):,} / {sum(shard.stop - shard.start for shard in own):,}"
        table.add_row(f"part {options.part}: shards / rows", share)
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


def print_stats(document: dict[str, Any]) -> None:
    """The document as tables; of the classes the largest and the smallest."""
    table = _two_columns(f"{document['split']}, {document['digest']}")
    table.add_row("rows of the source", f"{document['rows']:,}")
    _add_account(table, document["samples"], document["rejects"])
    if document["excluded"]:
        table.add_row("of these excluded by overlay", f"{document['excluded']:,}")
    _add_class_figures(table, [c["samples"] for c in document["classes"]])
    table.add_row("shards", f"{document['shards']:,}")
    table.add_row("bytes of shards", decimal(document["shard_bytes"]))
    table.add_row("bytes of images", decimal(document["image_bytes"]))
    console = Console()
    console.print(table)
    if document["sources"]:
        origins = [{"name": name or "no source", **origin} for name, origin in document["sources"].items()]
        console.print(_columns("sources", origins, ["name", "rows", "samples"]))
    counts = ["rows", "samples", *(["excluded"] if document["excluded"] else [])]
    console.print(_columns("bands", document["bands"], ["band", "classes", *counts, "shards", "bytes"]))
    classes = sorted(document["classes"], key=lambda c: (-c["samples"], c["class_id"]))
    columns = ["class_id", "name", "band", *counts, "bytes"]
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
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else escape(_shown(str(value)))
