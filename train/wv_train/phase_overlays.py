"""What overlays give a phase: who is left out, other labels, weights in the loss, soft labels.

Overlays are read as a phase begins and kept while it lasts: arrays with a row per sample, looked up by ordinal on the
host. Making them is `annotate`'s business.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wv_loader import Batch
from wv_shards import Manifest, Overlay, ShardsError
from wv_train.curriculum import TIERS, CurriculumConfig
from wv_train.errors import TrainError
from wv_train.recipe import Phase
from wv_train.teacher import SoftTargets, TeacherConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseOverlays:
    """Of one phase; without any overlay it changes nothing."""

    outputs: int
    """Of the model's head: classes, or clusters."""
    labels: NDArray[np.int32] | None = None
    """(N,) what is learned in place of the classes, −1: nothing, the sample is left out."""
    curriculum: CurriculumConfig | None = None
    tiers: NDArray[np.uint8] | None = None
    """(N,), where there is a curriculum."""
    teacher: TeacherConfig | None = None
    beliefs: NDArray[Any] | None = None
    """(N,) records of `class_id` (k,) and `probability` (k,), where there is a teacher."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Name of each overlay that was read → xxh3_128 of its array's file."""

    def excluded(self) -> NDArray[np.bool_] | None:
        """(N,) who is left out of the phase; None: nobody."""
        masks = []
        if self.labels is not None:
            masks.append(self.labels < 0)
        if self.curriculum is not None and self.tiers is not None:
            masks.append(self.curriculum.left_out(self.tiers))
        return np.logical_or.reduce(masks) if masks else None

    def relabelled(self, batch: Batch) -> Batch:
        """The batch with the phase's labels."""
        if self.labels is None:
            return batch
        facts = batch.on_host()
        found = np.maximum(self.labels[np.maximum(facts.ordinals.numpy(), 0)], 0)
        labels = torch.from_numpy(found.astype(np.int64))
        return replace(
            batch,
            labels=labels.to(batch.labels.device, non_blocking=True),
            host=replace(facts, labels=labels),
        )

    def weights(self, ordinals: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """(n,) of the samples in the loss, beside their classes'; None: all 1."""
        if self.curriculum is None or self.tiers is None:
            return None
        return self.curriculum.weights_of(self.tiers[np.maximum(ordinals, 0)])

    def targets(self, ordinals: NDArray[np.int64], labels: NDArray[np.int64]) -> SoftTargets | None:
        """Of samples (n,) with these labels, on the host; None: the labels alone."""
        if self.teacher is None or self.beliefs is None:
            return None
        rows = self.beliefs[np.maximum(ordinals, 0)]
        return SoftTargets.of(rows, labels, label_share=self.teacher.label_share, classes=self.outputs)


def read_phase_overlays(folder: Path, phase: Phase, manifest: Manifest) -> PhaseOverlays:
    """The overlays that a phase names, from `folder`.

    Raises TrainError: missing, of another data set or kind, damaged, or with values that can't be.
    """
    reader = _Reader(folder, phase, manifest)
    labels, outputs = None, len(manifest.classes)
    if phase.labels is not None:
        labels, outputs = reader.clusters(phase.labels)
    curriculum, teacher = phase.curriculum, phase.teacher
    return PhaseOverlays(
        outputs=outputs,
        labels=labels,
        curriculum=curriculum,
        tiers=None if curriculum is None else reader.tiers(curriculum.overlay),
        teacher=teacher,
        beliefs=None if teacher is None else reader.beliefs(teacher.overlay),
        checksums=reader.checksums,
    )


def check_overlays(folder: Path, saved: Mapping[str, str], now: Mapping[str, str], where: Path) -> None:
    """Raises TrainError, naming the first overlay that is not the one that the run in `where` began with."""
    for name in [*saved, *(name for name in now if name not in saved)]:
        if saved.get(name) != now.get(name):
            raise TrainError(
                f"overlay {name}: the run in {where} began with checksum {saved.get(name)}, {folder / name} has "
                f"{now.get(name)}; give the folder of the overlays that it began with (--overlays), or start a new run "
                "with another --out"
            )


class _Reader:
    """Reads the overlays of a phase; its errors say which key of the recipe wants one, and what makes it."""

    def __init__(self, folder: Path, phase: Phase, manifest: Manifest) -> None:
        self._folder, self._phase, self._manifest = folder, phase, manifest
        self.checksums: dict[str, str] = {}

    def clusters(self, name: str) -> tuple[NDArray[np.int32], int]:
        """(N,) int32 and how many clusters there are."""
        overlay = self._read(name, "labels", "clusters", "clusters")
        labels, count = overlay.array, overlay.info.get("clusters")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or type(count) is not int or count < 1:
            raise self._refuse(name, "labels", "a cluster of each sample (N,) and their number in info")
        if labels.size and int(labels.max()) >= count:
            raise self._refuse(name, "labels", f"clusters 0 to {count - 1}, found {int(labels.max())}")
        return labels.astype(np.int32, copy=False), count

    def tiers(self, name: str) -> NDArray[np.uint8]:
        """(N,) uint8."""
        array = self._read(name, "curriculum.overlay", "tiers", "curriculum").array
        if array.ndim != 1 or array.dtype != np.uint8 or (array.size and int(array.max()) > TIERS):
            raise self._refuse(name, "curriculum.overlay", f"a tier from 0 to {TIERS} of each sample, (N,) uint8")
        return array

    def beliefs(self, name: str) -> NDArray[Any]:
        """(N,) records."""
        rows = self._read(name, "teacher.overlay", "teacher", "teacher").array
        if rows.ndim != 1 or not {"class_id", "probability"} <= set(rows.dtype.names or ()):
            raise self._refuse(name, "teacher.overlay", "records of class_id and probability, (N,)")
        for part in _slices(len(rows)):
            ids, probabilities = rows[part]["class_id"], rows[part]["probability"]
            known = ids.ndim == 2 and ids.size > 0 and int(ids.max()) < len(self._manifest.classes)
            if not known or not (probabilities >= 0).all():
                raise self._refuse(name, "teacher.overlay", "class ids of this data set with probabilities")
        return rows

    def _read(self, name: str, key: str, kind: str, command: str) -> Overlay:
        try:
            overlay = Overlay.load_onto(self._folder / name, self._manifest, kind=kind)
        except ShardsError as error:
            raise TrainError(
                f"phase {self._phase.name}, {key}: {error}; `wv-annotate {command}` makes it, --overlays says where"
            ) from error
        assert overlay.checksum is not None  # it was read
        self.checksums[name] = overlay.checksum
        return overlay

    def _refuse(self, name: str, key: str, expected: str) -> TrainError:
        return TrainError(f"phase {self._phase.name}, {key}: {self._folder / name}: expected {expected}; make it again")


def _slices(rows: int, step: int = 1 << 20) -> Iterator[slice]:
    """Stretches of rows, so that nothing of their whole size is made beside them."""
    return (slice(start, start + step) for start in range(0, rows, step))
