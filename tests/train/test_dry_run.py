"""`--dry-run`: what it says is what a run would do, it needs no more than it says, and it writes nothing."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from wv_loader import Loader
from wv_train import cli
from wv_train.dry_run_picture import curves_of, gate_top, rate_range, svg_picture, terminal_picture
from wv_train.gate import GateConfig
from wv_train.memory_estimate import activation_bytes, model_bytes, saved_bytes
from wv_train.models import make_model
from wv_train.optim import learning_rate
from wv_train.recipe import Phase, load_recipe, recipe_names

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def dry_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `wv-train --dry-run` prints."""

    def run(*arguments: object) -> str:
        words = ["wv-train", *(str(argument) for argument in arguments), "--dry-run", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setenv("COLUMNS", "100")
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert code in (0, None), err
        return out

    return run


def test_it_says_parameters_lengths_classes_and_memory(
    dry_run: Callable[..., str], write_recipe: Callable[..., Path], small_dataset: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "tiny.toml", "ema_decay=0.9")
    before = sorted(tmp_path.rglob("*"))
    out = dry_run("--shards", small_dataset, "--recipe", recipe)
    assert sorted(tmp_path.rglob("*")) == before
    lines = out.splitlines()
    assert "parameters: 77,680 in the backbone, 390 in the head" in lines
    rows = {line.split("  ")[0]: re.split(r"\s{2,}", line) for line in lines}
    with Loader(small_dataset, batch_size=16, size_px=16, balance=0.5, max_repeat=16.0) as loader:
        exposure = loader.expected_exposure()
    spread = [f"{value:,.0f}" for value in (exposure.min(), np.median(exposure), exposure.max())]
    assert rows["as collected"][1:] == ["239", "3", "24", "120"]  # 120 61 30 17 8 3
    assert rows["base"][1:3] == ["15", "1.0"]
    assert rows["base"][4:8] == [f"{exposure.sum():,.0f}", *spread]
    assert rows["gated"][1:3] == ["12", "0.8"]
    assert rows["in all"][1] == "33"
    assert "a rank has 16 of a batch's 16 samples and 16 of 16 streams; it may become 1, 2, 4, 8, 16" in out
    size = load_recipe(str(recipe))
    expected = model_bytes(make_model(size.model, 6), size, rank_batch=16, world_size=1, dtype=None)
    assert f"weights {expected.weights / 1e3:,.1f} kB" in out
    assert f"average {expected.average / 1e3:,.1f} kB" in out
    assert "ledger " in out
    assert "checkpoint: " in out
    assert "nothing was written" in lines[-1]


def test_the_picture_is_written_where_asked_and_nothing_else(
    dry_run: Callable[..., str], write_recipe: Callable[..., Path], small_dataset: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "tiny.toml")
    out = dry_run("--shards", small_dataset, "--recipe", recipe, "--picture", tmp_path / "plan.svg")
    assert f"nothing but {tmp_path / 'plan.svg'} was written" in out
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.toml", "plan.svg"}
    texts = [element.text for element in ET.parse(tmp_path / "plan.svg").iter() if element.tag.endswith("text")]
    assert {"base", "gated", "finetune", "33"} <= set(texts)


LIGHTER = {
    "mini-webvision": ("model=wv_resnet_16_32_64_gn", "size_px=64"),
    "webvision1-resnet50": ("size_px=64",),
    "webvision2-sun2018": ("model=resnet18", "size_px=64"),
}
"""Large networks at full size are for the machine that trains them."""


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_can_be_planned(
    name: str, dry_run: Callable[..., str], small_dataset: Path, tmp_path: Path, save_overlays: Callable[..., Any]
) -> None:
    save_overlays(small_dataset, tmp_path)
    changes = [word for change in LIGHTER.get(name, ()) for word in ("--set", change)]
    out = dry_run("--shards", small_dataset, "--recipe", name, "--overlays", tmp_path, *changes)
    for phase in load_recipe(name).phases:
        assert re.search(rf"^{phase.name}\b.*", out, re.MULTILINE)
        assert (f"phase {phase.name}: at most" in out) == (phase.until is not None)


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_says_machine_and_command(name: str, shipped: Callable[[str], str]) -> None:
    header = shipped(name).partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert "# Machine: " in header
    assert re.search(rf"# Command: [^\n]*(\n#  [^\n]*)*--recipe {name} --out", header)


def test_activations_grow_in_proportion_to_the_images() -> None:
    model = make_model("wv_resnet_16_32_64", 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for images in (2, 5, 64):
        counted = saved_bytes(model, torch.zeros(images, 3, 32, 32))
        assert activation_bytes(model, size_px=32, images=images) == pytest.approx(counted, rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_what_is_saved_is_counted_once_and_without_parameters() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4))
    assert saved_bytes(layers, torch.zeros(8, 3, 2, 2)) == 8 * 5 * 4  # the ReLU's output; the next layer's input too


RSS = """
import sys, torch
from pathlib import Path
from typing import Any
from wv_train.memory_estimate import activation_bytes
from wv_train.models import make_model
def held(field):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024
torch.set_num_threads(1)
model = make_model("wv_resnet_32_64_128_gn", 10).to(memory_format=torch.channels_last)  # as the trainer has it
model(torch.rand(2, 3, 64, 64)).sum().backward()
estimate = activation_bytes(model, size_px=64, images=96)
images = torch.rand(96, 3, 64, 64).to(memory_format=torch.channels_last)
before = held("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
logits = model(images)
after = held("VmRSS")
logits.sum().backward()
print((after - before) / estimate, (held("VmHWM") - before) / estimate)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_the_estimate_is_close_to_what_a_process_grows_by() -> None:
    done = subprocess.run([sys.executable, "-c", RSS], capture_output=True, text=True, timeout=120, check=True)
    forward, peak = map(float, done.stdout.split())
    assert 0.9 < forward < 1.15
    assert 0.9 < peak < 1.6


PHASES = [
    (Phase(name="base", until="plateau", max_steps=900, lr=0.4, warmup_steps=100), 900),
    (
        Phase(
            name="gated",
            steps=500,
            lr=0.4,
            schedule="step",
            milestones=(0.5,),
            gate=GateConfig(start=0.3, schedule="cosine"),
        ),
        500,
    ),
    (Phase(name="finetune", steps=10, lr=4e-4, backbone_factor=0.0), 10),
]


def test_the_curves_are_the_trainers_own() -> None:
    base, gated, finetune = curves_of(PHASES)
    for one in (base, gated, finetune):
        places = (one.at - one.left) / (one.right - one.left) * (one.steps - 1)
        for place, head in zip(places, one.head, strict=True):
            step = round(place)
            assert place == pytest.approx(step)
            assert head == learning_rate(one.phase, step, one.steps)
    gate = PHASES[1][0].gate
    assert gate is not None
    assert gated.threshold is not None
    assert gated.threshold[0] == gate.over(500).threshold(0)
    assert gated.threshold[-1] == gate.over(500).threshold(499)
    assert base.threshold is None
    assert (finetune.backbone == 0).all()
    assert finetune.right - finetune.left > 0.1  # 10 of 1,410 steps can be seen
    assert [one.right for one in (base, gated)] == [one.left for one in (gated, finetune)]
    assert rate_range([base, gated, finetune]) == (-4, 0)
    assert gate_top([base, gated, finetune]) == 0.3


def test_both_pictures_mark_phases_gate_and_what_may_be_shorter() -> None:
    curves = curves_of(PHASES)
    text = "\n".join(line.plain for line in terminal_picture(curves, width=90))
    assert max(map(len, text.splitlines())) <= 90
    for words in ("base (≤)", "gated", "finetune", "900", "1,400", "1,410", "gate", "0.3"):
        assert words in text
    assert sum("\u2801" <= letter <= "\u28ff" for letter in text) > 100
    svg = svg_picture(curves, title="a < b & c")
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"a < b & c", "at most 900 steps", "500 steps", "1,410"} <= set(texts)
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 2 + 2 + 1 + 1  # head and backbone, a frozen one without; the gate
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_without_a_gate_there_is_one_panel() -> None:
    curves = curves_of([(Phase(name="plain", steps=1, lr=0.1), 1)])
    assert gate_top(curves) == 0
    assert not any("gate" in line.plain for line in terminal_picture(curves))
    ET.fromstring(svg_picture(curves, title="plain"))


@pytest.mark.slow
def test_a_million_samples_in_5000_classes_can_be_planned(
    dry_run: Callable[..., str], small_dataset: Path, tmp_path: Path
) -> None:
    """16 million, by the same code, take 14 s of processor time: LOG.md."""
    made = import_module("wv_bench.first_batch").make_set(small_dataset, tmp_path, 1_000_000, 5000)
    try:
        out = dry_run("--shards", tmp_path, "--recipe", "webvision2-sun2018", "--set", "size_px=64")
    finally:
        for path in tmp_path.iterdir():
            path.unlink()
    assert f"{made.samples:,} samples in 5,000 classes" in out
    assert "in all        ≤410,000" in out
    assert "10,245,000 in the head" in out
