"""Models by name, and the split into backbone and head."""

import pytest
import torch
from torch import nn

from wv_train.errors import ModelError
from wv_train.models import SMALL_MODELS, check_model, head_parameter_ids, make_model, normalization, parameter_groups

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "size_px"),
    [*((name, 24) for name in SMALL_MODELS), ("resnet18", 32), ("densenet121", 32), ("mobilenetv3_small_050", 32)],
)
def test_models_build_split_and_take_a_step(name: str, size_px: int) -> None:
    torch.manual_seed(0)
    model = make_model(name, 7)
    check_model(model, name, size_px=size_px, classes=7, device=CPU)
    groups = parameter_groups(model, 0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    head = [p for group in groups if group["part"] == "head" for p in group["params"]]
    assert sorted(p.shape for p in head) == sorted([torch.Size([7]), torch.Size([7, head[-1].shape[-1]])])
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    model.train()
    model(torch.randn(2, 3, size_px, size_px)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_unknown_model_suggests_close_ones() -> None:
    with pytest.raises(ModelError, match=r"did you mean.*resnet50"):
        make_model("resnet_50", 3)
    with pytest.raises(ModelError, match="did you mean wv_resnet_16_32_64"):
        make_model("wv_resnet_16_32_65", 3)


def test_a_size_that_the_model_cannot_take_is_refused_in_one_line() -> None:
    name = "vit_tiny_patch16_224"
    with pytest.raises(ModelError, match="does not take images of 32 px") as caught:
        check_model(make_model(name, 3), name, size_px=32, classes=3, device=CPU)
    assert "\n" not in str(caught.value)


def test_head_is_found_by_name_where_there_is_no_get_classifier() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Linear(3, 4))
    model.add_module("classifier", nn.Linear(4, 2))
    assert head_parameter_ids(model) == {id(p) for p in model.classifier.parameters()}
    with pytest.raises(ModelError, match="no head found"):
        head_parameter_ids(nn.Sequential(nn.Linear(2, 2)))


def test_normalization_is_the_model_s_own() -> None:
    assert normalization(make_model("inception_v4", 2))[0] == (0.5, 0.5, 0.5)
    assert normalization(make_model("wv_resnet_16_32_64", 2))[0] == (0.485, 0.456, 0.406)
