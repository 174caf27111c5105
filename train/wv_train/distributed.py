"""Who else trains: rank, world size, device, and the few collectives that training needs.

Started by `torchrun` or alone; a world of one opens no process group. gloo on a CPU, nccl on GPUs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wv_loader import missing_gpu, usable_gpus
from wv_train.errors import TrainError


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process's place among the ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 alone prints and writes."""
        return self.rank == 0

    def all_gather(self, rows: Tensor) -> Tensor:
        """(n, …) of each rank → (W, n, …) on every rank, by rank."""
        if self.size == 1:
            return rows.unsqueeze(0)
        joined = rows.new_empty((self.size * rows.shape[0], *rows.shape[1:]))
        dist.all_gather_single(joined, rows.contiguous())
        return joined.view(self.size, *rows.shape)  # (W·n, …) → (W, n, …)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on every rank; in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers (batch norm's running statistics) of rank 0.

        In training mode they are only written, so it is enough to do this before an evaluation.
        """
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error says that another rank is gone: torch raises plain RuntimeErrors for gloo."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "NCCL" in str(error)


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the ranks that `torchrun` started, if it did. `device`: "auto" (GPU if there is one), "cpu" or "cuda".

    Raises TrainError: CUDA was asked for and is not there, or fewer GPUs than ranks.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = 0 if device == "cpu" else usable_gpus()
    use_cuda = device == "cuda" or (device == "auto" and gpus > 0)
    if use_cuda and not gpus:
        raise TrainError(f"--device {device}: {missing_gpu()}, or use --device cpu")
    if use_cuda and local_rank >= gpus:
        raise TrainError(
            f"--device {device}: local rank {local_rank} needs a GPU of its own, found {gpus}; "
            "start fewer ranks or use --device cpu"
        )
    place = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    if size > 1:
        dist.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield World(rank=rank, size=size, device=place)
        if size > 1:
            # A rank that ends right after a collective is sometimes aborted by a thread of gloo that still lets go of
            # its tensors and finds no interpreter. A rank that fails here says so itself.
            with suppress(RuntimeError):
                dist.barrier()
    finally:
        if size > 1:
            dist.destroy_process_group()
