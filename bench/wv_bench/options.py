"""Options that benchmarks share: files to be written, refused before anything is measured; `--json`; devices; lists."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from wv_loader import missing_gpu, usable_gpus

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device of torch's by its name, without torch: those that only start others do without its seconds."""

    type: str
    index: int | None = None
    """Of a GPU; a CPU has none."""

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


class DeviceType(click.ParamType[Any]):
    """`cpu`, `cuda` or `cuda:K`: a device that is there; `cuda` is `cuda:0`."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Device):
            return value
        name, _, number = str(value).partition(":")
        if str(value) == "cpu":
            return Device(type="cpu")
        if name != "cuda" or (":" in value and not number.isdecimal()):
            self.fail(f"{value}: expected cpu, cuda or cuda:K", param, ctx)
        count = usable_gpus()
        if not count:
            self.fail(f"{value}: {missing_gpu()}", param, ctx)
        if int(number or 0) >= count:  # torch.device takes 256 for 0
            self.fail(f"{value}: {count} CUDA devices are here, counted from 0", param, ctx)
        return Device(type="cuda", index=int(number or 0))


def device_option(default: str = "cpu") -> Callable[..., Any]:
    """`--device`, a Device."""
    return click.option(
        "--device", type=DeviceType(), default=default, show_default=True, help="Where batches go: cpu, cuda or cuda:K."
    )


class Several(click.ParamType[Any]):
    """Values with commas between them, each of another type: a tuple, every value once."""

    def __init__(self, of: click.ParamType[Any]) -> None:
        self._of = of
        self.name = f"{of.name}s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(self._of.convert(part.strip(), param, ctx) for part in str(value).split(",")))


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
