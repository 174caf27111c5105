"""A newly drawn head for a model whose backbone goes on: for other classes, or to learn the same ones anew."""

import torch
from torch import nn

from wv_shards import combine
from wv_train.errors import ModelError
from wv_train.models import head_names, make_model

_SALT = 0x68656164  # "head"


def draw_head(model: nn.Module, name: str, outputs: int, *, seed: int, phase_index: int) -> None:
    """Put a new head of `outputs` classes in the place of the model's, as `make_model(name, outputs)` draws it.

    From (seed, phase) alone, so alike on all ranks and after a resume; torch's generator is left as it was. The rest of
    the model is not touched, and its parameters stay the same objects.

    Raises ModelError where another number of classes changes more of the model than its head.
    """
    place = next(iter(model.parameters())).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(combine(seed, phase_index, _SALT)) >> 1)
        fresh = make_model(name, outputs)
    for head in head_names(fresh):
        model.set_submodule(head, fresh.get_submodule(head).to(place).to(memory_format=torch.channels_last))
    if hasattr(model, "num_classes"):
        model.num_classes = outputs  # type: ignore[assignment]  # a number, as timm keeps it
    model.train(model.training)
    made, expected = model.state_dict(), fresh.state_dict()
    for key in expected:
        if key not in made or made[key].shape != expected[key].shape:
            raise ModelError(
                f"model {name}: a new head of {outputs:,} outputs changes {key} too, which is not its head"
            )
