"""Options that benchmarks share: files to be written, which are refused before anything is measured, and `--json`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

STDOUT = Path("-")


class OutputFile(click.Path):
    """A file that can be written: its folder is there. The file itself is made at the end."""

    def __init__(self, *, suffix: str = "", allow_dash: bool = False) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=allow_dash, path_type=Path)
        self._suffix = suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if self.allow_dash and path == STDOUT:
            return path
        if self._suffix and path.suffix != self._suffix:
            self.fail(f"{path.name}: expected a name that ends in {self._suffix}", param, ctx)
        if not path.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
            problem = "may not be written to" if path.parent.is_dir() else "is not there: make it first"
            self.fail(f"{path}: the folder {path.parent} {problem}", param, ctx)
        return path


def json_option() -> Callable[..., Any]:
    """`--json FILE`; without FILE the figures are printed instead of the text. Passed on as `json_file`."""
    return click.option(
        "--json",
        "json_file",
        type=OutputFile(allow_dash=True),
        is_flag=False,
        flag_value="-",
        metavar="[FILE]",
        help="Write all figures to FILE; without FILE: print them instead of the text.",
    )


def write_json(file: Path | None, result: dict[str, Any]) -> bool:
    """Write or print the figures as asked for; tells whether the text is still to be printed."""
    if file == STDOUT:
        print(json.dumps(result))
        return False
    if file is not None:
        text = json.dumps(result, indent=1) + "\n"
        if file.exists() and not file.is_file():
            file.write_text(text)  # a pipe or a terminal
        else:  # all or nothing, as it may be written again and again
            unfinished = file.with_name(f"{file.name}.unfinished")
            unfinished.write_text(text)
            unfinished.replace(file)
    return True
