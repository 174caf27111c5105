"""Models by name, and the split into backbone and head."""

import pytest
import torch
from torch import nn

from wv_train.errors import ModelError
from wv_train.models import (
    SMALL_MODELS,
    check_model,
    features,
    freeze_backbone,
    head_names,
    head_parameter_ids,
    make_model,
    normalization,
    own_size_px,
    parameter_groups,
)

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


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("wv_resnet_16_32_64", ("fc",)),
        ("resnet18", ("fc",)),
        ("inception_resnet_v2", ("classif",)),
        ("convnext_atto", ("head.fc",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
    ],
)
def test_heads_go_by_the_name_that_timm_gives_them(name: str, heads: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = make_model(name, 7)
    assert head_names(model) == heads
    head = {id(p) for module in heads for p in model.get_submodule(module).parameters()}
    assert head_parameter_ids(model) == head


def test_own_sizes_and_normalisation_are_the_models() -> None:
    assert [own_size_px(name) for name in ("inception_v3", "resnet50", "resnet50.tv_in1k")] == [299, 224, 224]
    assert own_size_px("wv_resnet_16_32_64_gn") == 32
    with torch.device("meta"):
        assert normalization(make_model("inception_v3", 2)) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(ModelError, match=r"did you mean.*inception_v3"):
        own_size_px("inception_v33")
    with pytest.raises(ModelError, match=r"no such weights of it; it knows .*resnet50\.tv_in1k"):
        make_model("resnet50.tv_in2k", 2)


def test_cifars_resnet_34_sees_small_images_at_full_size() -> None:
    with torch.device("meta"):
        model = make_model("wv_resnet34_cifar", 10)
        assert features(model, torch.zeros(2, 3, 32, 32)).shape == (2, 512)
        assert model.forward_features(torch.zeros(2, 3, 32, 32)).shape[2:] == (4, 4)  # timm's own would see 1 × 1
    assert own_size_px("wv_resnet34_cifar") == 32
    assert sum(p.numel() for p in model.parameters()) == 21_282_122  # of the CIFAR form, with 10 classes


def test_inception_v3_is_made_without_its_auxiliary_classifier() -> None:
    with torch.device("meta"):
        model = make_model("inception_v3", 3)
    assert not [name for name, _ in model.named_modules() if name.lower().startswith("aux")]


@pytest.mark.parametrize("name", ["wv_resnet_16_32_64_gn", "resnet18", "densenet121", "vit_tiny_patch16_224"])
def test_features_are_what_the_head_sees(name: str) -> None:
    torch.manual_seed(0)
    model = make_model(name, 5).eval()
    images = torch.randn(2, 3, own_size_px(name), own_size_px(name))
    (head,) = (model.get_submodule(head) for head in head_names(model))
    with torch.no_grad():
        torch.testing.assert_close(head(features(model, images)), model(images))


@pytest.mark.parametrize("name", ["wv_resnet_16_32_64", "resnet18"])
def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics_until_it_learns_again(name: str) -> None:
    torch.manual_seed(0)
    model = make_model(name, 5).train()
    modes = [module.training for module in model.modules()]
    fixed = next(p for p in model.parameters() if p.ndim == 1)
    fixed.requires_grad_(False)  # as it was made, such as a fixed position embedding
    images, head = torch.randn(3, 3, 32, 32), head_parameter_ids(model)

    def learn(frozen_layers: list[nn.Module]) -> tuple[set[int], bool]:
        """Parameters with a gradient, and whether running statistics moved."""
        before = [buffer.clone() for buffer in model.buffers()]
        model.zero_grad(set_to_none=True)
        model.train()
        for layer in frozen_layers:
            layer.eval()
        model(images).sum().backward()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
        return {id(p) for p in model.parameters() if p.grad is not None}, moved

    for _ in range(2):
        layers = freeze_backbone(model, True)
        assert len(layers) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert not any(layer.training for layer in layers)
        assert learn(layers) == (head, False)
    for _ in range(2):
        assert freeze_backbone(model, False) == []
        assert [module.training for module in model.modules()] == modes
    assert learn([]) == ({id(p) for p in model.parameters()} - {id(fixed)}, True)
