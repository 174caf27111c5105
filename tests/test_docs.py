"""What the README says can be typed is typed here, in order, in an empty folder; only the training is shortened."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from mmap import PROT_READ, mmap
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import wv_bench.cli
import wv_ingest.cli
import wv_train.cli
import wv_train.cli_eval
from wv_loader import ENGINES
from wv_shards import Manifest, Overlay

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shortened(line: str) -> str:
    """The same command with less work to do."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["wv-ingest", "sample-data"]:
        words += ["--classes", "6", "--images", "200", "--largest-class", "80", "--smallest-class", "12"]
        words += ["--val-per-class", "5"]
    if "--recipe" in words:
        phases = ("plain",) if "demo-plain" in words else ("base", "gated", "finetune")
        words += [w for phase in phases for w in ("--set", f"phases.{phase}.epochs=1")]
    if words[0] == "wv-bench" and words[1] != "plan":
        words += ["--repeats", "1"]
    if words[:2] == ["wv-bench", "loader"]:
        words += ["--only", "ours, turbo"]
    if words[:2] == ["wv-bench", "ingest"]:
        words += ["--images", "40"]
    return shlex.join(words)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readmes_commands_run_one_after_the_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    our_commands: dict[str, Callable[[Sequence[str]], int]],
) -> None:
    """Raw images become a gated model, its evaluation and report. Python loops: tests/loader/test_snippets.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    ran = set()
    for language, text in BLOCK.findall((REPOSITORY / "README.md").read_text()):
        for command in [] if language == "python" else [shortened(line) for line in text.splitlines() if line.strip()]:
            words = shlex.split(command)
            ran.add(words[0])
            if words[0] in our_commands:
                code = our_commands[words[0]](words)
            else:
                code = subprocess.run(["sh", "-c", command], timeout=240, check=False).returncode
            out, err = capfd.readouterr()
            assert code == 0, f"{command}\n{out}\n{err}"
    assert {*our_commands, "torchrun"} <= ran
    assert_what_they_left(tmp_path / "shards", tmp_path / "runs" / "gated")


def assert_what_they_left(shards: Path, run: Path) -> None:
    """Every file of the run agrees with the shards that it was made from."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    phases = [row["phase"] for row in rows if row["kind"] == "phase" and row["event"] == "end"]
    assert phases == ["base", "gated", "finetune"]
    assert all(np.isfinite(row["loss"]) for row in rows if row["kind"] == "train")
    result = json.loads((run / "eval.json").read_text())
    shown = Manifest.load(shards / "val").samples
    assert result["samples"] == shown > 20
    assert result["top1"] == pytest.approx(sum(c["top1"] * c["samples"] for c in result["per_class"]) / shown)
    manifest = Manifest.load(shards / "train")
    ledger = Overlay.load(run / "ledger", manifest_digest=manifest.digest, kind="ledger").array
    assert ledger["seen"].sum() == max(row["samples"] for row in rows if row["kind"] == "train")
    assert (ledger["seen"] > 0).mean() > 0.9
    assert ((ledger["prediction"] >= -1) & (ledger["prediction"] < 6)).all()
    judged = json.loads((run / "report.json").read_text())["runs"][0]
    assert 0 < judged["base_rate"] < 1
    assert "data:image/jpeg;base64," in (run / "report.html").read_text()
    assert judged["samples"] == len(ledger) == manifest.samples


@pytest.mark.parametrize(
    "page",
    [
        *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md"),
        *("docs/gpu.md", "docs/evaluation.md", "docs/recipes.md", "docs/models.md", "docs/training.md"),
        "docs/overlays.md",
    ],
)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / page).read_text()):
        assert target.startswith("https://") or (REPOSITORY / page).parent.joinpath(target).exists(), target


GPU_PAGE = (REPOSITORY / "docs" / "gpu.md").read_text()
OTHERS_OPTIONS = {"--gpus", "--no-index", "--find-links", "--no-build-isolation", "--no-deps", "--no-binary"}
"""Of docker and pip."""


def commands_of(name: str, command: click.Command) -> dict[str, set[str]]:
    """Options by command: of the command and of all below it, which some groups import only when asked."""
    found = {name: {option for parameter in command.params for option in parameter.opts}}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            one = command.get_command(context, below)
            assert one is not None
            found |= commands_of(f"{name} {below}", one)
    return found


def test_the_commands_and_options_of_the_gpu_page_exist() -> None:
    commands = (
        commands_of("wv-ingest", wv_ingest.cli.main)
        | commands_of("wv-bench", wv_bench.cli.main)
        | commands_of("wv-train", wv_train.cli.command)
        | commands_of("wv-eval", wv_train.cli_eval.command)
    )
    for line in ("".join(found) for found in re.findall(r"^(wv-.*)$|`(wv-[^`]+)`", GPU_PAGE, re.MULTILINE)):
        words = line.split()
        command = " ".join(words[:2]) if words[0] in ("wv-ingest", "wv-bench") else words[0]
        assert {word for word in words if word.startswith("--")} <= commands[command], line
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", GPU_PAGE)) <= OTHERS_OPTIONS.union(*commands.values())
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?:^|`|\$PWD/wheels )make ([a-z-]+)", GPU_PAGE, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    assert set(re.findall(r"--engine ([a-z-]+)", GPU_PAGE)) <= set(ENGINES)


@pytest.mark.usefixtures("dali")
def test_the_loader_of_the_gpu_page_runs_and_dali_knows_its_variables(small_dataset: Path) -> None:
    """On a CPU, from small images."""
    (code,) = (text for language, text in BLOCK.findall(GPU_PAGE) if language == "python")
    for there, here in (("shards/train", str(small_dataset)), ("dali-gpu", "dali-cpu"), ("cuda:0", "cpu")):
        code = code.replace(there, here)
    names: dict[str, Any] = {}
    exec(code, names)
    with names["loader"] as loader:
        assert next(iter(loader)).images.shape == (256, 3, 224, 224)
    folder = Path(import_module("nvidia.dali").__file__ or "").parent
    wanted = {name.encode() + b"\0" for name in re.findall(r"DALI_[A-Z_]+", GPU_PAGE)}
    for library in ("libdali_core.so", "libdali.so", "libdali_operators.so"):
        with (folder / library).open("rb") as file, mmap(file.fileno(), 0, prot=PROT_READ) as content:
            wanted = {name for name in wanted if content.find(name) < 0}
    assert not wanted


def test_every_law_names_a_test_that_exists() -> None:
    rows = re.findall(r"^\| (\d)[^|]*\|(.*)\|$", (REPOSITORY / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert [number for number, _ in rows] == [str(n) for n in range(1, 10)]
    for _, cell in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", cell)
        for path, test in named:
            assert (f"def {test}(" if test else "def test_") in (REPOSITORY / path).read_text(), f"{path}::{test}"
