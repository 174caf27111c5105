"""Which checkpoints of a run are on disk: `last`, the best few, and the ledger beside them; written in the background.

    call: save_last, save_best               thread
    ──────────────────────────────────►  ───────────────────────────────────────────────────
    wait for the write before; copy all  last.pt (temporary name, fsync, rename), ledger,
    tensors (the snapshot)               then drop best files that last.pt no longer lists

The training loop stands for the copy alone. One snapshot is in flight at most, and its memory is used again by the
next, so that saving costs the bytes of a checkpoint once, however often it is done.

Which files are best stands in `last.pt` itself, so the two can't disagree: what is newer is dropped when a run resumes,
and what `last.pt` lists stays on disk until a later `last.pt` is whole.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wv_shards import atomic_file
from wv_train.checkpoint import Checkpoint
from wv_train.errors import CheckpointError
from wv_train.ledger import Ledger, rows_of, save_overlay
from wv_train.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class BestFile:
    """A checkpoint that scored well."""

    step: int
    score: float


class CheckpointKeeper:
    """Rank 0's; the other ranks write nothing.

    An error of the thread (no space, no permission) is raised as CheckpointError by the next call; the file that it
    was to replace is then as it was.
    """

    def __init__(self, run: RunDirectory, *, keep_best: int = 1, background: bool = True) -> None:
        """keep_best: how many files `best-<step>.pt` there are; `best.pt` is the best of them."""
        if keep_best < 1:
            raise ValueError(f"keep_best: expected 1 or more, found {keep_best}")
        self._run, self._keep_best = run, keep_best
        self._best: list[BestFile] = []  # best first
        self._listed: list[BestFile] = []  # in last.pt on disk
        self._snapshots = _Snapshots() if background else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wv-keeper") if background else None
        self._writing: Future[None] | None = None

    @property
    def snapshot_bytes(self) -> int:
        """Memory that the copy of a checkpoint takes, from the first save to `close`."""
        return self._snapshots.nbytes if self._snapshots else 0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `last.pt`: its best files stay, what is newer goes."""
        known = checkpoint.trainer.get("best")
        if known is None:
            self._best = self._best_of_format_1(checkpoint)
        else:
            self._best = [BestFile(int(step), float(score)) for step, score in known]
        self._best = [file for file in self._best if self._path(file).exists()]
        self._listed = list(self._best)
        self._arrange()

    def wants(self, score: float) -> bool:
        """Whether `save_best` would keep it: among equals the first stays."""
        return len(self._best) < self._keep_best or score > self._best[-1].score

    def save_last(self, checkpoint: Checkpoint, ledger: Ledger, manifest_digest: str, step: int) -> None:
        """Write `last.pt`, then the ledger's overlay from the same rows. `checkpoint.ledger`: `ledger.state()`."""
        self.wait()
        listed = list(self._best)
        best = [[file.step, file.score] for file in listed]
        whole = self._frozen(replace(checkpoint, trainer={**checkpoint.trainer, "best": best}))
        samples = len(ledger.rows)

        def write() -> None:
            whole.save(self._run.last)
            rows = rows_of(whole.ledger, samples=samples)
            with _as_checkpoint_error(self._run.ledger.with_suffix(".npy")):
                save_overlay(rows, self._run.ledger, manifest_digest, step=step)
                self._listed = listed
                self._arrange()

        self._do(write)

    def save_best(self, checkpoint: Checkpoint, score: float, step: int) -> None:
        """Write `best-<step>.pt` if its score is among the best, and link the best as `best.pt`.

        For evaluation and export: it holds weights, averaged weights and where the run stood; neither optimiser nor
        ledger nor elr's memory, which would be most of its bytes.
        """
        self.wait()
        if not self.wants(score):
            return
        others = [file for file in self._best if file.step != step]
        self._best = sorted([*others, BestFile(step, score)], key=lambda file: (-file.score, file.step))
        self._best = self._best[: self._keep_best]
        per_sample = ("skipping", "targets")
        own = {name: value for name, value in checkpoint.trainer.items() if name not in per_sample}
        light = replace(
            checkpoint,
            optimizer={},
            scaler={},
            ledger=torch.empty(0, dtype=torch.uint8),
            trainer={**own, "best": [], "score": score},
        )
        light = self._frozen(light)
        path = self._path(BestFile(step, score))

        def write() -> None:
            light.save(path)
            with _as_checkpoint_error(path):
                self._arrange()

        self._do(write)

    def check(self) -> None:
        """Raises CheckpointError if the write has failed; costs nothing, for every step."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises CheckpointError if it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Wait, and let go of thread and memory. Raises CheckpointError."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
            if self._snapshots is not None:
                self._snapshots.clear()

    def _frozen(self, checkpoint: Checkpoint) -> Checkpoint:
        return self._snapshots.take(checkpoint) if self._snapshots else checkpoint

    def _do(self, write: Callable[[], None]) -> None:
        if self._thread is None:
            write()
        else:
            self._writing = self._thread.submit(write)

    def _path(self, file: BestFile) -> Path:
        return self._run.best.with_name(f"best-{file.step}.pt")

    def _arrange(self) -> None:
        """`best.pt` is the best one; files that neither `last.pt` on disk nor the next will list go."""
        if self._best:
            _link(self._path(self._best[0]), self._run.best)
        else:
            self._run.best.unlink(missing_ok=True)
        keep = {self._path(file) for file in (*self._best, *self._listed)}
        for path in self._run.best.parent.glob("best-*.pt*"):
            if path not in keep:
                path.unlink(missing_ok=True)

    def _best_of_format_1(self, checkpoint: Checkpoint) -> list[BestFile]:
        """It had `best.pt` alone, which may be newer than `last.pt`."""
        if checkpoint.best_top1 is None or not self._run.best.exists():
            return []
        step = Checkpoint.load(self._run.best).position["step"]
        if step > checkpoint.position["step"]:
            return []
        file = BestFile(step, checkpoint.best_top1)
        _link(self._run.best, self._path(file))
        return [file]


class _Snapshots:
    """Copies of a checkpoint's tensors in memory of the CPU, which the next copy uses again."""

    def __init__(self) -> None:
        self._memory: dict[tuple[object, ...], Tensor] = {}

    @property
    def nbytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._memory.values())

    def take(self, checkpoint: Checkpoint) -> Checkpoint:
        """All of it as it is now; valid until the next call."""
        state = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
        copied: dict[str, Any] = self._copied(state, ())
        if any(tensor.is_pinned() for tensor in self._memory.values()):
            torch.cuda.current_stream().synchronize()  # its copies were only asked for
        return Checkpoint(**copied)

    def clear(self) -> None:
        self._memory.clear()

    def _copied(self, value: Any, where: tuple[object, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._memory_for(value, where).copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {key: self._copied(item, (*where, key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copied(item, (*where, place)) for place, item in enumerate(value))
        return value

    def _memory_for(self, value: Tensor, where: tuple[object, ...]) -> Tensor:
        memory = self._memory.get(where)
        if memory is None or _layout(memory) != _layout(value):
            # Page-locked for a GPU, whose copies then run at the bus's speed.
            memory = torch.empty_like(value, device="cpu", requires_grad=False, pin_memory=value.is_cuda)
            self._memory[where] = memory
        return memory


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()


class _as_checkpoint_error:  # noqa: N801  # reads as the context that it is
    """An OSError within becomes a CheckpointError that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{self._path}: not saved: {error.strerror or error}; what was there before it is still whole"
            ) from error


def _link(source: Path, name: Path) -> None:
    """Make `name` the same file as `source`, or a copy where the file system has no links."""
    if name.exists() and name.samefile(source):
        return
    temporary = name.with_name(name.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with atomic_file(name) as file, source.open("rb") as original:
            shutil.copyfileobj(original, file)
    else:
        os.replace(temporary, name)
