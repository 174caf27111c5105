"""Memory of batches: never shared with what the consumer still has, and used again when it has nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from wv_loader import Loader
from wv_loader.buffers import Arenas, Buffers


def fresh() -> np.ndarray:
    return np.zeros((4, 2), dtype=np.uint8)


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[1:2],
        lambda tensor: tensor.permute(1, 0)[0],
        lambda tensor: tensor.view(-1)[3:].numpy(),
        lambda tensor: tensor.untyped_storage(),
    ],
)
def test_memory_is_not_used_again_while_any_view_lives(keep: Callable[[torch.Tensor], object]) -> None:
    buffers = Buffers(fresh, spare=1)
    tensor = torch.from_numpy(buffers.take())
    address = tensor.data_ptr()
    kept = keep(tensor)
    del tensor
    other = torch.from_numpy(buffers.take())
    assert other.data_ptr() != address
    del kept
    assert torch.from_numpy(buffers.take()).data_ptr() == address


def test_memory_that_a_consumer_held_for_a_while_is_given_back() -> None:
    made = []

    def allocate() -> np.ndarray:
        made.append(1)
        return fresh()

    buffers = Buffers(allocate, spare=1)
    held = [buffers.take() for _ in range(10)]
    held.clear()
    for _ in range(20):
        buffers.take()
    assert len(made) == 10
    held = [buffers.take() for _ in range(3)]
    assert len(made) == 11  # one in use and one to spare were kept


def test_memory_of_files_is_not_used_again_while_a_sample_lives_and_what_nobody_uses_is_bounded() -> None:
    arenas = Arenas(keep_bytes=2500)
    first = arenas.take(1000)
    address = first.ctypes.data
    sample = first.data[10:20]
    del first
    assert arenas.take(1000).ctypes.data != address
    del sample
    small, fitting = arenas.take(700), arenas.take(900)  # less than 4/5 of it is another's
    assert len(small) == 700
    assert 900 <= len(fitting) <= 1000
    held = [arenas.take(1000) for _ in range(20)]
    assert len({array.ctypes.data for array in held}) == 20
    del held, small, fitting
    arenas.trim()
    assert sum(len(array) for array in arenas._pool) <= 2500
    assert len(arenas._pool) == 2


def test_a_consumer_that_keeps_its_batches_gets_memory_of_its_own_and_one_that_drops_them_the_same_again(
    small_dataset: Path,
) -> None:
    options = {"batch_size": 8, "size_px": 16, "threads": 2, "prefetch": 2}
    with Loader(small_dataset, **options) as loader:  # type: ignore[arg-type]
        kept = list(loader)
        assert len({batch.images.data_ptr() for batch in kept}) == len(kept) > 10
        sums = [int(batch.images.sum()) for batch in kept]
        loader.set_epoch(0)
        dropped = [(batch.images.data_ptr(), int(batch.images.sum())) for batch in loader]
    assert [total for _, total in dropped] == sums
    assert [int(batch.images.sum()) for batch in kept] == sums  # nobody wrote into them
    if not torch.cuda.is_available():  # whose allocator is torch's
        # Two prefetched, one in hand, one just let go, and two that a decoding thread still has a hand on.
        assert len({address for address, _ in dropped}) <= 6 < len(dropped)
