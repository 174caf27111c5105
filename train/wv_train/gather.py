"""Rows of all ranks, joined, where ranks have different numbers of them."""

import torch
from torch import Tensor

from wv_train.distributed import World


def gather_rows(world: World, rows: Tensor) -> Tensor:
    """(n_r, …) of each rank → (Σ n_r, …), by rank, on the CPU of every rank. Two collectives."""
    if world.size == 1:
        return rows.cpu()
    sizes = world.all_gather(torch.tensor([len(rows)], device=world.device)).flatten().tolist()  # (W, 1) → (W,)
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    joined = world.all_gather(padded.to(world.device)).cpu()  # (W, max n_r, …)
    return torch.cat([joined[rank, :size] for rank, size in enumerate(sizes)])
