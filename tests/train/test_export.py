"""Exported files give the model's logits, in timm and in ONNX Runtime, or there is no file."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from wv_loader import Batch
from wv_train import cli_export, export
from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig
from wv_train.job import Job, run_job
from wv_train.models import make_model, normalization
from wv_train.recipe import recipe_from_table

Export = Callable[..., tuple[int, str, str]]


@pytest.fixture
def wv_export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """Run the command as its entry point does: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["wv-export", *(str(argument) for argument in arguments)])
        code = 0
        try:
            cli_export.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def train(
    tmp_path_factory: pytest.TempPathFactory, small_dataset: Path, tiny_table: Callable[..., dict[str, Any]]
) -> Callable[[str, int], Path]:
    """A run of a few steps with a model, made once."""
    runs: dict[str, Path] = {}

    def run(name: str, size_px: int) -> Path:
        if name not in runs:
            short = ("phases.base.epochs=1", "phases.gated.steps=2", "phases.finetune.steps=1", "batch_size=64")
            recipe = recipe_from_table(tiny_table(*short, f"model={name}", f"size_px={size_px}"))
            out = tmp_path_factory.mktemp(name) / "run"
            run_job(Job(recipe=recipe, data=DataConfig(shards=small_dataset), out=out, device="cpu", threads=1))
            runs[name] = out
        return runs[name]

    return run


def _trained(run: Path, name: str) -> tuple[nn.Module, Checkpoint]:
    checkpoint = Checkpoint.load(run / "checkpoints" / "last.pt")
    model = make_model(name, 6).eval()
    model.load_state_dict(checkpoint.model)
    return model, checkpoint


def test_safetensors_of_a_run_load_into_timm_with_equal_logits(
    train: Callable[[str, int], Path], wv_export: Export, tmp_path: Path
) -> None:
    run, file = train("resnet18", 32), tmp_path / "model.safetensors"
    code, out, err = wv_export("--run", run, "--out", file)
    assert code == 0, err
    assert "logits differ from the model's by 0 at most" in out
    model, checkpoint = _trained(run, "resnet18")
    images = torch.randn(5, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    theirs = timm.create_model("resnet18", num_classes=6, checkpoint_path=str(file)).eval()
    with torch.no_grad():
        assert torch.equal(theirs(images), model(images))
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    assert json.loads(facts["classes"]) == checkpoint.classes
    assert (facts["model"], facts["size_px"], facts["num_classes"]) == ("resnet18", "32", "6")
    assert json.loads(facts["mean"]) == list(normalization(model)[0])
    assert facts["manifest_digest"] == checkpoint.manifest_digest
    assert int(facts["step"]) == checkpoint.position["step"]
    assert len(facts["recipe_digest"]) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size_px", "normalize"),
    [("wv_resnet_16_32_64_gn", 16, True), ("resnet18", 32, False)],
)
def test_onnx_runtime_gives_the_models_logits_for_any_batch(
    name: str, size_px: int, normalize: bool, train: Callable[[str, int], Path], wv_export: Export, tmp_path: Path
) -> None:
    run, file = train(name, size_px), tmp_path / "sub" / "model.onnx"
    code, out, err = wv_export("--run", run, "--out", file, *(["--normalize"] if normalize else []))
    assert code == 0, err
    assert err == ""
    model, checkpoint = _trained(run, name)
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (7, 3, size_px, size_px), dtype=torch.uint8, generator=generator)
    nobody = torch.zeros(7, dtype=torch.int64)
    batch = Batch(images=pixels, labels=nobody, ordinals=nobody, valid=nobody == 0, index=0)
    normalized = batch.normalized(*normalization(model))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": (pixels if normalize else normalized.contiguous()).numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(theirs, model(normalized).numpy(), rtol=1e-4, atol=1e-4)
    graph = onnx.load(file)
    facts = {item.key: item.value for item in graph.metadata_props}
    assert json.loads(facts["classes"]) == checkpoint.classes
    assert facts["input"].startswith("uint8" if normalize else "float32")
    assert facts["input"].split()[0] in out
    assert [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        size_px,
        size_px,
    ]
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]


def test_a_file_that_disagrees_is_not_left_behind(
    train: Callable[[str, int], Path], wv_export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is made with other layers than it was trained with: what a changed timm would do."""

    class Other(nn.Module):
        def __init__(self, name: str, classes: int) -> None:
            super().__init__()
            self.model = make_model(name, classes)

        def load_state_dict(self, state: dict[str, Any]) -> None:  # type: ignore[override]
            self.model.load_state_dict(state)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(images) * 1.01
            return logits

    run, file = train("wv_resnet_16_32_64", 16), tmp_path / "model.safetensors"
    monkeypatch.setattr(export, "make_model", Other)
    file.write_text("an earlier export")
    code, _, err = wv_export("--run", run, "--out", file)
    assert code == 1
    assert "not written: its logits are up to" in err
    assert len(err.splitlines()) == 1
    assert file.read_text() == "an earlier export"
    assert len(list(tmp_path.iterdir())) == 1


def test_nan_logits_do_not_pass() -> None:
    assert not export.Difference(largest=float("nan"), largest_logit=1.0).passes
    assert not export.Difference(largest=1.1e-4, largest_logit=0.5).passes
    assert export.Difference(largest=1.1e-4, largest_logit=2.0).passes


def test_averaged_weights_are_taken_where_they_are_and_refused_where_not(
    train: Callable[[str, int], Path], wv_export: Export, tmp_path: Path
) -> None:
    run, file = train("wv_resnet_16_32_64", 16), tmp_path / "model.safetensors"
    code, _, err = wv_export("--run", run, "--out", file, "--weights", "ema")
    assert code == 1
    assert err.endswith("has no moving average of the weights; take --weights model\n")
    state = Checkpoint.load(run / "checkpoints" / "last.pt")
    averaged = {key: value / 2 if value.is_floating_point() else value for key, value in state.model.items()}
    replace(state, ema=averaged).save(tmp_path / "averaged.pt")
    for weights, expected in (("auto", averaged), ("ema", averaged), ("model", state.model)):
        code, out, err = wv_export(
            "--run", run, "--checkpoint", tmp_path / "averaged.pt", "--out", file, "--weights", weights
        )
        assert code == 0, err
        assert torch.equal(load_file(file)["fc.weight"], expected["fc.weight"])
        assert f"{'model' if weights == 'model' else 'ema'} weights of" in out


def test_mistakes_are_one_line(train: Callable[[str, int], Path], wv_export: Export, tmp_path: Path) -> None:
    run = train("wv_resnet_16_32_64", 16)
    file, last = tmp_path / "m.safetensors", run / "checkpoints" / "last.pt"
    cases: list[tuple[int, str, list[object]]] = [
        (2, "expected NAME.safetensors or NAME.onnx", ["--run", run, "--out", tmp_path / "model.pt"]),
        (2, "only a graph can normalise", ["--run", run, "--out", file, "--normalize"]),
        (2, "Missing option '--run'", ["--out", file]),
        (1, "no run.json", ["--run", tmp_path, "--out", file]),
        (1, "no such checkpoint", ["--run", run, "--checkpoint", "best", "--out", file]),
        (1, "not written: ", ["--run", run, "--out", last / "m.safetensors"]),
    ]
    for code, part, arguments in cases:
        result = wv_export(*arguments)
        assert result[0] == code, result
        assert part in result[2]
        assert len(result[2].splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_without_the_packages_of_onnx_what_to_install_is_said(
    train: Callable[[str, int], Path], wv_export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = wv_export("--run", train("wv_resnet_16_32_64", 16), "--out", tmp_path / "m.onnx")
    assert code == 1
    assert "ONNX needs the package onnxruntime" in err
    assert "make setup EXTRAS=dev,onnx" in err
    assert not list(tmp_path.iterdir())
