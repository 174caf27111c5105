"""What keeps ranks from their devices, told before any of them begins."""

import pytest
import torch

from wv_train.distributed import open_world
from wv_train.errors import TrainError


def test_a_gpu_that_cannot_be_used_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is too old still has its GPUs counted."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainError, match=r"^--device cuda: [^\n]+\), or use --device cpu$"), open_world("cuda"):
        pass


def test_more_ranks_than_gpus_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(TrainError, match="local rank 1 needs a GPU of its own, found 1"), open_world("cuda"):
        pass
