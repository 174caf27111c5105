"""An epoch that leaves samples out is the epoch that it would have been, without them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wv_loader import Loader, LoaderError, OptionError, StateMismatchError

Make = Callable[..., Loader]


@pytest.fixture
def make(small_dataset: Path) -> Make:
    options: dict[str, Any] = {"batch_size": 24, "size_px": 8, "seed": 3, "threads": 1, "streams": 8, "balance": 0.3}
    return lambda **changed: Loader(small_dataset, **{**options, **changed})


@pytest.fixture
def mask(make: Make) -> NDArray[np.bool_]:
    """A third of the samples."""
    return np.arange(make().num_samples) % 3 == 1


def line_of(loader: Loader) -> NDArray[np.int64]:
    """(batches, slots) ordinals of the current epoch, from the position on."""
    return np.stack([batch.ordinals.numpy() for batch in loader])


def counts_of(ordinals: NDArray[np.int64], samples: int) -> NDArray[np.int64]:
    return np.bincount(ordinals[ordinals >= 0].ravel(), minlength=samples)


def test_the_others_are_shown_as_often_as_they_would_have_been_and_later_epochs_are_what_they_were(
    make: Make, mask: NDArray[np.bool_]
) -> None:
    plain, loader = make(), make()
    shows = []
    for epoch in range(3):
        plain.set_epoch(epoch)
        loader.set_epoch(epoch, skip=mask if epoch == 1 else None)
        wanted = counts_of(line_of(plain), len(mask))
        left_out, shown = loader.left_out(), loader.epoch_samples
        line = line_of(loader)
        found = counts_of(line, len(mask))
        shows.append(found)
        assert (found + counts_of(left_out, len(mask)) == wanted).all()
        assert found.sum() == shown
        assert not found[mask].any() if epoch == 1 else (found == wanted).all()
    assert shows[1].max() > 1  # a class that is shown several times in an epoch


def test_ranks_joined_are_the_same_line_and_a_mask_holds_for_its_epoch(make: Make, mask: NDArray[np.bool_]) -> None:
    def lines(world_size: int) -> list[NDArray[np.int64]]:
        loaders = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
        for loader in loaders:
            loader.set_epoch(2, skip=mask)
        return [np.concatenate([line_of(loader) for loader in loaders], axis=1) for _ in range(2)]

    one = lines(1)
    assert not mask[one[0][one[0] >= 0]].any()
    assert mask[one[1][one[1] >= 0]].any()  # the next epoch is whole
    assert all((a == b).all() for a, b in zip(one, lines(2), strict=True))


def test_a_state_goes_on_with_its_mask_alone(make: Make, mask: NDArray[np.bool_]) -> None:
    loader = make()
    loader.set_epoch(1, skip=mask)
    whole = line_of(loader)
    loader.set_epoch(1, skip=mask)
    for batch in loader:
        if batch.index == 2:
            break
    state = loader.state_dict()
    resumed = [make(rank=rank, world_size=2) for rank in range(2)]
    for one in resumed:
        one.load_state_dict(state, skip=mask.copy())
        one.set_epoch(1, skip=mask)
    assert (np.concatenate([line_of(one) for one in resumed], axis=1) == whole[3:]).all()
    for wrong in (None, ~mask):
        with pytest.raises(StateMismatchError, match="another plan: skip was "):
            make().load_state_dict(state, skip=wrong)
    other = make()
    other.load_state_dict(state, skip=mask)
    with pytest.raises(StateMismatchError, match=r"set_epoch\(1\): expected the skip that load_state_dict was given"):
        other.set_epoch(1)
    other.set_epoch(2)  # another epoch begins with what it is given
    assert "skip" not in other.state_dict()["plan"]


def test_a_mask_that_leaves_nothing_out_is_none_and_what_is_no_mask_is_refused(
    make: Make, mask: NDArray[np.bool_]
) -> None:
    loader = make()
    before = loader.state_dict()
    loader.set_epoch(0, skip=np.zeros(len(mask), dtype=np.bool_))
    assert loader.state_dict() == before
    assert not len(loader.left_out())
    for wrong in (mask[1:], mask.astype(np.uint8)):
        with pytest.raises(OptionError, match="skip: expected with train=True an array of bool"):
            loader.set_epoch(0, skip=wrong)
    with pytest.raises(LoaderError, match="got 'one with train=False'"):
        make(train=False, balance=1.0).set_epoch(0, skip=mask)
