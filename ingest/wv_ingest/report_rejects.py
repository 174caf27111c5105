"""The part of a report about rows that were not packed: reasons with examples, and the classes that lost most."""

from collections.abc import Mapping
from typing import Any

from wv_ingest.check import Reason
from wv_ingest.report_examples import RejectExamples
from wv_ingest.report_parts import bar, count, foreign, mono, note, picture, plain, share, short, table

_WORST_CLASSES = 15
_PICTURES = 3
"""Of a reason: a row."""

MEANING = {
    Reason.REPEATED_ROW: "the same path stands in the source before; the first row counts",
    Reason.FILTERED: "not asked for: another source, another class",
    Reason.BAD_ROW: "a line of the lists without a label that is a class, or with a path out of the source",
    Reason.MISSING: "no such file, and no such member of a tar",
    Reason.UNREADABLE: "there, but can't be read",
    Reason.NO_IMAGE: "a sample of a WebDataset tar without an image",
    Reason.NO_LABEL: "a sample of a WebDataset tar that says nothing of its class",
    Reason.BAD_LABEL: "a sample of a WebDataset tar whose label is no class",
    Reason.EMPTY: "no bytes",
    Reason.TOO_MANY_BYTES: "larger than --max-bytes",
    Reason.NOT_AN_IMAGE: "does not begin like any known image format",
    Reason.UNSUPPORTED_FORMAT: "an image of a format that is not accepted",
    Reason.BAD_HEADER: "begins like an image, what follows is none",
    Reason.TOO_SMALL: "a side is shorter than --min-side",
    Reason.TOO_LARGE: "a side or the number of pixels is above the limits",
    Reason.EXTREME_ASPECT: "longer for its height, or higher for its length, than --max-aspect",
    Reason.TRUNCATED: "the file ends before the image does",
    Reason.UNDECODABLE: "does not decode",
    Reason.UNSUPPORTED_PIXELS: "decodes to pixels that have no 8-bit RGB",
    Reason.DECODER_CRASHED: "its decoder crashed, twice",
    Reason.DECODER_CPU_LIMIT: "its decoder took longer than --max-cpu-s, twice",
    Reason.DECODER_MEMORY_LIMIT: "its decoder wanted more than --max-memory-mb, twice",
}
"""What a reason means to a person."""


def rejects(stats: dict[str, Any], examples: Mapping[str, RejectExamples], pictures: Mapping[str, bytes]) -> str:
    """A card of each reason, the most frequent first, and a table of classes."""
    if not stats["rejects"]:
        return note("Every row of the source was packed.")
    cards = []
    for reason, number in sorted(stats["rejects"].items(), key=lambda item: (-item[1], item[0])):
        known = examples.get(reason, RejectExamples())
        details = [(detail, n) for detail, n in known.details.most_common(6) if detail]
        codes = ", ".join(f"{mono(detail)} {count(n)}" for detail, n in details)
        more = ", …" if len(known.details) > len(details) + ("" in known.details) else ""
        lines = [
            _line(stats, path, label, detail if len(known.details) > 1 else "")
            for _, path, label, detail in known.examples
        ]
        of_rows = f'<span class="soft">{share(number, stats["rows"])} of the rows</span>'
        head = f"<h3>{plain(reason)}: {count(number)} {of_rows}</h3>"
        body = [f'<div class="soft">{plain(MEANING.get(reason, ""))}</div>']
        body += [f'<div class="codes">{codes}{more}</div>'] if codes else []
        shown = [picture(pictures[e.path], e.path, e.path) for e in known.examples if e.path in pictures]
        body += [f'<div class="row">{"".join(shown[:_PICTURES])}</div>'] if shown else []
        body += [f'<ul class="lines">{"".join(lines)}</ul>'] if lines else []
        cards.append(f'<div class="box">{head}{"".join(body)}</div>')
    return f'<div class="grid">{"".join(cards)}</div><br>{_worst_classes(stats)}'


def _line(stats: dict[str, Any], path: str, class_id: int, detail: str) -> str:
    """One row that was not packed; it may have no class."""
    known = 0 <= class_id < len(stats["classes"])
    label = foreign(short(stats["classes"][class_id]["name"])) if known else "no class"
    return f'<li>{mono(path)} <span class="soft">{label}{f", {plain(detail)}" if detail else ""}</span></li>'


def _worst_classes(stats: dict[str, Any]) -> str:
    """The classes that lost most of their rows."""
    losing = [c for c in stats["classes"] if c["rows"] > c["samples"]]
    losing.sort(key=lambda c: (c["samples"] / c["rows"], c["samples"] - c["rows"], c["class_id"]))
    cells = [
        [
            foreign(c["name"]),
            count(c["rows"]),
            count(c["samples"]),
            count(c["rows"] - c["samples"]),
            share(c["rows"] - c["samples"], c["rows"]) + bar(c["rows"] - c["samples"], c["rows"]),
        ]
        for c in losing[:_WORST_CLASSES]
    ]
    if not cells:
        return note("No class lost a row.")
    of_how_many = f", {len(cells)} of {count(len(losing))}" if len(losing) > len(cells) else ""
    return f"<h3>Classes that lost the largest share of their rows{of_how_many}</h3>" + table(
        ["class", "rows", "packed", "not packed", "share"], cells
    )
