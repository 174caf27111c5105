"""What several runs were asked for differently: every key of their recipes and facts whose values are not all alike."""

from collections.abc import Sequence
from typing import Any

from wv_train.report_data import RunData
from wv_train.report_words import dot, escape, table

_FACTS = ("shards", "val", "exclude", "holdout", "world_size", "engine_description", "manifest_digest", "parameters")


def differences(runs: Sequence[RunData]) -> dict[str, tuple[object, ...]]:
    """Path of each key that differs → its value in every run, None where a run has none.

    Recipe keys as `wv-train --set` takes them (`phases.gated.gate.start`); facts of `run.json` begin with `run.`.
    """
    flat = [_settings(run.info) for run in runs]
    paths = dict.fromkeys(path for settings in flat for path in settings)
    rows = {path: tuple(settings.get(path) for settings in flat) for path in paths}
    return {path: values for path, values in rows.items() if any(value != values[0] for value in values)}


def settings_section(runs: Sequence[RunData]) -> str:
    """A row per key, a column per run; "" for a single run."""
    if len(runs) < 2:
        return ""
    found = differences(runs)
    heading = "<h2>Settings that differ</h2>"
    if not found:
        return f'{heading}<p class="quiet">None: recipes, data and versions are the same.</p>'
    rows = [
        f"<tr><td><code>{escape(path)}</code></td>{''.join(f'<td>{_value(value)}</td>' for value in values)}</tr>"
        for path, values in found.items()
    ]
    return heading + table(
        ["key", *(f"{dot(n)}{escape(run.name)}" for n, run in enumerate(runs))], rows, css="settings"
    )


def flat(value: object, path: str = "") -> dict[str, object]:
    """A nested table as {a.b.c: value}; items of a list go by their `name`, as in `--set`."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {
            str(item.get("name", place)): {key: inner for key, inner in item.items() if key != "name"}
            for place, item in enumerate(value)
        }
    if not isinstance(value, dict):
        return {path: value}
    return {
        inner: leaf
        for key, item in value.items()
        for inner, leaf in flat(item, f"{path}.{key}" if path else str(key)).items()
    }


def _settings(info: dict[str, Any]) -> dict[str, object]:
    recipe = flat(info["recipe"])
    facts = {f"run.{name}": info[name] for name in _FACTS if info.get(name)}
    versions = {f"run.versions.{name}": value for name, value in info.get("versions", {}).items()}
    return {**recipe, **facts, **versions}


def _value(value: object) -> str:
    return "–" if value is None else f"<code>{escape(value)}</code>"
