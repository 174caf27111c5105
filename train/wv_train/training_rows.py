"""The rows of metrics that a training writes: where it stands, what its last steps came to, what it waits for.

The trainer decides when; the numbers are `totals`', `meter`'s and the loader's; `progress` puts them where they go.
"""

import math

import torch

from wv_loader import LoaderStats
from wv_train.checkpoint import Position
from wv_train.distributed import World
from wv_train.meter import Meter
from wv_train.optim import learning_rate
from wv_train.phase_plan import PhasePlan
from wv_train.progress import RunLog
from wv_train.recipe import Phase
from wv_train.totals import train_row

_FEW = 0.1
"""A gate that keeps less is more likely to collapse (it learns from little, so it believes little) than to choose."""


class TrainingRows:
    """Of one run; on ranks without a log it gathers what the others need and writes nothing."""

    def __init__(self, log: RunLog | None, world: World, bands: list[int | None]) -> None:
        """`bands`: those that there are, in the order in which steps count them."""
        self._log, self._world, self._bands = log, world, bands
        self._position, self._phase = Position(), ""

    def at(self, position: Position, phase: Phase) -> None:
        """Whose place the rows that follow bear: the position as it is then, in this phase."""
        self._position, self._phase = position, phase.name

    def event(self, event: str, **more: str) -> None:
        """A phase starts or ends."""
        self._write({"kind": "phase", "step": self._position.step, "phase": self._phase, "event": event, **more})

    def warn(self, text: str) -> None:
        """Also said to a person, by the log."""
        self._write({"kind": "warning", "step": self._position.step, "phase": self._phase, "text": text})

    def row(self, kind: str, **numbers: object) -> None:
        """With its place."""
        place = {"step": self._position.step, "phase": self._phase, "epoch": self._position.epoch}
        self._write({"kind": kind, **place, **numbers})

    def steps(self, plan: PhasePlan, meter: Meter, waited_s: float, grad_norm_sum: float | None) -> None:
        """The steps since the last such row, of which there are some.

        grad_norm_sum: of those that moved; None: not asked for.
        """
        totals, phase = meter.totals, plan.phase
        step = self._position.phase_step - 1
        rate = learning_rate(phase, step, plan.steps)
        row: dict[str, object] = {
            **train_row(totals, self._bands),
            **({} if phase.labels is None else {"labels": phase.labels}),
            "threshold": phase.gate.over(plan.steps).threshold(step) if phase.gate else 0.0,
            "lr_backbone": rate * phase.backbone_factor,
            "lr_head": rate * phase.head_factor,
            **meter.speed(waited_s),
            "samples": self._position.samples,
        }
        moved = totals.steps - totals.zero_steps - totals.nonfinite_steps
        if grad_norm_sum is not None and moved and math.isfinite(grad_norm_sum):
            row["grad_norm"] = grad_norm_sum / moved
        self.row("train", **row)
        if phase.gate and totals.kept < max(_FEW, phase.gate.min_kept_fraction) * totals.samples:
            self.warn(
                f"the gate keeps {totals.kept:,} of {totals.samples:,} samples; lower phases.{phase.name}.gate.start, "
                'or gate a share of each batch (gate.unit = "share")'
            )

    def loading(self, epoch: int, here: LoaderStats) -> None:
        """Which stage was slow in the rest of an epoch that was just trained, over all ranks; all of them ask."""
        if not here.batches:  # resumed at the epoch's end
            return
        row = torch.tensor([here.as_row()], dtype=torch.float64, device=self._world.device)
        rows = self._world.all_gather(row).flatten(0, 1).tolist()  # (W, 1, F) → (W, F)
        whole = LoaderStats.from_rows(rows)
        self.row("loader", **{"epoch": epoch, **whole.as_dict()})
        if self._log:
            line = f"phase {self._phase}, epoch {epoch}: {whole}"
            if self._world.size > 1:  # all wait for the slowest, whose loader alone may be slow
                ranks = [LoaderStats.from_rows([row]) for row in rows]
                worst = max(range(len(ranks)), key=lambda rank: ranks[rank].wait_fraction)
                line += f"; rank {worst} waited most: {ranks[worst].wait_fraction:.1%}, {ranks[worst].verdict}"
            self._log.screen.say(line)

    def _write(self, row: dict[str, object]) -> None:
        if self._log:
            self._log.row(row)
