"""A report of shards as one HTML text, in the order in which a person asks. It reads nothing and decodes nothing.

`report_data` gathers the facts; pictures come from `report_gallery`; `report_parts` makes every text safe.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wv_ingest.check import Reason
from wv_ingest.counts import class_figures
from wv_ingest.report_charts import bars, class_curve
from wv_ingest.report_data import Histogram, ReportData
from wv_ingest.report_gallery import contact_sheet, duplicates
from wv_ingest.report_parts import (
    bar,
    count,
    folded,
    foreign,
    mono,
    note,
    pairs,
    plain,
    share,
    short,
    size,
    table,
    tiles,
)
from wv_ingest.report_rejects import rejects
from wv_ingest.report_style import SCRIPT, STYLE
from wv_shards import band_range

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_CLASSES_LISTED = 10_000
_SHARDS_LISTED = 2_000
_NAMES_LISTED = 100
_PIXELS = "pixels"


def render(data: ReportData, pictures: Mapping[int, bytes], rejected: Mapping[str, bytes]) -> str:
    """The page, as HTML.

    Args:
        data: the facts.
        pictures: small JPEGs of samples, by ordinal; a sample without one is named all the same.
        rejected: small JPEGs of files that were not packed, by path; they need not have any.
    """
    stats = data.stats
    title = f"{stats['split']}: {count(stats['samples'])} images in {count(len(stats['classes']))} classes"
    sections = (
        ("account", "Does it add up?", _account(stats)),
        ("classes", "Classes", _classes(stats)),
        ("bands", "Bands", _bands(stats)),
        ("rejects", "Rejected rows", rejects(stats, data.rejects, rejected)),
        ("sizes", "Sizes", _sizes(data)),
        ("sources", "Sources", _sources(stats)),
        ("metadata", "Metadata", _metadata(stats, data.metadata)),
        ("duplicates", "Duplicates", duplicates(data, pictures)),
        ("samples", "Samples drawn by lot", contact_sheet(data, pictures)),
        ("shards", "Shards and options", _shards(data)),
    )
    links = "".join(f'<a href="#{anchor}">{plain(head)}</a>' for anchor, head, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{plain(head)}</h2>\n{text}</section>\n' for anchor, head, text in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{plain(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n<header><h1>{plain(title)}</h1>"
        f'<div class="soft">data set {mono(stats["digest"])}</div>\n<nav>{links}</nav></header>\n'
        f"<main>{_headline(stats, data)}{body}</main>\n"
        '<footer class="soft">Made by wv-ingest report of wv-toolkit. One file, which loads nothing.</footer>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _headline(stats: dict[str, Any], data: ReportData) -> str:
    asked_for = _asked_for(stats)
    lost = asked_for - stats["samples"]
    values = [
        (count(stats["rows"]), "rows of the source"),
        (count(stats["samples"]), f"packed, {share(stats['samples'], asked_for)}"),
        (count(lost), f"not packed, {share(lost, asked_for)}"),
    ]
    if stats["rows"] > asked_for:
        values.append((count(stats["rows"] - asked_for), "filtered, not asked for"))
    if stats["excluded"]:
        values.append((count(stats["excluded"]), "packed, but excluded by overlay"))
        values.append((count(stats["samples"] - stats["excluded"]), "to be shown"))
    without = stats["per_class"]["without"]
    values.append((count(len(stats["classes"])), f"classes, {count(without)} without images" if without else "classes"))
    values.append((size(stats["shard_bytes"]), f"in {count(stats['shards'])} shards"))
    if data.duplicates is not None:
        values.append((count(sum(n for n, _ in data.duplicates.counts.values())), "copies of other images"))
    return tiles(values)


def _account(stats: dict[str, Any]) -> str:
    """Every row of the source has one outcome; here is how many have which."""
    rows = stats["rows"]
    lines = [("packed", stats["samples"]), *sorted(stats["rejects"].items(), key=lambda item: (-item[1], item[0]))]
    total = sum(number for _, number in lines)
    cells = [[plain(name), count(n), share(n, rows) + bar(n, rows)] for name, n in lines]
    cells.append(["sum", count(total), share(total, rows)])
    fits = total == rows
    verdict = (
        f'<p><span class="ok">It adds up:</span> every one of the {count(rows)} rows of the source has one outcome.</p>'
        if fits
        else f'<p><span class="no">It does not add up:</span> {count(rows)} rows, {count(total)} outcomes.</p>'
    )
    unlisted = stats["unlisted"]
    if unlisted is None:
        lists = stats["options"].get("source_format") == "webvision"
        more = note("Files that no list names were not looked for.") if lists else ""
    elif not unlisted["files"]:
        more = note("There are no files in the source that no list names.")
    else:
        first = ", ".join(mono(name) for name in unlisted["first"])
        rest = ", …" if unlisted["files"] > len(unlisted["first"]) else ""
        more = f"<p>{count(unlisted['files'])} files of the source are named by no list: {first}{rest}</p>"
    return verdict + table(["outcome", "rows", "share"], cells, total=True) + more


def _classes(stats: dict[str, Any]) -> str:
    classes = stats["classes"]
    if not classes:
        return note("There are no classes.")
    raw, packed, excluded = (np.array([c[name] for c in classes]) for name in ("rows", "samples", "excluded"))
    series = [("rows", "mass", raw), ("packed", "one", packed)]
    if stats["excluded"]:
        series.append(("shown, after exclusions", "two", packed - excluded))
    chart = class_curve("Images a class", [short(c["name"]) for c in classes], series)
    figures = [(label, class_figures(counts.tolist())) for label, _, counts in series]
    measures = (
        ("smallest, without empty ones", "min"),
        ("median, without empty ones", "median"),
        ("largest", "max"),
        ("largest ÷ smallest", "imbalance"),
        ("classes without images", "without"),
    )
    cells = [
        [name, *("–" if values[key] is None else f"{values[key]:,.4g}" for _, values in figures)]
        for name, key in measures
    ]
    known = table(["images a class", "rows", "packed", "shown"][: len(series) + 1], cells)
    return f'<div class="chart">{chart}<div>{known}{_without(classes)}</div></div>{_class_table(stats)}'


def _without(classes: list[dict[str, Any]]) -> str:
    """The names of classes that nothing was packed of."""
    names = [c["name"] for c in classes if not c["samples"]]
    if not names:
        return ""
    shown = "; ".join(foreign(name) for name in names[:_NAMES_LISTED])
    more = f"; and {count(len(names) - _NAMES_LISTED)} more" if len(names) > _NAMES_LISTED else ""
    return f"<p>Without images: {shown}{more}</p>"


def _class_table(stats: dict[str, Any]) -> str:
    """All classes, closed; those without images too."""
    classes = sorted(stats["classes"], key=lambda c: (-c["rows"], c["class_id"]))
    renumbered = any(c["original_id"] != c["class_id"] for c in classes)
    names = list(stats["sources"])
    sums = _sums(stats)
    heads = ["class", "id", *(["id in the source"] if renumbered else []), "band", *sums.values(), "kB"]
    heads += [f"{name or 'no source'}, {what}" for name in names for what in ("rows", "packed")]
    cells = [
        [
            foreign(c["name"]),
            str(c["class_id"]),
            *([str(c["original_id"])] if renumbered else []),
            "–" if c["band"] is None else str(c["band"]),
            *(count(c[name]) for name in sums),
            count(c["bytes"] / 1000),
            *(count(c["sources"][name][what]) for name in names for what in ("rows", "samples")),
        ]
        for c in classes[:_CLASSES_LISTED]
    ]
    left = len(classes) - len(cells)
    rest = note(f"{count(left)} more stand in wv-ingest stats --json.") if left else ""
    return folded(f"All {count(len(classes))} classes", table(heads, cells, sorts=True) + rest)


def _bands(stats: dict[str, Any]) -> str:
    bands = stats["bands"]
    if all(band["band"] is None for band in bands):
        return note("These tars were not packed by band.")
    sums = {"classes": "classes", **_sums(stats), "shards": "shards"}
    total = {name: sum(band[name] for band in bands) for name in (*sums, "bytes")}
    cells = []
    for band in [*bands, {"band": "all", **total}]:
        number = band["band"]
        name = "without rows" if number is None else str(number)
        limits = " to ".join(count(n) for n in sorted(set(band_range(number)))) if isinstance(number, int) else ""
        lost = share(band["rows"] - band["samples"], band["rows"])
        cells.append([name, limits, *(count(band[key]) for key in sums), size(band["bytes"]), lost])
    heads = ["band", "rows of a class", *sums.values(), "bytes of images", "not packed"]
    explained = "A band holds the classes of similar size, half an octave wide; a shard holds classes of one band only."
    return note(explained) + table(heads, cells, total=True)


def _sums(stats: dict[str, Any]) -> dict[str, str]:
    """The columns that count rows and images, by their name in the document; exclusions where there are some."""
    return {"rows": "rows", "samples": "packed"} | ({"excluded": "excluded"} if stats["excluded"] else {})


def _sizes(data: ReportData) -> str:
    if not data.sizes.figures:
        return note("There are no images.")
    cells = [[plain(what), *(count(value) for value in values)] for what, *values in data.sizes.figures]
    charts = [
        _histogram("Shorter side", data.sizes.sides, lambda edge: f"{edge:.0f}", _PIXELS),
        _histogram("Width over height", data.sizes.shapes, _shape, "upright to wide"),
        _histogram("Bytes of an image", data.sizes.bytes, size, "on a log scale"),
    ]
    text = "".join(chart for chart in charts if chart.startswith("<figure"))
    lines = "".join(chart for chart in charts if not chart.startswith("<figure"))
    figures = table(["as stored", "smallest", "mean", "largest"], cells)
    return f'{figures}<br>{lines}<div class="grid">{text}</div>' if text else figures + lines


def _histogram(title: str, histogram: Histogram, name: Any, unit: str) -> str:
    """A chart, or one line where all values are in one bin."""
    if len(histogram.counts) > 1:
        return bars(title, histogram, name, unit=unit)
    low, high = histogram.edges
    between = name(low) if unit == _PIXELS and high == low + 1 else f"{name(low)} to {name(high)}"
    return note(f"{plain(title)} of all images: {between}.")


def _shape(edge: float) -> str:
    """A ratio as a person writes it: 1:2, 1.4:1."""
    if edge == 0:
        return "less"
    if np.isinf(edge):
        return "more"
    return f"{edge:.3g}:1" if edge >= 1 else f"1:{1 / edge:.3g}"


def _sources(stats: dict[str, Any]) -> str:
    if not stats["sources"]:
        return note("The source has no parts such as google and flickr.")
    cells = []
    for name, origin in stats["sources"].items():
        lost = origin["rows"] - origin["samples"]
        most = sorted(origin["rejects"].items(), key=lambda item: (-item[1], item[0]))[:4]
        reasons = ", ".join(f"{reason} {count(n)}" for reason, n in most)
        cells.append(
            [
                foreign(name or "none, by the path"),
                plain(reasons) or "–",
                count(origin["rows"]),
                count(origin["samples"]),
                count(lost),
                share(lost, origin["rows"]),
            ]
        )
    heads = ["source", "reasons, the most frequent", "rows", "packed", "not packed", "share"]
    return table(heads, cells, texts=2)


def _metadata(stats: dict[str, Any], have: dict[str, int] | None) -> str:
    if have is None:
        return note("The source has no metadata.")
    samples = stats["samples"]
    cells = [[plain(name), count(n), share(n, samples) + bar(n, samples)] for name, n in have.items()]
    known = table(["field", "images that have it", "share"], cells)
    gaps = stats["metadata_gaps"]
    if not gaps:
        return note("Every packed image has its record.") + known
    lines = [[plain(reason), count(n), share(n, samples)] for reason, n in gaps.items()]
    return f'<div class="grid">{known}{table(["no record, because", "images", "share"], lines)}</div>'


def _shards(data: ReportData) -> str:
    stats = data.stats
    cells = [
        [mono(f"{name}.tar"), "–" if band is None else str(band), count(samples), count(nbytes / 1000), mono(checksum)]
        for name, band, samples, nbytes, checksum in data.shards[:_SHARDS_LISTED]
    ]
    left = len(data.shards) - len(cells)
    rest = note(f"{count(left)} more stand in manifest.json.") if left else ""
    heads = ["shard", "band", "images", "kB", "checksum (xxh3-128)"]
    facts: list[tuple[str, object]] = [("seed", stats["seed"]), ("format", f"version {stats['format_version']}")]
    facts += [(name.replace("_", " "), _option(value)) for name, value in sorted(stats["options"].items())]
    facts += sorted(stats["codecs"].items())
    return pairs(facts) + folded(f"All {count(len(data.shards))} shards", table(heads, cells, sorts=True) + rest)


def _option(value: object) -> str:
    text = str(value)
    return text if len(text) <= 400 else text[:400] + "…"


def _asked_for(stats: dict[str, Any]) -> int:
    """Rows that were to be packed."""
    return int(stats["rows"] - stats["rejects"].get(Reason.FILTERED, 0))
