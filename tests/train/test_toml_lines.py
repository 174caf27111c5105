"""Lines of keys: right for every way to write a table, and none rather than a wrong one."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wv_train.recipe import recipe_names
from wv_train.toml_lines import item_path, key_lines, line_of

KEYS = st.sampled_from(["lr", "name", "steps", "gate", "a-b", "c_1", "2", "sp ace", 'q"uote', "é", "x]", "y=z", "h#"])
TEXTS = st.sampled_from(
    ['plain"""', "# no comment", "[no.header]", "k = 1", "two\nlines = 1\n", 'end"', "\\", "'''", ""]
)
SCALARS = st.one_of(st.integers(-9, 9), st.booleans(), st.floats(-2, 2), TEXTS)
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS, max_size=3),
    lambda inner: st.dictionaries(
        KEYS, SCALARS | inner | st.lists(SCALARS, max_size=3) | st.lists(inner, min_size=1, max_size=3), max_size=4
    ),
    max_leaves=12,
)


class Writer:
    """Writes a table as TOML in ways drawn by `choose`, and notes the line of each key that it writes."""

    def __init__(self, choose: Any) -> None:
        self.choose, self.text, self.lines = choose, "", dict[tuple[str | int, ...], int]()

    def line(self) -> int:
        return self.text.count("\n") + 1

    def blank(self) -> None:
        self.text += self.choose(["", "", "\n", "  # lr = 1 [x] \"'\n", "\n\t\n"])

    def key(self, key: str) -> str:
        if all(c.isascii() and (c.isalnum() or c in "-_") for c in key):
            return str(self.choose([key, f'"{key}"', f"'{key}'"]))
        return basic(key)

    def table(self, table: dict[str, Any], path: tuple[str | int, ...], header: tuple[str, ...]) -> None:
        nested = {k: v for k, v in table.items() if isinstance(v, dict) or (isinstance(v, list) and v and is_tables(v))}
        later = {k: v for k, v in nested.items() if self.choose([True, True, False])}
        for key, value in table.items():
            if key not in later:
                self.pair(key, value, path)
                self.text += self.choose(["\n", " # comment\n", "\n\n"])
        for key, value in later.items():
            here = (*header, self.key(key))
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                self.text += self.choose(["", "\n", "# [lr]\n", "  "])
                many = isinstance(value, list)
                inner = (*path, key, index) if many else (*path, key)
                self.lines.setdefault((*path, key), self.line())
                self.lines[inner] = self.line()
                name = self.choose([".", " . "]).join(here)
                self.text += f"[[{name}]]\n" if many else f"[ {name} ]  # {key!r}\n"
                self.table(item, inner, here)

    def pair(self, key: str, value: Any, path: tuple[str | int, ...]) -> None:
        here = (*path, key)
        self.lines[here] = self.line()
        if isinstance(value, dict) and len(value) == 1 and self.choose([True, False]):  # a dotted key
            ((inner, item),) = value.items()
            self.text += self.key(key) + self.choose([".", " . "])
            self.pair(inner, item, here)
            return
        self.text += self.key(key) + self.choose(["=", " = "])
        self.value(value, here)

    def value(self, value: Any, path: tuple[str | int, ...]) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for number, (key, item) in enumerate(value.items()):
                self.text += ", " if number else " "
                self.pair(key, item, path)
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for index, item in enumerate(value):
                self.blank()
                self.lines[*path, index] = self.line()
                self.value(item, (*path, index))
                self.blank()
                self.text += "," if index + 1 < len(value) else self.choose(["", ","])
            self.blank()
            self.text += "]"
        elif isinstance(value, str):
            ways = [basic(value)]
            if "\\" not in value and "\t" not in value:
                ways += [f'"""\n{value.replace(chr(34) * 3, chr(34) * 2 + chr(92) + chr(34))}"""']
            if "'" not in value:
                ways += [f"'''\n{value}'''"] + ([f"'{value}'"] if "\n" not in value else [])
            self.text += self.choose(ways)
        else:
            self.text += str(value).lower()


def basic(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def is_tables(value: list[Any]) -> bool:
    return all(isinstance(item, dict) for item in value)


def names_of(value: Any, path: tuple[str | int, ...] = (), name: str = "") -> dict[tuple[str | int, ...], str]:
    found = {}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        here = item_path(name, key, item) if isinstance(value, list) else f"{name}.{key}" if name else key
        found |= {(*path, key): here, **names_of(item, (*path, key), here)}
    return found


@given(TABLES, st.data())
def test_every_key_has_the_line_that_it_was_written_on(table: dict[str, Any], data: st.DataObject) -> None:
    writer = Writer(lambda ways: data.draw(st.sampled_from(ways)))
    writer.table(table, (), ())
    assert tomllib.loads(writer.text) == table  # the writer is right
    names = names_of(table)
    assert names.keys() == writer.lines.keys()
    lines = key_lines(writer.text)
    for path, name in names.items():
        same = {writer.lines[other] for other, its_name in names.items() if its_name == name}
        assert lines.get(name) == (same.pop() if len(same) == 1 else None), (name, path)
    assert key_lines(writer.text.replace("\n", "\r\n")) == lines


@pytest.mark.parametrize("name", recipe_names())
def test_the_lines_of_a_shipped_recipe_hold_their_keys(name: str, shipped: Any) -> None:
    text = shipped(name)
    lines = key_lines(text)
    assert {"model", "phases", "batch_size"} <= lines.keys()
    for path, line in lines.items():
        key = path.rpartition(".")[2].partition("[")[0]
        written = text.splitlines()[line - 1]
        assert key in written or written == "[[phases]]", path  # a phase goes by its name


def test_what_is_not_in_the_text_goes_to_the_table_around_it() -> None:
    lines = key_lines('x = 1\n[[phases]]\nname = "a"\n[phases.gate]\nstart = 0\n')
    assert line_of(lines, "phases.a.gate.strat") == 4
    assert line_of(lines, "phases.a.lr") == 2
    assert line_of(lines, "phases[0].lr") == 2  # no item of that path: the array's
    assert line_of(lines, "model") is None


def test_phases_of_one_name_have_no_line() -> None:
    lines = key_lines('[[phases]]\nname = "a"\nlr = 1\n[[phases]]\nname = "a"\nlr = 2\n')
    assert "phases.a.lr" not in lines
    assert lines == {"phases": 1}


def test_a_text_that_the_scanner_misreads_has_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a = {b = 1}\nc = 2\n"
    assert key_lines(text) == {"a": 1, "a.b": 1, "c": 2}
    monkeypatch.setattr("wv_train.toml_lines._Scanner._inline_table", lambda self, _path: self._closed("b = 1}"))
    assert key_lines(text) == {}
