"""Recipes: what is read is what was written, and every mistake names its key's whole path."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wv_train.errors import RecipeError
from wv_train.gate import GateConfig
from wv_train.recipe import RecipeSource, load_recipe, recipe_from_table, recipe_names
from wv_train.table import first_difference, set_key, to_table, to_toml
from wv_train.toml_lines import key_lines


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_survive_being_printed(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_from_table(tomllib.loads(to_toml(to_table(recipe)))) == recipe


def test_the_demo_recipes_have_three_phases_and_one_budget() -> None:
    gated, plain = load_recipe("demo"), load_recipe("demo-plain")
    assert [phase.name for phase in gated.phases] == ["base", "gated", "finetune"]
    assert gated.phases[1].gate is not None
    assert gated.phases[2].gate is not None
    assert gated.phases[2].gate.end == 0  # in the end everything teaches
    assert gated.phases[2].backbone_factor != gated.phases[2].head_factor
    assert sum(phase.epochs or 0 for phase in gated.phases) == sum(phase.epochs or 0 for phase in plain.phases)
    assert (gated.model, gated.batch_size, gated.augment) == (plain.model, plain.batch_size, plain.augment)
    assert not any(phase.gate for phase in plain.phases)
    # The same rebalancing, so that the difference is the gate's.
    assert {(phase.balance, phase.class_weights) for phase in (*gated.phases, *plain.phases)} == {(0.5, "sqrt")}


def test_the_recipe_after_sun_et_al_has_the_papers_figures() -> None:
    recipe = load_recipe("webvision2-sun2018")
    base, gated, finetune = recipe.phases
    assert recipe.batch_size == 1024
    assert base.until == "plateau"  # the gate comes once the loss is stable
    assert (base.max_steps or 0) + (gated.steps or 0) == 400_000
    assert (gated.schedule, gated.gamma) == ("step", 0.1)
    assert gated.gate is not None
    assert (gated.gate.kind, gated.gate.unit, gated.gate.end) == ("top1", "confidence", 0.0)
    assert base.gate is finetune.gate is None
    assert finetune.steps == 10_000
    assert finetune.lr < base.lr
    assert finetune.backbone_factor != finetune.head_factor
    # A class-weighted loss, on classes shown as collected: one correction of the imbalance.
    assert {(phase.balance, phase.class_weights != "none") for phase in recipe.phases} == {(1.0, True)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.gated.gate.start=1.5", "phases.gated.gate.start: expected a probability"),
        ("phases.gated.gate.end=0.9", "phases.gated.gate.end: expected 0 <= end <= start"),
        ("phases.gated.gate.strat=0.5", "phases.gated.gate.strat: no such key; did you mean start"),
        ("phases.gated.gate.kind=lable", "phases.gated.gate.kind: expected one of"),
        ("phases.base.lr=fast", "phases.base.lr: expected a number, found 'fast'"),
        ("phases.base.epochs=2.5", "phases.base.epochs: expected a whole number"),
        ("phases.base.epochs=true", "phases.base.epochs: expected a whole number"),
        ("phases.base.steps=3", "phases.base.steps: expected exactly one of steps, epochs and until"),
        ("phases.base.max_steps=3", "phases.base.max_steps: expected a length together with until"),
        ("phases.gated.milestones=[]", "phases.gated.milestones: expected fractions"),
        ("phases.gated.milestones=[0.5, 2]", "phases.gated.milestones: expected rising fractions"),
        ("phases.gated.milestones=0.5", "phases.gated.milestones: expected a list, each a number"),
        ("phases.gaten.lr=1", "phases.gaten: nothing of that name; did you mean gated"),
        ("phases.gated=1", "phases.gated: expected a key inside it"),
        ("optimizer.momentum=1", "optimizer.momentum: expected 0 <= momentum < 1"),
        ("optimiser.momentum=0.5", "optimiser: no such key; did you mean optimizer"),
        ("augment.crop_scale=[0.5]", "augment.crop_scale: expected a list of 2, each a number"),
        ("augment.crop_scale=[0.9, 0.5]", "augment.crop_scale: must be 0 < low"),
        ("augment.hue=2", "augment.hue: expected a number from 0 to 0.5"),
        ("batch_size=0", "batch_size: expected 1 or more, found 0"),
        ("model.name=x", "model.name: no such key"),
        ("seed", "expected KEY=VALUE"),
        ("seed=99999999999999999999", "seed: expected less than 2^63"),
    ],
)
def test_mistakes_name_the_override_and_the_whole_key_path(
    override: str, message: str, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(tmp_path / "tiny.toml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), (override,))
    assert str(caught.value).startswith(f"--set {override}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "held", "message"),
    [
        ("start = 0.3", "strat = 0.3", "strat = 0.3", "phases.gated.gate.strat: no such key; did you mean start"),
        ("start = 0.3", "start = 1.3", "start = 1.3", "phases.gated.gate.start: expected a probability"),
        ("seed = 3", "seed = -3", "seed = -3", "seed: expected 0 or more"),
        ("seed = 3", "sed = 3", "sed = 3", "sed: no such key; did you mean seed"),
        ("milestones = [0.5]", "milestones = [\n0.5,\n'x']", "'x']", "phases.gated.milestones[1]: expected a number"),
        # What is not there has the line of the table that it is missing from.
        ("lr = 0.01", "", "[[phases]]", "phases.finetune.lr: missing"),
        ("steps = 6", "", "[[phases]]", "phases.finetune.steps: expected exactly one of steps, epochs and until"),
        ('model = "wv_resnet_16_32_64"', "", None, "model: missing"),
    ],
)
def test_mistakes_in_a_file_name_its_line(
    old: str, new: str, held: str | None, message: str, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(tmp_path / "tiny.toml")
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    lines = path.read_text().splitlines()
    where = path if held is None else f"{path}:{len(lines) - lines[::-1].index(held)}"  # the last that is so
    assert str(caught.value).startswith(f"{where}: {message}")
    with pytest.raises(RecipeError) as again:  # an override that has nothing to do with it is not blamed
        load_recipe(str(path), ("log_every_steps=5",))
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "blamed", "message"),
    [
        (("seed=1", "phases.base.schedule=step", "log_every_steps=7"), 1, "phases.base.milestones: expected fractions"),
        (("phases.gated.schedule=constant", "seed=2"), 0, "phases.gated.milestones: expected fractions"),
        (("phases.gated.gate.start=0.2", "phases.gated.gate.end=0.25"), 1, "phases.gated.gate.end: expected 0 <= end"),
        (("seed=1", "batch_size=17", "streams=3"), 2, "streams: expected a divisor of batch_size (17), found 3"),
    ],
)
def test_of_several_overrides_the_one_to_blame_is_named(
    overrides: tuple[str, ...], blamed: int, message: str, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe(tmp_path / "tiny.toml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    assert str(caught.value).startswith(f"--set {overrides[blamed]}: {message}")


def test_an_override_can_mend_what_a_file_has_wrong(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(tmp_path / "tiny.toml")
    path.write_text(path.read_text().replace("seed = 3", "seed = -3"))
    assert load_recipe(str(path), ("seed=4",)).seed == 4
    with pytest.raises(RecipeError, match=r"--set seed=-4: seed: expected 0 or more, found -4"):
        load_recipe(str(path), ("seed=-4",))


def test_a_mistake_in_a_shipped_recipe_would_name_its_line(shipped: Callable[[str], str]) -> None:
    text = shipped("demo").replace('kind = "label_average"', 'kidn = "label_average"', 1)
    source = RecipeSource(where="demo.toml", lines=key_lines(text))
    line = text.splitlines().index('kidn = "label_average"') + 1
    with pytest.raises(RecipeError, match=rf"^demo\.toml:{line}: phases\.gated\.gate\.kidn: no such key"):
        recipe_from_table(tomllib.loads(text), source=source)


def test_a_missing_key_is_named_with_what_it_should_be(tiny_table: Callable[..., dict[str, Any]]) -> None:
    table = tiny_table()
    del table["phases"][1]["lr"]
    with pytest.raises(RecipeError, match=r"^phases\.gated\.lr: missing, expected a number$"):
        recipe_from_table(table)


def test_two_phases_of_one_name_are_refused(tiny_table: Callable[..., dict[str, Any]]) -> None:
    table = tiny_table()
    table["phases"][1]["name"] = "base"
    with pytest.raises(RecipeError, match="phases: expected a name of its own for each phase, found 'base'"):
        recipe_from_table(table)


def test_set_reaches_phases_by_name_and_makes_tables(tiny_table: Callable[..., dict[str, Any]]) -> None:
    table = tiny_table("phases.gated.gate.start=0.25", "phases.base.gate.start=0.1", "model=resnet18")
    recipe = recipe_from_table(table)
    assert recipe.phases[1].gate == GateConfig(start=0.25)
    assert recipe.phases[0].gate == GateConfig(start=0.1)
    assert recipe.model == "resnet18"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmo", "neither a shipped recipe nor a file; did you mean demo"),
        ("absent.toml", "cannot be read: No such file"),
    ],
)
def test_unknown_recipes_are_refused(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(name)


def test_broken_toml_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("model = \n")
    with pytest.raises(RecipeError, match=r"broken\.toml: not valid TOML: .*line 1"):
        load_recipe(str(tmp_path / "broken.toml"))


def test_first_difference_names_phases(tiny_table: Callable[..., dict[str, Any]]) -> None:
    one, other = tiny_table(), tiny_table("phases.gated.gate.start=0.2")
    assert first_difference(one, one) is None
    assert first_difference(one, other) == ("phases.gated.gate.start", 0.3, 0.2)
    set_key(other, "seed=7")
    assert first_difference(one, other) == ("seed", 3, 7)
