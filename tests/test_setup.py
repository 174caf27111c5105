"""`make setup` installs again exactly when there is a reason to. Nothing is installed here: python is a note-taker."""

import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_OF_MAKE = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "EXTRAS"}


def test_other_extras_are_installed_and_the_same_ones_are_not_installed_again(tmp_path: Path) -> None:
    venv, log = tmp_path / "venv", tmp_path / "log"
    python = venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >>{log}\n')
    python.chmod(0o755)

    def installed(*extras: str) -> list[str]:
        log.write_text("")
        words = ["make", "-s", f"{venv}/.ready", f"VENV={venv}", f"PYTHON={python}", *extras]
        # A make that runs the tests hands its own variables on.
        environment = {name: text for name, text in os.environ.items() if name not in _OF_MAKE}
        subprocess.run(words, cwd=REPOSITORY, env=environment, check=True, timeout=60)
        return [line.split()[-1] for line in log.read_text().splitlines() if " -e " in line]

    assert installed() == [".[dev]"]
    assert installed() == []
    assert installed("EXTRAS=dev,dali") == [".[dev,dali]"]
    assert installed("EXTRAS=dev,dali") == []
    assert installed() == [], "the extras of the last time stay"
    assert installed("EXTRAS=dev") == [".[dev]"]
