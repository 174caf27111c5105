"""Carries out the runs of `wv-bench methods`: each a chain of processes, several runs at once.

A stage that has ended well leaves a file with its cost, the run's result comes last: what was killed goes on where it
was, training from its last checkpoint. A run that fails is named and stops no other.
"""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_bench.methods_data import DataSet
from wv_bench.methods_plan import Run
from wv_bench.stage_process import Cost, RunError, run_stage
from wv_shards import Dataset, Overlay, write_atomic
from wv_train.source_version import source_commit

FORMAT_VERSION = 1


@dataclass(kw_only=True, slots=True)
class Workers:
    """Runs what is to be done, some at once; a run waits for the one that it starts from."""

    sets: dict[tuple[str, str], DataSet]
    """By name of the set and of the regime."""
    machine: dict[str, Any]
    jobs: int
    threads: int
    """Of each run's loader and of torch."""
    say: Callable[[str], None]
    failed: dict[Path, str] = field(default_factory=dict)
    """Result file of each run that failed, and why."""
    _pending: list[Run] = field(default_factory=list)
    _running: set[Path] = field(default_factory=set)
    _processes: set[int] = field(default_factory=set)
    _change: threading.Condition = field(default_factory=threading.Condition)
    _stopped: bool = False
    _count: int = 0
    _total: int = 0

    def work(self, runs: Sequence[Run]) -> None:
        """Do the runs that are not done. On KeyboardInterrupt the processes end with a checkpoint, and it is raised."""
        self._pending = [run for run in runs if not run.result_file.exists()]
        self._total, self._count = len(runs), len(runs) - len(self._pending)
        if self._count:
            self.say(f"{self._count} of {self._total} runs are done already")
        before = signal.signal(signal.SIGTERM, _interrupt)
        threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        except KeyboardInterrupt:
            self._stop()
            for thread in threads:
                thread.join()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)

    def _loop(self) -> None:
        while (run := self._next()) is not None:
            problem = ""
            try:
                result = self._do(run)
            except (RunError, OSError, ValueError, KeyError) as error:
                problem = str(error) or type(error).__name__
            with self._change:
                self._running.discard(run.result_file)
                if self._stopped:
                    return
                self._count += 1
                if problem:
                    self.failed[run.result_file] = problem
                told = f"FAILED: {problem}" if problem else _sentence(result)
                self.say(f"[{self._count}/{self._total}] {run}: {told}")
                self._change.notify_all()

    def _next(self) -> Run | None:
        """The first run whose base is done; waits for a base that is being made. None: nothing is left."""
        with self._change:
            while not self._stopped:
                waits = False
                for run in self._pending:
                    base = run.base
                    if base is not None and not base.result_file.exists() and base.result_file not in self.failed:
                        waits = True
                        continue
                    self._pending.remove(run)
                    self._running.add(run.result_file)
                    return run
                if not waits:
                    return None
                if not self._running:
                    raise AssertionError("a run waits for one that is not planned")
                self._change.wait()
            return None

    def _stop(self) -> None:
        with self._change:
            self._stopped = True
            for process in self._processes:
                _signal_softly(process)
            self._change.notify_all()

    def _do(self, run: Run) -> dict[str, Any]:
        """The chain of a run; its result, which is written last."""
        if run.base is not None and run.base.result_file in self.failed:
            raise RunError(f"the run that it starts from failed: {run.base}")
        data, folder = self.sets[run.data, run.regime.name], run.folder
        folder.mkdir(parents=True, exist_ok=True)
        train = folder / "train"
        cost = self._annotate(run, data) + self._train(run, data)
        judged = held_out_scores(train / "metrics.jsonl") if run.setting.holdout else self._judge(run, data)
        total = cost + _cost_of(run.base) if run.base else cost
        result = {
            "format_version": FORMAT_VERSION,
            "set": run.data,
            "regime": run.regime.name,
            "method": run.contestant.method.name,
            "label": run.label,
            "seed": run.seed,
            "digest": run.digest,
            "holdout": run.setting.holdout,
            "budget": {"images": run.budget.images, "epochs": run.budget.epochs, "batch_size": run.budget.batch_size},
            "model_name": run.budget.model,
            **judged,
            **gate_facts(train / "metrics.jsonl"),
            "kept_by_class": kept_by_class(train, data.train),
            "cost": total.document(),
            "own_cost": cost.document(),
            "commit": source_commit(),
            "threads": self.threads,
            "jobs": self.jobs,
            "machine": self.machine,
        }
        write_atomic(run.result_file, (json.dumps(result, indent=1) + "\n").encode())
        shutil.rmtree(train / "tensorboard", ignore_errors=True)
        return result

    def _annotate(self, run: Run, data: DataSet) -> Cost:
        """Make the overlays that the method needs from its base."""
        cost = Cost(wall_s=0.0, cpu_s=0.0)
        places = {"{overlays}": str(run.overlays), "{shards}": str(data.train)}
        places |= {"{base}": str(run.base.folder / "train")} if run.base else {}
        for number, words in enumerate(run.annotate):
            run.overlays.mkdir(exist_ok=True)
            filled = [_filled(word, places) for word in words]
            cost += self._stage(run, f"annotate-{number}", "wv_train.annotate.cli", filled)
        return cost

    def _train(self, run: Run, data: DataSet) -> Cost:
        """wv-train; a run that has begun goes on with what it was begun with."""
        train, recipe, method = run.folder / "train", run.folder / "recipe.toml", run.contestant.method
        begun = (train / "run.json").exists()
        if begun:
            words = ["--resume"]
        else:
            write_atomic(recipe, run.recipe.encode())
            words = ["--shards", str(data.train), "--recipe", str(recipe), "--seed", str(run.seed)]
            words += ["--overlays", str(run.overlays)] if method.annotate else []
            words += ["--exclude", str(run.overlays / method.exclude)] if method.exclude else []
            words += ["--holdout", str(run.setting.holdout)] if run.setting.holdout else ["--truth", str(data.truth)]
        threads = ("--threads", str(self.threads), "--loader-threads", str(self.threads))
        words += ["--out", str(train), *threads, "--device", run.setting.device]
        return self._stage(run, "training", "wv_train", words, interrupted=begun)

    def _judge(self, run: Run, data: DataSet) -> dict[str, Any]:
        """Scores on clean test images and on the training images; not a part of the method's cost."""
        file = run.folder / "judged.json"
        words = [str(run.folder / "train"), "--out", str(file)]
        words += ["--test", str(data.test), "--train", str(data.train), "--truth", str(data.truth)]
        words += ["--device", run.setting.device, "--loader-threads", str(self.threads)]
        self._stage(run, "judging", "wv_bench.methods_judge", words)
        judged: dict[str, Any] = json.loads(file.read_text())
        return judged

    def _stage(self, run: Run, name: str, module: str, words: Sequence[str], *, interrupted: bool = False) -> Cost:
        """A process of the chain, unless it has ended well before. Raises RunError with its last line."""
        done, log = run.folder / f"{name}.json", run.folder / f"{name}.log"
        watch = self._watched()
        return run_stage(done, log, module, words, threads=self.threads, watch=watch, interrupted=interrupted)

    @contextmanager
    def _watched(self) -> Iterator[Callable[[int], None]]:
        """Around a process that `_stop` is to end. Raises RunError where it has stopped already."""
        with self._change:
            if self._stopped:
                raise RunError("stopped")
        watched = set()

        def begun(process: int) -> None:
            watched.add(process)
            with self._change:
                self._processes.add(process)

        try:
            yield begun
        finally:
            with self._change:
                self._processes -= watched


def _interrupt(_number: int, _frame: object) -> None:
    """SIGTERM ends a benchmark as Ctrl-C does: nobody else would end its processes."""
    raise KeyboardInterrupt


def _filled(word: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(name, value)
    return word


def _cost_of(run: Run) -> Cost:
    return Cost.of(json.loads(run.result_file.read_text())["cost"])


def _signal_softly(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)  # wv-train saves and ends


def _rows(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def held_out_scores(metrics: Path) -> dict[str, Any]:
    """Accuracy on the held-out samples, by their noisy labels, at the run's end. Raises RunError: none there."""
    rows = [row for row in _rows(metrics) if row["kind"] == "val"]
    if not rows:
        raise RunError("expected a validation on the held-out samples, found none in metrics.jsonl")
    last = rows[-1]
    model = {"top1": last["top1"], "mean_class_top1": last["mean_class_top1"], "step": last["step"]}
    ema = None if last.get("ema_top1") is None else {"top1": last["ema_top1"], "mean_class_top1": None}
    return {"model": model, "ema": ema}


def gate_facts(metrics: Path) -> dict[str, Any]:
    """Steps of the run, and what its gate did, from the rows of metrics.

    kept_fraction and the precisions: means over the first phase with a gate; last_…: of the last row with one.
    """
    rows = [row for row in _rows(metrics) if row["kind"] == "train"]
    gated = [row for row in rows if "kept_by_band" in row]  # counted where there is a gate
    facts: dict[str, Any] = {
        "steps": rows[-1]["step"] if rows else 0,
        "guarded_steps": sum(row.get("guarded_steps", 0) for row in rows),
        "zero_steps": sum(row.get("zero_steps", 0) for row in rows),
        "gate": None,
    }
    if gated:
        last, whole = gated[-1], _before_finetune(gated)
        facts["gate"] = {
            "kept_fraction": float(np.mean([row["kept_fraction"] for row in whole])),
            "kept_precision": _mean_of(whole, "kept_precision"),
            "shown_precision": _mean_of(whole, "shown_precision"),
            "last_kept_fraction": last["kept_fraction"],
            "last_kept_precision": last.get("kept_precision"),
            "last_kept_by_band": last.get("kept_by_band"),
        }
    return facts


def _before_finetune(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["phase"] == rows[0]["phase"]]


def _mean_of(rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None


def kept_by_class(run: Path, shards: Path) -> list[dict[str, Any]] | None:
    """Of each class its samples, and of their visits the share that the gate let pass; None where no ledger is."""
    if not (run / "ledger.json").exists():
        return None
    with Dataset.open(shards) as dataset:
        ledger = Overlay.load(run / "ledger", manifest_digest=dataset.manifest.digest, kind="ledger").array
        labels: NDArray[np.int64] = dataset.index["label"].astype(np.int64)
        names = [one.name for one in dataset.manifest.classes]
    seen, gated = (np.bincount(labels, weights=ledger[key], minlength=len(names)) for key in ("seen", "gated"))
    counts = np.bincount(labels, minlength=len(names))
    return [
        {
            "name": name,
            "samples": int(counts[at]),
            "kept_fraction": float(1 - gated[at] / max(seen[at], gated[at])) if seen[at] else None,
        }
        for at, name in enumerate(names)
    ]


def _sentence(result: dict[str, Any]) -> str:
    """What came out, for the screen."""
    model, ema, cost = result["model"], result["ema"], result["own_cost"]
    memorised = model.get("memorised_fraction")
    parts = [f"top-1 {model['top1']:.1%}"]
    parts += [f"EMA {ema['top1']:.1%}"] if ema else []
    parts += [f"memorised {memorised:.0%}"] if memorised is not None else []
    parts += [f"{cost['wall_s']:.0f} s"] if cost["wall_s"] is not None else []
    return ", ".join(parts)
