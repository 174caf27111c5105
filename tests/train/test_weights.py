"""Weights to start from: what fits is taken, a head is replaced where it must be, else refusals are by name."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wv_shards import file_checksum
from wv_train.checkpoint import Checkpoint
from wv_train.data import DataConfig
from wv_train.errors import ModelError
from wv_train.job import Job, run_job
from wv_train.models import make_model
from wv_train.recipe import recipe_from_table
from wv_train.weights import load_weights, read_weights

NAME = "wv_resnet_16_32_64"
PETS = ["cat", "dog", "hen"]


def _model(classes: int = 3, seed: int = 0, name: str = NAME) -> nn.Module:
    torch.manual_seed(seed)
    return make_model(name, classes)


def _same(one: nn.Module, other: nn.Module, *, but: str = "-") -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items() if not key.startswith(but))


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped", "timm"])
def test_every_form_of_file_gives_the_whole_model(form: str, tmp_path: Path) -> None:
    source, model = _model(seed=1), _model(seed=2)
    state: dict[str, Any] = source.state_dict()
    path = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "pth":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({f"_orig_mod.module.{key}": value for key, value in state.items()}, path)
    else:
        torch.save({"epoch": 3, "state_dict": _model(seed=9).state_dict(), "state_dict_ema": state}, path)
    line = load_weights(model, read_weights(path), PETS)
    assert _same(model, source)
    assert line.endswith("its head of 3 classes too")
    assert file_checksum(path) in line
    assert ("(state_dict_ema)" in line) == (form == "timm")


def test_a_head_of_another_number_of_classes_is_replaced_and_said(tmp_path: Path) -> None:
    source, model, fresh = _model(1000, seed=1), _model(5000, seed=2), _model(5000, seed=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    line = load_weights(model, read_weights(tmp_path / "w.safetensors"), [str(i) for i in range(5000)])
    assert line.endswith("head of 1,000 classes replaced by a new one of 5,000")
    assert _same(source, model, but="fc")
    assert torch.equal(model.fc.weight, fresh.fc.weight)


def test_a_head_of_as_many_other_classes_is_replaced(tmp_path: Path) -> None:
    source, model = _model(seed=1), _model(seed=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors", {"classes": json.dumps(["oak", "elm", "ash"])})
    line = load_weights(model, read_weights(tmp_path / "w.safetensors"), PETS)
    assert line.endswith("head of 3 other classes replaced by a new one of 3")
    assert not torch.equal(model.fc.weight, source.fc.weight)
    assert _same(source, model, but="fc")


def test_a_file_without_a_head_starts_the_backbone(tmp_path: Path) -> None:
    source, model = _model(seed=1), _model(seed=2)
    torch.save(
        {key: value for key, value in source.state_dict().items() if not key.startswith("fc")}, tmp_path / "w.pt"
    )
    assert load_weights(model, read_weights(tmp_path / "w.pt"), PETS).endswith("no head in the file: a new one of 3")
    assert _same(source, model, but="fc")


def test_other_differences_are_refused_by_name_with_counts(tmp_path: Path) -> None:
    state, model, before = _model(seed=1).state_dict(), _model(seed=2), _model(seed=2)
    del state["stages.0.conv1.weight"], state["stages.0.conv2.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["stem.0.weight"] = torch.zeros(16, 3, 7, 7)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_weights(model, read_weights(tmp_path / "w.pt"), PETS)
    message = str(caught.value)
    assert "2 missing (stages.0.conv1.weight, stages.0.conv2.weight)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "1 of another shape (stem.0.weight (16, 3, 7, 7) for (16, 3, 3, 3))" in message
    assert "\n" not in message
    assert _same(model, before), "refused weights have changed the model"


def test_files_of_timms_inception_lose_their_auxiliary_classifier_and_need_no_batch_counts(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    whole = timm.create_model("inception_v3", num_classes=1000, aux_logits=True).state_dict()
    state = {key: value for key, value in whole.items() if not key.endswith("num_batches_tracked")}
    assert any(key.startswith("AuxLogits") for key in state)
    torch.save(state, tmp_path / "w.pth")
    model = _model(7, name="inception_v3")
    line = load_weights(model, read_weights(tmp_path / "w.pth"), [str(i) for i in range(7)])
    assert line.endswith("head of 1,000 classes replaced by a new one of 7, its auxiliary classifier left out")
    assert torch.equal(model.Mixed_7c.branch1x1.conv.weight, state["Mixed_7c.branch1x1.conv.weight"])


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("ran", "w"))


def test_a_pickle_that_runs_code_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pth").write_bytes(pickle.dumps({"weight": _Runs()}))
    torch.save({"weight": _Runs()}, "bad2.pth")
    for name in ("bad.pth", "bad2.pth"):
        with pytest.raises(ModelError, match="what would run code is not loaded"):
            read_weights(Path(name))
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", "other"])
def test_what_is_no_weights_is_refused_in_one_line(content: bytes | str, tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        if isinstance(content, str):
            torch.save({"lr": 0.1}, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="expected") as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="No such file"):
        read_weights(tmp_path / "absent.pth")


def test_a_run_records_the_files_digest_and_resumes_without_it(
    small_dataset: Path, tmp_path: Path, tiny_table: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Out of another run's checkpoint; every phase's backbone has a rate of 0 here."""
    data = DataConfig(shards=small_dataset, engine="pillow")
    short = ("phases.base.epochs=1", "phases.gated.steps=2", "phases.finetune.steps=1")
    frozen = tuple(f"phases.{name}.backbone_factor=0" for name in ("base", "gated", "finetune"))

    def train(out: str, *overrides: str, resume: bool = False) -> Checkpoint:
        recipe = recipe_from_table(tiny_table(*short, *overrides))
        run_job(Job(recipe=recipe, data=data, out=tmp_path / out, device="cpu", threads=1, resume=resume))
        return Checkpoint.load(tmp_path / out / "checkpoints" / "last.pt")

    first = train("first")
    file = tmp_path / "first" / "checkpoints" / "last.pt"
    digest, given = file_checksum(file), f"pretrained={file}"
    second = train("second", given, *frozen, "seed=4")
    assert f"weights of {file} (model), xxh3 {digest}: its head of 6 classes too" in capsys.readouterr().err
    assert json.loads((tmp_path / "second" / "run.json").read_text())["pretrained_digest"] == digest
    assert torch.equal(second.model["stem.0.weight"], first.model["stem.0.weight"])
    assert not torch.equal(second.model["fc.weight"], first.model["fc.weight"])

    held = file.read_bytes()
    file.unlink()
    train("second", given, *frozen, "seed=4", resume=True)
    (tmp_path / "second" / "checkpoints" / "last.pt").unlink()  # as if it had been killed before its first
    torch.save(_model(6, seed=7).state_dict(), file)
    with pytest.raises(ModelError, match=f"began with weights of digest {digest}, the file's is now"):
        train("second", given, *frozen, "seed=4", resume=True)
    file.write_bytes(held)
    again = train("second", given, *frozen, "seed=4", resume=True)
    assert torch.equal(again.model["fc.weight"], second.model["fc.weight"])
    file.unlink()
    with pytest.raises(ModelError, match="No such file"):
        train("third", given)
    assert not (tmp_path / "third").exists()
    replace(first, classes=[f"other {i}" for i in range(6)]).save(file)
    train("fourth", given)
    assert "head of 6 other classes replaced by a new one of 6" in capsys.readouterr().err
