"""The parts of a report that show pictures: groups of duplicates, and samples of some classes."""

from collections.abc import Mapping

from wv_ingest.report_copies import Copy, CopyGroup, Duplicates
from wv_ingest.report_data import ReportData
from wv_ingest.report_parts import count, foreign, mono, note, picture, plain, short, table


def duplicates(data: ReportData, pictures: Mapping[int, bytes]) -> str:
    """How many copies there are, and some groups of them, the largest first."""
    found = data.duplicates
    if found is None:
        return note("Duplicates have not been looked for.")
    if not found.counts:
        return note("No image is a copy of another.")
    groups = "".join(_group(data, group, pictures) for group in found.shown)
    shown = f"{count(len(found.shown))} of the {count(found.groups)} images that have copies"
    which = (
        "the largest groups, of all, of several classes, and with near copies"
        if found.groups > len(found.shown)
        else ""
    )
    lead = f"Below: {shown}{f': {which}' if which else ''}. "
    lead += "The first picture of a row is the one that the others are copies of."
    return f'{_rule(data)}{_counts(found)}{note(lead)}<div class="stack">{groups}</div>'


def contact_sheet(data: ReportData, pictures: Mapping[int, bytes]) -> str:
    """A few samples of some classes, the smallest class first."""
    if not data.sheet:
        return note("There are no images to show.")
    boxes = []
    for class_id, ordinals in data.sheet:
        info = data.stats["classes"][class_id]
        cards = "".join(_picture(data, ordinal, pictures) for ordinal in ordinals)
        images = f"{count(info['samples'])} {'image' if info['samples'] == 1 else 'images'}"
        head = f'<h3>{foreign(info["name"])} <span class="soft">{images}</span></h3>'
        boxes.append(f'<div class="box">{head}<div class="row">{cards}</div></div>')
    lead = "Of the smallest, the middle and the largest classes; what is excluded is left out."
    return f'{note(lead)}<div class="grid">{"".join(boxes)}</div>'


def _rule(data: ReportData) -> str:
    """How they were looked for, where the manifest says so."""
    rule = data.stats["duplicates"]
    if rule is None:
        return ""
    bits = rule["near_distance"]
    near = "Equal files only." if bits is None else f"Near: the perceptual hashes differ in {bits} bits at most."
    several = f"Copies in several classes: {plain(rule['conflict'])}."
    short = rule["cut_short"]
    crowds = f" {count(short)} pictures have too many lookalikes to be compared with all of them." if short else ""
    return note(f"{near} {several}{crowds}")


def _counts(found: Duplicates) -> str:
    cells = []
    for (kind, same_class), (samples, excluded) in sorted(
        found.counts.items(), key=lambda item: (item[0][0], -item[0][1])
    ):
        cells.append([plain(kind), "the same" if same_class else "another", count(samples), count(excluded)])
    total = [sum(numbers) for numbers in zip(*found.counts.values(), strict=True)]
    cells.append(["all", "", *map(count, total)])
    return table(["copies", "class of the first", "images", "excluded"], cells, texts=2, total=True)


def _group(data: ReportData, group: CopyGroup, pictures: Mapping[int, bytes]) -> str:
    first = _picture(
        data, group.first, pictures, css=" first", text=_class_name(data, group.first) + _key(data, group.first)
    )
    copies = "".join(_picture(data, copy.ordinal, pictures, text=_about(data, copy)) for copy in group.copies)
    left = group.size - len(group.copies)
    more = f'<div class="soft">and {count(left)} more</div>' if left else ""
    return f'<div class="box row">{first}{copies}{more}</div>'


def _about(data: ReportData, copy: Copy) -> str:
    """What a copy's picture has under it."""
    kind = (
        "exact"
        if copy.kind == "exact"
        else f"{plain(copy.kind)}, {copy.distance} {'bit' if copy.distance == 1 else 'bits'} apart"
    )
    label = "" if copy.same_class else f'<br><span class="no">{_class_name(data, copy.ordinal)}</span>'
    return f"{kind}{', excluded' if copy.excluded else ''}{label}{_key(data, copy.ordinal)}"


def _key(data: ReportData, ordinal: int) -> str:
    """What `exclude` and the tables know a sample by."""
    return f'<div class="keys soft">{mono(data.names[ordinal][0])}</div>'


def _class_name(data: ReportData, ordinal: int) -> str:
    return foreign(short(data.stats["classes"][data.labels[ordinal]]["name"]))


def _picture(data: ReportData, ordinal: int, pictures: Mapping[int, bytes], *, css: str = "", text: str = "") -> str:
    """One sample, and `text` (HTML) below it; key and path show under the pointer."""
    key, path = data.names[ordinal]
    return picture(pictures.get(ordinal), key, f"{key}: {path}", text=text, css=css)
