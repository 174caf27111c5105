"""Who else trains: rank, world size, device, and the few collectives that training needs.

Started by `torchrun` or alone; a world of one opens no process group. gloo on a CPU, nccl on GPUs.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wv_loader import missing_gpu, usable_gpus
from wv_train.errors import TrainError

RANK_TIMEOUT_S = 600.0
"""How long ranks wait for one that stands still. A rank that dies is noticed at once, by its closed connections; one
that only waits for slow storage must not end the others. Ranks have as long to meet: they import and start apart."""

_is_rank = False
"""Whether this process has opened a process group."""


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


def lost_rank(error: RuntimeError, at: str = "") -> str:
    """One line about a rank that is gone, from what torch says of it."""
    reason = _first_sentence(error)
    if "timed out" in reason.lower():
        return f"lost another rank{at} ({reason}): it stands still, or it is only slow and needs more --rank-timeout-s"
    return f"lost another rank{at} ({reason}); see that rank's own message, if it left one"


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error says that another rank is gone: torch raises plain RuntimeErrors for gloo."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "NCCL" in str(error)


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].split(". ")[0]


@contextmanager
def open_world(device: str, *, rank_timeout_s: float = RANK_TIMEOUT_S) -> Iterator[World]:
    """Join the ranks that `torchrun` started, if it did. `device`: "auto" (GPU if there is one), "cpu" or "cuda".

    A rank that does not answer in a collective for `rank_timeout_s` is given up. After an error the group stays open:
    closing it would make the other ranks speak before this one has said what happened. The process must end then.

    Raises TrainError: CUDA was asked for and is not there, fewer GPUs than ranks, an environment that torchrun does not
    write, or another rank that is gone.
    """
    global _is_rank  # how this process has to end follows from it
    rank, size, local_rank = _place_among_ranks()
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
    if size == 1:
        yield World(rank=rank, size=size, device=place)
        return
    _is_rank = True
    try:
        timeout = timedelta(seconds=RANK_TIMEOUT_S)
        store = _store_of_this_attempt(size, timeout)
        place_in_store = {"store": store, "rank": rank, "world_size": size} if store else {}
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timeout, **place_in_store)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise TrainError(f"expected {size} ranks to meet at {where}: {_first_sentence(error)}") from error
    dist.set_timeout(timedelta(seconds=rank_timeout_s))
    try:
        yield World(rank=rank, size=size, device=place)
        dist.barrier()  # no rank closes its connections while another waits for something from them
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        raise TrainError(lost_rank(error)) from error
    dist.destroy_process_group()


def _store_of_this_attempt(size: int, timeout: timedelta) -> Any:
    """Where the ranks of one node meet under torchrun; None: where torch has them meet.

    torchrun's agent keeps its store while it starts workers again, and a rank that is quick to start would find the
    addresses of those that died. Agents of several nodes count restarts each for itself, so nothing names theirs.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("LOCAL_WORLD_SIZE") != str(size):
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False, timeout=timeout)  # type: ignore[attr-defined]  # torch marks no export
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}", store)  # type: ignore[attr-defined]  # as above


def _place_among_ranks() -> tuple[int, int, int]:
    """(rank, world size, local rank) from the environment. Raises TrainError where they cannot be."""
    values = []
    for name, otherwise in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "0")):
        text = os.environ.get(name, otherwise)
        if not (text.isascii() and text.isdigit()):
            raise TrainError(f"{name}: expected a whole number, found {text!r}; start ranks with torchrun, or unset it")
        values.append(int(text))
    rank, size, local_rank, _ = values
    if rank >= size:
        raise TrainError(f"RANK: expected less than WORLD_SIZE={size}, found {rank}; start ranks with torchrun")
    if size > 1 and (missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]):
        raise TrainError(f"WORLD_SIZE is {size}, but {missing[0]} is not set; start ranks with torchrun")
    return rank, size, local_rank


def launch_id() -> str | None:
    """What names the launch by torchrun that this process belongs to, on every rank and after every restart alike.

    None without torchrun, and where several nodes were started without an --rdzv-id: nothing tells them from others.
    Not TORCHELASTIC_RESTART_COUNT: a node's agent counts its own workers' deaths only, and a first start is no licence
    to go on with a run that was there before.
    """
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given is None or given != "none":  # torchrun's default, unless --standalone draws one
        return given
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return None
    agent = os.getppid()  # one node: its agent starts all ranks, anew too
    try:
        fields = Path(f"/proc/{agent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return f"{boot}/{agent}/{fields[19]}"  # fields[19]: clock ticks from boot to its start


@contextmanager
def ends_as_rank() -> Iterator[None]:
    """Around a command's entry point: a process that was one of several ranks ends without taking Python down.

    A thread of gloo lets go of a collective's tensors after it has told the loop that it is done. Letting go of one
    that Python knows needs the interpreter's lock, and a thread that asks for it while the interpreter goes down is
    ended by Python inside a destructor that may not be left: std::terminate, and a run that was done and saved fails
    with SIGABRT. The threads live as long as the process group, which DistributedDataParallel holds on to, so closing
    it does not wait for them. Here all is closed and written: what is left is to flush what was said, and to go.
    """
    try:
        yield
        code: object = 0
    except SystemExit as ended:
        if not _is_rank:
            raise
        code = ended.code
    except BaseException:
        if not _is_rank:
            raise
        traceback.print_exc()
        code = 1
    if _is_rank:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed at its other end, or by us
                stream.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
