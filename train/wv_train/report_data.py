"""What a report knows of a run: its facts, metrics, evaluation, ledger, and its suspects judged against a known truth.

Reads files and computes numbers; it formats nothing. A suspect is a sample whose label the model believed little: the
label's confidence, averaged over visits, is low.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_shards import Dataset, NotADatasetError, Overlay
from wv_train.errors import TrainError
from wv_train.run_directory import RunDirectory
from wv_train.truth import UNKNOWN

SUSPECT_COUNTS = (50, 100, 200)
TOP_FRACTION = 0.1
"""Suspects are judged at these numbers of them, and at this share of all samples seen."""


class ReportError(TrainError):
    """A run or an output that a report can't be made of; the message is one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Phases in a row that have a gate."""

    start: float
    """Step at which the gate came."""
    end: float | None
    """Step at which it went; None if it was there at the last step known."""
    thresholds: str
    """As the recipe says them: `0.25 to 0.15, 0.15 to 0`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Rows of `metrics.jsonl` in a row that warn of the same."""

    kind: str
    phase: str
    text: str
    """Of the last of them."""
    first: int
    last: int
    """Steps."""
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """One run, read."""

    path: Path
    name: str
    """How the page calls it: its folder, with as much of the path as tells it from the others."""
    info: dict[str, Any]
    """`run.json`."""
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    phases: tuple[tuple[str, float, float], ...]
    """(name, first step, last step) of each phase that began; the last may still be running."""
    gates: tuple[Gate, ...]
    events: tuple[Event, ...]
    """Warnings and what the guard against collapse did, in order."""
    evaluation: dict[str, Any] | None
    """`eval.json`, if `wv-eval` has been run."""
    ledger: NDArray[Any] | None
    """(N,) of `LEDGER_DTYPE`, if a checkpoint has been written."""
    shards: Path

    @property
    def classes(self) -> list[str]:
        return list(self.info["classes"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The suspects against the truth. Fractions are of samples that were seen and that the truth names."""

    known: int
    wrong: int
    """Samples whose label is not their true label."""
    base_rate: float
    """wrong / known: the precision of suspects drawn by lot."""
    suspects_precision: dict[str, float]
    """Share of really wrong labels among the first "50", "100", … and "10%" suspects, as far as there are so many."""
    auroc: float | None
    """Chance that a wrong label has a lower confidence than a right one, ties counted half; None if one is missing."""
    memorised_fraction: float | None
    """Share of the wrong labels that the model predicted at its last visit; None without wrong labels."""


def load_run(path: Path, name: str, shards: Path | None) -> RunData:
    """Read a run's folder; `shards` instead of the folder that the run names.

    Raises TrainError or ShardsError: no run there, unreadable files, a ledger of another data set.
    """
    folder = RunDirectory(path)
    info = folder.read_info()
    missing = [
        k for k in ("classes", "class_counts", "manifest_digest", "shards", "exposures", "recipe") if k not in info
    ]
    if missing:
        raise ReportError(
            f"{folder.run_json}: expected the key {missing[0]!r}, found none; was it written by wv-train?"
        )
    rows = _read_metrics(folder.metrics)
    train = [row for row in rows if row.get("kind") == "train"]
    phases = _phases(rows)
    try:
        ledger = Overlay.load(folder.ledger, manifest_digest=info["manifest_digest"], kind="ledger").array
    except NotADatasetError:
        ledger = None
    return RunData(
        path=path,
        name=name,
        info=info,
        train=train,
        val=[row for row in rows if row.get("kind") == "val"],
        phases=phases,
        gates=_gates(phases, info["recipe"]),
        events=_events(rows),
        evaluation=_read_json(folder.eval_json),
        ledger=ledger,
        shards=shards or Path(info["shards"]),
    )


def open_shards(run: RunData) -> Dataset:
    """The shards that the run was trained on, which may have grown since.

    Raises ShardsError where there are none, ReportError where they are others.
    """
    try:
        dataset = Dataset.open(run.shards)
    except NotADatasetError as error:
        raise ReportError(f"{run.path}: its shards are not at {run.shards}; name their place with --shards") from error
    if dataset.manifest.samples_at(run.info["manifest_digest"]) is None:
        dataset.close()
        raise ReportError(
            f"{run.path}: trained on data set {run.info['manifest_digest'][:12]}…, {run.shards} holds "
            f"{dataset.manifest.digest[:12]}…; name the run's own with --shards"
        )
    return dataset


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as make all differ."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def rank_suspects(ledger: NDArray[Any]) -> NDArray[np.int64]:
    """Ordinals of the samples seen, the least believed label first."""
    seen = np.flatnonzero(ledger["seen"] > 0)
    return seen[np.argsort(ledger["label_conf_mean"][seen], kind="stable")]


def judge(ledger: NDArray[Any], labels: NDArray[np.int64], true_labels: NDArray[np.int64]) -> Judgement:
    """Compare the ledger's suspects with the truth, as `read_true_labels` gives it. Arrays are (N,)."""
    ranked = rank_suspects(ledger)
    ranked = ranked[true_labels[ranked] != UNKNOWN]
    wrong = labels[ranked] != true_labels[ranked]
    counts = {str(count): count for count in SUSPECT_COUNTS} | {
        f"{TOP_FRACTION:.0%}": round(TOP_FRACTION * ranked.size)
    }
    memorised = ledger["prediction"][ranked] == labels[ranked]
    return Judgement(
        known=int(ranked.size),
        wrong=int(wrong.sum()),
        base_rate=float(wrong.mean()) if ranked.size else 0.0,
        suspects_precision={
            name: float(wrong[:count].mean()) for name, count in counts.items() if 0 < count <= ranked.size
        },
        auroc=_auroc(ledger["label_conf_mean"][ranked], wrong),
        memorised_fraction=float(memorised[wrong].mean()) if wrong.any() else None,
    )


def _auroc(confidence: NDArray[np.float32], wrong: NDArray[np.bool_]) -> float | None:
    """Mann and Whitney's U of "wrong is lower", as a share of all pairs."""
    pairs = int(wrong.sum()) * int((~wrong).sum())
    if not pairs:
        return None
    _, place, count = np.unique(confidence, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2  # of equal values, from 1
    ranks_of_right = mean_rank[place][~wrong].sum()
    right = int((~wrong).sum())
    return float((ranks_of_right - right * (right + 1) / 2) / pairs)


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows; a last line that was cut off by a kill is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read") from error
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ReportError(f"{path}, line {number}: expected a JSON object, found {line[:40]!r}") from error
        if not isinstance(row, dict):
            raise ReportError(f"{path}, line {number}: expected a JSON object, found {line[:40]!r}")
        rows.append(row)
    return rows


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read; run wv-eval again") from error
    return document if isinstance(document, dict) else None


def _phases(rows: list[dict[str, Any]]) -> tuple[tuple[str, float, float], ...]:
    """A phase begins at its first row or event and ends where the next begins, or at the last step known."""
    spans: list[tuple[str, float, float]] = []
    for row in rows:
        if "phase" not in row or "step" not in row:
            continue
        name, step = str(row["phase"]), float(row["step"])
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], max(spans[-1][2], step))
        else:
            spans.append((name, spans[-1][2] if spans else 0.0, step))
    return tuple(spans)


def _gates(phases: tuple[tuple[str, float, float], ...], recipe: dict[str, Any]) -> tuple[Gate, ...]:
    """Neighbouring phases with a gate, by the recipe, are one."""
    configs = {phase.get("name"): phase.get("gate") for phase in recipe.get("phases", []) if isinstance(phase, dict)}
    gates: list[Gate] = []
    for name, start, end in phases:
        config = configs.get(name)
        if not config:
            continue
        thresholds = f"{config.get('start', '?')} to {config.get('end', 0.0)}"
        if gates and gates[-1].end == start:
            gates[-1] = Gate(start=gates[-1].start, end=end, thresholds=f"{gates[-1].thresholds}, {thresholds}")
        else:
            gates.append(Gate(start=start, end=end, thresholds=thresholds))
    if gates and gates[-1].end == phases[-1][2]:
        gates[-1] = replace(gates[-1], end=None)
    return tuple(gates)


def _events(rows: list[dict[str, Any]]) -> tuple[Event, ...]:
    """Warnings that differ in their numbers only, one after the other, are one event."""
    events: list[Event] = []
    pattern = ""
    for row in rows:
        if row.get("kind") not in ("guard", "warning"):
            continue
        step, text = int(row.get("step", 0)), str(row.get("text", ""))
        event = Event(kind=str(row["kind"]), phase=str(row.get("phase", "")), text=text, first=step, last=step, count=1)
        same, pattern = pattern, f"{event.kind} {event.phase} {re.sub('[0-9][0-9.,%]*', '#', text)}"
        if events and same == pattern:
            event = replace(event, first=events[-1].first, count=events[-1].count + 1)
            events[-1] = event
        else:
            events.append(event)
    return tuple(events)
