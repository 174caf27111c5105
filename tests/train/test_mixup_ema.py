"""Mixup's partners, and the average of the weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wv_train.ema import WeightAverage
from wv_train.mixup import Mix
from wv_train.models import make_model

streams = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30)


@given(streams, st.integers(0, 1 << 30))
def test_partners_are_a_permutation_within_what_is_active_of_each_stream(
    slots: list[tuple[int, bool]], distance: int
) -> None:
    slots = sorted(slots, key=lambda slot: slot[0])
    of, active = torch.tensor([slot[0] for slot in slots]), torch.tensor([slot[1] for slot in slots])
    partners = Mix(share=0.3, distance=distance).partners(of, active)
    assert sorted(partners.tolist()) == list(range(len(slots)))
    assert torch.equal(of[partners], of)
    assert torch.equal(active[partners], active)
    for place, partner in enumerate(partners.tolist()):
        alone = not active[place] or int((active & (of == of[place])).sum()) == 1
        assert (partner == place) == alone


def test_a_draw_follows_from_seed_and_step_alone() -> None:
    assert Mix.draw(0.5, seed=1, step=7) == Mix.draw(0.5, seed=1, step=7)
    draws = [Mix.draw(0.5, seed=1, step=step) for step in range(400)]
    shares = torch.tensor([draw.share for draw in draws])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.06)
    assert shares.var().item() == pytest.approx(0.125, abs=0.03)  # Beta(½, ½)
    assert len({draw.distance for draw in draws}) > 390


def test_blending_is_linear_and_keeps_the_share_of_its_own() -> None:
    images = torch.rand(4, 3, 2, 2)
    mix = Mix(share=0.75, distance=0)
    partners = mix.partners(torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(mix.blend(images, partners), 0.75 * images + 0.25 * images[partners])


def test_the_average_follows_the_weights_by_its_decay_and_forgets_the_first_soon() -> None:
    model = make_model("wv_resnet_16_32_64", 3)
    average = WeightAverage(model, 0.99)
    expected = model.fc.bias.detach().clone()  # type: ignore[union-attr]
    for step in range(1, 30):
        with torch.no_grad():
            model.fc.bias.add_(1.0)  # type: ignore[union-attr, operator]
            model.stem[1].num_batches_tracked.add_(2)  # type: ignore[index, union-attr]
        average.update(model)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.fc.bias.detach()  # type: ignore[union-attr]
    torch.testing.assert_close(average.model.fc.bias, expected)  # type: ignore[union-attr]
    assert average.model.stem[1].num_batches_tracked == 58  # type: ignore[index, union-attr]
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert not average.model.training
