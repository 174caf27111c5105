"""What the README says can be typed is typed here, in order, in an empty folder; only the training is shortened."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shortened(line: str) -> str:
    """The same command with less work to do."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["wv-ingest", "sample-data"]:
        words += ["--classes", "6", "--images", "300", "--largest-class", "120", "--smallest-class", "12"]
    if "--recipe" in words:
        words += [w for phase in ("base", "gated", "finetune") for w in ("--set", f"phases.{phase}.epochs=1")]
    if words[0] == "wv-bench" and words[1] != "plan":
        words += ["--repeats", "1"]
    if words[:2] == ["wv-bench", "loader"]:
        words += ["--only", "ours"]
    return shlex.join(words)


@pytest.mark.slow
def test_the_readmes_commands_run_one_after_the_other(tmp_path: Path) -> None:
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text())
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ran = []
    for language, text in blocks:
        if "import lightning" in text and find_spec("lightning") is None:
            continue  # tests/loader/test_snippets.py says so
        commands = [text] if language == "python" else [shortened(line) for line in text.splitlines() if line.strip()]
        for command in commands:
            words = [sys.executable, "-c", command] if language == "python" else ["sh", "-c", command]
            done = subprocess.run(
                words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            ran.append(command.split()[0])
    assert {"wv-ingest", "wv-train", "wv-eval", "wv-report", "wv-bench", "torchrun", "from"} <= set(ran)


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"])
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / page).read_text()):
        assert target.startswith("https://") or (REPOSITORY / target).exists(), target


def test_every_law_names_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (\d)[^|]*\|(.*)\|$", (REPOSITORY / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [str(n) for n in range(1, 10)]
    for _, cell in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", cell)
        for path, test in named:
            assert (f"def {test}(" if test else "def test_") in (REPOSITORY / path).read_text(), f"{path}::{test}"
