"""TOML tables → frozen dataclasses, with errors that name the key's whole path.

Knows nothing of recipes: the dataclass's annotations say what is allowed (bool, int, float, str, Literal, `X | None`,
tuples, other dataclasses). A list of tables with a `name` is addressed by name: `phases.gated.gate.start`.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from wv_train.errors import FieldError, RecipeError
from wv_train.toml_lines import item_path

T = TypeVar("T")

_MISSING = dataclasses.MISSING
_SCALAR_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def read_table(cls: type[T], table: object, path: str = "") -> T:
    """Make a `cls` of a TOML table.

    Raises RecipeError: unknown or missing key, wrong type, value refused by the dataclass's own validation.
    """
    if not isinstance(table, Mapping):
        raise _refuse(path, f"expected a table, found {table!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    for key in table:
        if key not in fields:
            raise _refuse(_join(path, key), f"no such key{_suggestion(key, list(fields))}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(table[name], hints[name], _join(path, name))
        elif field.default is _MISSING and field.default_factory is _MISSING:
            raise _refuse(_join(path, name), f"missing, expected {_describe(hints[name])}")
    try:
        return cls(**values)
    except FieldError as error:
        raise _refuse(_join(path, error.field), f"expected {error.expected}, found {error.found!r}") from error
    except ValueError as error:  # of a dataclass of another room, whose messages begin with the field
        word, _, rest = str(error).partition(" ")
        named = word.removesuffix(":") in fields
        raise _refuse(_join(path, word.removesuffix(":")) if named else path, rest if named else str(error)) from error


def set_key(table: dict[str, Any], assignment: str) -> None:
    """Apply one `a.b.c=value` in place; the value is TOML, a bare word is a string. Items of a list go by `name`.

    Raises RecipeError, whose message begins with the assignment: no `=`, or a name that a list does not have.
    """
    path, equals, text = assignment.partition("=")
    keys = path.strip().split(".")
    start = f"--set {assignment}: "
    if not equals or not all(keys):
        raise RecipeError(f"{start}expected KEY=VALUE, such as phases.gated.gate.start=0.3")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node: Any = table
    for depth, key in enumerate(keys):
        here = ".".join(keys[: depth + 1])
        last = depth == len(keys) - 1
        if isinstance(node, list):
            names = [item.get("name", "") for item in node if isinstance(item, dict)]
            if key not in names:
                raise RecipeError(f"{start}{here}: nothing of that name{_suggestion(key, names)}")
            if last:
                raise RecipeError(f"{start}{here}: expected a key inside it, such as {here}.lr={text.strip()}")
            node = node[names.index(key)]
        elif not isinstance(node, dict):
            raise RecipeError(f"{start}{here}: no such key, {'.'.join(keys[:depth])} is {node!r}")
        elif last:
            node[key] = value
        else:
            node = node.setdefault(key, {})


def to_table(value: object) -> Any:
    """A dataclass as TOML-able dictionaries and lists; fields that are None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_table(item) for name, item in items if item is not None}
    if isinstance(value, tuple):
        return [to_table(item) for item in value]
    return value


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """TOML text of what `to_table` gives."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in table.items() if not _is_nested(value)]
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += ["", f"[{path}]", to_toml(value, f"{path}.").rstrip("\n")]
        elif _is_nested(value):
            for item in value:
                lines += ["", f"[[{path}]]", to_toml(item, f"{path}.").rstrip("\n")]
    return "\n".join(lines).strip() + "\n"


def first_difference(left: Mapping[str, Any], right: Mapping[str, Any], path: str = "") -> tuple[str, Any, Any] | None:
    """The first key at which two tables differ, with both values (None where one has none)."""
    for key in [*left, *(key for key in right if key not in left)]:
        one, other, here = left.get(key), right.get(key), _join(path, key)
        if isinstance(one, list) and isinstance(other, list) and _is_nested(one) and _is_nested(other):
            one = {item.get("name", str(i)): item for i, item in enumerate(one)}
            other = {item.get("name", str(i)): item for i, item in enumerate(other)}
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if found := first_difference(one, other, here):
                return found
        elif one != other:
            return here, one, other
    return None


def close_matches(word: str, known: list[str]) -> str:
    """`; did you mean a, b?`, or nothing where nothing is close."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _convert(value: object, hint: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _convert(value, inner, path)
    if origin is typing.Literal:
        if value not in arguments:
            raise _refuse(
                path, f"expected {_describe(hint)}, found {value!r}{close_matches(str(value), list(arguments))}"
            )
        return value
    if origin is tuple:
        return _convert_tuple(value, hint, path)
    if dataclasses.is_dataclass(hint):
        return read_table(typing.cast(type[Any], hint), value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right_type = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    if not right_type or (isinstance(value, float) and not math.isfinite(value)):
        raise _refuse(path, f"expected {_describe(hint)}, found {value!r}")
    return value


def _convert_tuple(value: object, hint: Any, path: str) -> tuple[Any, ...]:
    arguments = typing.get_args(hint)
    many = arguments[-1] is Ellipsis
    if not isinstance(value, (list, tuple)) or (not many and len(value) != len(arguments)):
        raise _refuse(path, f"expected {_describe(hint)}, found {value!r}")
    inner = [arguments[0]] * len(value) if many else list(arguments)
    items = []
    for index, (item, item_hint) in enumerate(zip(value, inner, strict=True)):
        items.append(_convert(item, item_hint, item_path(path, index, item)))
    return tuple(items)


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _describe(next(argument for argument in arguments if argument is not types.NoneType))
    if origin is typing.Literal:
        return "one of " + ", ".join(f'"{argument}"' for argument in arguments)
    if origin is tuple:
        count = "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
        return f"{count}, each {_describe(arguments[0])}"
    return _SCALAR_NAMES.get(hint, "a table")


def _refuse(path: str, reason: str) -> RecipeError:
    return RecipeError(f"{path}: {reason}" if path else reason, key_path=path)


def _suggestion(key: str, known: list[str]) -> str:
    return close_matches(key, known) or f"; known here: {', '.join(known)}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    return repr(value)
