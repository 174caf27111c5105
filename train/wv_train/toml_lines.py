"""On which line of a TOML text each key stands, which `tomllib` does not say.

A small scanner of *valid* TOML: it finds keys and steps over values. What it finds must be the very keys that `tomllib`
read; otherwise, or where a path names two keys, there is no line rather than a wrong one.
"""

import tomllib
from collections.abc import Mapping
from typing import Any

Path = tuple[str | int, ...]
"""Keys, and indices within arrays."""

_BARE_END = frozenset(",]}#\n")
_KEY_END = frozenset(" \t=.]")
_BLANK = " \t\r\n"


def key_lines(text: str) -> dict[str, int]:
    """Line, from 1, of every key of a TOML text, by the path that `table` writes in its errors.

    Items of an array go by their `name` where they have one (`phases.gated.lr`), else by index. A table's line is its
    header's, or that of its first key where it has none. Empty where the text is not what the scanner can read.

    Raises tomllib.TOMLDecodeError.
    """
    table = tomllib.loads(text)
    try:
        lines = _Scanner(text.replace("\r\n", "\n")).scan()
    except (IndexError, ValueError):  # ran over the end: not understood
        return {}
    paths = _paths(table)
    if lines.keys() != paths.keys():
        return {}
    found: dict[str, int] = {}
    ambiguous = set()
    for path, line in lines.items():
        name = paths[path]
        if found.setdefault(name, line) != line:
            ambiguous.add(name)
    return {name: line for name, line in found.items() if name not in ambiguous}


def line_of(lines: Mapping[str, int], path: str) -> int | None:
    """The key's line, or where the text does not have it that of the nearest table around it that it would go into."""
    while path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
        if not path:
            return None
    return lines[path]


def item_path(path: str, index: int, item: object) -> str:
    """How an item of an array is addressed: by its name if it has one."""
    name = item.get("name") if isinstance(item, Mapping) else None
    return f"{path}.{name}" if isinstance(name, str) else f"{path}[{index}]"


def _paths(table: Mapping[str, Any]) -> dict[Path, str]:
    """Every key and item of a parsed table with its path in errors."""
    found: dict[Path, str] = {}

    def walk(value: object, path: Path, name: str) -> None:
        items: list[tuple[str | int, object, str]] = []
        if isinstance(value, Mapping):
            items = [(key, item, f"{name}.{key}" if name else key) for key, item in value.items()]
        elif isinstance(value, list):
            items = [(index, item, item_path(name, index, item)) for index, item in enumerate(value)]
        for key, item, item_name in items:
            found[*path, key] = item_name
            walk(item, (*path, key), item_name)

    walk(table, (), "")
    return found


class _Scanner:
    """One pass over the text. An IndexError or ValueError says that it ended too soon."""

    def __init__(self, text: str) -> None:
        self._text = text + "\n"
        self._at = 0
        self._lines: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}
        """Tables so far of each array of tables."""

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self._skip_blank()
        while self._at < len(self._text):
            if self._next("[["):
                table = self._header(many=True)
            elif self._next("["):
                table = self._header(many=False)
            else:
                self._pair(table)
            self._skip_blank()
        return self._lines

    def _header(self, *, many: bool) -> Path:
        """After the opening bracket: the path that the following keys belong to."""
        line = self._line()
        *outer, last = self._key()
        path: Path = ()
        for key in outer:
            path = (*path, key)
            self._lines.setdefault(path, line)
            if path in self._counts:
                path = (*path, self._counts[path] - 1)
        path = (*path, last)
        if many:
            self._lines.setdefault(path, line)
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            path = (*path, index)
        self._lines[path] = line
        self._at = self._text.index("]", self._at) + (2 if many else 1)
        return path

    def _pair(self, table: Path) -> None:
        """`key = value`, with the blank between them."""
        line = self._line()
        path = table
        for key in self._key():
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._at = self._text.index("=", self._at) + 1
        self._value(path)

    def _key(self) -> list[str]:
        """The parts of a dotted key; stops behind the last."""
        parts = []
        while True:
            self._skip_blank()
            start = self._at
            if self._text[start] in "\"'":
                self._string()
                (part,) = tomllib.loads(f"{self._text[start : self._at]} = 0")
            else:
                while self._text[self._at] not in _KEY_END:
                    self._at += 1
                part = self._text[start : self._at]
            parts.append(part)
            while self._text[self._at] in " \t":
                self._at += 1
            if not self._next("."):
                return parts

    def _value(self, path: Path) -> None:
        self._skip_blank()
        if self._text[self._at] in "\"'":
            self._string()
        elif self._next("["):
            self._array(path)
        elif self._next("{"):
            self._inline_table(path)
        else:
            while self._text[self._at] not in _BARE_END:
                self._at += 1

    def _array(self, path: Path) -> None:
        index = 0
        while not self._closed("]"):
            self._lines[*path, index] = self._line()
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        while not self._closed("}"):
            self._pair(path)

    def _closed(self, bracket: str) -> bool:
        """Step over blanks and one comma; whether the bracket follows."""
        self._skip_blank()
        if self._next(","):
            self._skip_blank()
        return self._next(bracket)

    def _string(self) -> None:
        quote = self._text[self._at]
        end = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(end)
        while not self._text.startswith(end, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
            self._text[self._at]  # raises where there is no end
        self._at += len(end)
        for _ in range(2):  # up to two quotes may stand before the three that end it
            if len(end) == 3 and self._text[self._at] == quote:
                self._at += 1

    def _skip_blank(self) -> None:
        """Blanks, newlines and comments."""
        while self._at < len(self._text):
            if self._text[self._at] == "#":
                self._at = self._text.index("\n", self._at)
            elif self._text[self._at] not in _BLANK:
                return
            self._at += 1

    def _next(self, word: str) -> bool:
        """Whether this follows; steps over it."""
        follows = self._text.startswith(word, self._at)
        self._at += len(word) if follows else 0
        return follows

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1
