"""Writes the tables of keys in docs/recipes.md, and its picture: `python tools/recipe_page.py`.

Names, types and defaults are those of the dataclasses' fields, descriptions their docstrings, so page and code cannot
part; a test compares them. `--check` changes nothing and fails where they differ. The text around is written by hand.
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

from wv_loader import Augment
from wv_train.curriculum import CurriculumConfig
from wv_train.dry_run_picture import curves_of, svg_picture
from wv_train.gate import GateConfig
from wv_train.recipe import OptimizerConfig, Phase, PlateauConfig, Recipe, load_recipe
from wv_train.robust_losses import LossConfig
from wv_train.teacher import TeacherConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
PICTURE = PAGE.with_name("webvision2-sun2018.svg")
BEGIN, END = "<!-- keys: made by tools/recipe_page.py -->", "<!-- end of keys -->"

TABLES: dict[str, type[Any]] = {
    "At the top": Recipe,
    "`[[phases]]`": Phase,
    "`[phases.gate]`": GateConfig,
    "`[phases.loss]`": LossConfig,
    "`[phases.plateau]`": PlateauConfig,
    "`[phases.curriculum]`": CurriculumConfig,
    "`[phases.teacher]`": TeacherConfig,
    "`[optimizer]`": OptimizerConfig,
    "`[augment]`": Augment,
}
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def field_docstrings(cls: type[Any]) -> dict[str, str]:
    """The string below each field of a dataclass, on one line; "" where there is none."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found = dict.fromkeys((field.name for field in dataclasses.fields(cls)), "")
    for node, below in itertools.pairwise(body):
        match node, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def tables() -> str:
    """All tables, in Markdown."""
    parts = []
    for title, cls in TABLES.items():
        hints, texts = typing.get_type_hints(cls), field_docstrings(cls)
        parts += [f"### {title}", "", "| key | value | default | what it does |", "| --- | --- | --- | --- |"]
        for field in dataclasses.fields(cls):
            cells = (f"`{field.name}`", _values(hints[field.name]), _default(field), texts[field.name])
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("")
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name}: expected the lines {BEGIN} and {END}")
    return f"{before}{begin}\n\n{tables()}\n{end}{after}"


def _values(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _values(next(argument for argument in arguments if argument is not types.NoneType))
    if origin is typing.Literal:
        return ", ".join(f'`"{argument}"`' for argument in arguments)
    if origin is tuple:
        if dataclasses.is_dataclass(arguments[0]):
            return "tables"
        many = arguments[-1] is Ellipsis
        return f"list of {'' if many else len(arguments)} {_WORDS[arguments[0]]}s".replace("  ", " ")
    return "table" if dataclasses.is_dataclass(hint) else _WORDS[hint]


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        if value is None:
            return "not given"
        if isinstance(value, tuple):
            return f"`[{', '.join(f'{item:.4g}' for item in value)}]`"
        return f"`{str(value).lower() if isinstance(value, bool) else repr(value).replace(chr(39), chr(34))}`"
    return "**needed**" if field.default_factory is dataclasses.MISSING else "see there"


def picture() -> str:
    """Rates and gate of the paper's recipe."""
    phases = load_recipe(PICTURE.stem).phases
    lengths = [(phase, phase.steps or phase.max_steps or 0) for phase in phases]
    return svg_picture(curves_of(lengths), title=PICTURE.stem)


def main() -> None:
    """Write page and picture, or compare."""
    for path, made in ((PAGE, page(PAGE.read_text(encoding="utf-8"))), (PICTURE, picture())):
        if "--check" not in sys.argv:
            path.write_text(made, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != made:
            sys.exit(f"{path.name} is not what the code says: run python tools/recipe_page.py")


if __name__ == "__main__":
    main()
