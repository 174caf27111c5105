"""Small pieces of a report's page: safe text, numbers, tables, tiles. They make every foreign text safe."""

import base64
import html
import re
from collections.abc import Iterable, Sequence

from rich.filesize import decimal

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of writing for what follows them, and halves of surrogate pairs."""
_WORDNET_ID = re.compile(r"^n\d{8} ")


def plain(text: object) -> str:
    """Safe in an attribute and between tags; what can't be seen is written as an escape."""
    return html.escape(_HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text)))


def foreign(text: object) -> str:
    """A name or path of the data set: safe, and with its own direction of writing."""
    return f"<bdi>{plain(text)}</bdi>"


def mono(text: object) -> str:
    """A path, a code or a key."""
    return f'<bdi class="mono">{plain(text)}</bdi>'


def short(class_name: str) -> str:
    """`tench` of `n01440764 tench, Tinca tinca`."""
    return _WORDNET_ID.sub("", class_name).partition(",")[0] or class_name


def count(value: float) -> str:
    """1,234"""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """1.2 MB"""
    return decimal(round(value))


def share(part: int, whole: int) -> str:
    """5.2%, with as many digits as it takes to tell it from nothing and from all."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    for digits in (1, 2, 3):
        text = f"{percent:.{digits}f}%"
        if part in (0, whole) or float(text[:-1]) not in (0.0, 100.0):
            return text
    return "<0.001%" if percent < 50 else ">99.999%"


def bar(part: int, whole: int) -> str:
    """A short bar of a share."""
    return f'<span class="bar minor"><i style="width:{100 * part / whole if whole else 0:.1f}%"></i></span>'


def picture(image: bytes | None, name: str, about: str, *, text: str = "", css: str = "") -> str:
    """A small JPEG, or that there is none; `about` shows under the pointer, `text` (HTML) below the picture."""
    if image is None:
        shown = '<div class="gone">can\'t be shown</div>'
    else:
        data = base64.b64encode(image).decode()
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{plain(name)}" title="{plain(about)}">'
    return f'<div class="pic{css}">{shown}{text}</div>'


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Large numbers with their names."""
    body = "".join(f'<div class="box"><b>{plain(value)}</b><span>{plain(name)}</span></div>' for value, name in values)
    return f'<div class="tiles">{body}</div>'


def pairs(values: Iterable[tuple[str, object]]) -> str:
    """Names and values, one pair a line."""
    body = "".join(f"<dt>{plain(name)}</dt><dd>{mono(value)}</dd>" for name, value in values)
    return f'<div class="box"><dl class="pairs">{body}</dl></div>'


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1, total: bool = False, sorts: bool = False
) -> str:
    """A table of HTML cells.

    Args:
        heads: of the columns; text.
        rows: HTML.
        texts: so many columns at the left hold text, the others numbers.
        total: the last row is the sum.
        sorts: a click on a head sorts.
    """
    rows = list(rows)

    def line(cells: Sequence[str], tag: str, css: str = "") -> str:
        body = "".join(
            f'<{tag} class="t">{cell}</{tag}>' if place < texts else f"<{tag}>{cell}</{tag}>"
            for place, cell in enumerate(cells)
        )
        return f"<tr{css}>{body}</tr>\n"

    body = "".join(
        line(row, "td", ' class="sum"' if total and place == len(rows) - 1 else "") for place, row in enumerate(rows)
    )
    css = ' class="sorts"' if sorts else ""
    return (
        f'<div class="box wide"><table{css}><thead>{line([plain(head) for head in heads], "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def note(text: str) -> str:
    """One line of explanation, HTML."""
    return f'<p class="soft">{text}</p>'


def folded(summary: str, body: str) -> str:
    """Something long, closed until it is asked for."""
    return f"<details><summary>{plain(summary)}</summary>{body}</details>"
