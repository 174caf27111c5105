"""docs/recipes.md: its tables and picture are the code's, and what it says can be typed can be."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

import wv_train.cli
from wv_train.recipe import load_recipe, recipe_names

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = REPOSITORY / "docs" / "recipes.md"
TEXT = PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_page", REPOSITORY / "tools" / "recipe_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_and_its_picture_are_current(tool: ModuleType) -> None:
    assert tool.page(TEXT) == TEXT, "run python tools/recipe_page.py"
    assert tool.picture() == tool.PICTURE.read_text(encoding="utf-8"), "run python tools/recipe_page.py"


def test_every_key_of_a_recipe_is_explained(tool: ModuleType) -> None:
    for cls in tool.TABLES.values():
        for name, text in tool.field_docstrings(cls).items():
            assert text.endswith("."), f"{cls.__name__}.{name}: expected a docstring below the field"


def test_every_shipped_recipe_is_in_the_table() -> None:
    rows = "".join(re.findall(r"^\| (`[^|]*) \|.*\|$", TEXT.partition("## Phases")[0], re.MULTILINE))
    assert sorted(re.findall(r"`([\w-]+)`", rows)) == recipe_names()


def test_commands_options_and_links_exist() -> None:
    known = {option for parameter in wv_train.cli.command.params for option in parameter.opts}
    written = TEXT.partition("## Keys")[0]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", written)) <= known
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target


def test_assignments_on_the_page_can_be_made() -> None:
    for assignment in re.findall(r"--set ([a-z][\w.]*=[\w.]+)", TEXT):
        load_recipe("demo", (shlex.split(assignment)[0],))
