"""The runs behind `wv-bench suspects`: processes, each with its cost in seconds of a processor, in a folder of its own.

A stage that has ended leaves a file with its cost; one that was killed begins again, so that the cost is a whole one's.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from wv_bench.methods_data import DataSet
from wv_bench.methods_recipes import METHODS
from wv_bench.methods_values import VALUES, Budget
from wv_bench.stage_process import Cost, RunError, run_stage
from wv_shards import EXCLUDE, Dataset, Overlay, write_atomic

CLEANLAB_METHODS = ("self_confidence", "normalized_margin")
"""Scores of cleanlab, its default first; the second is taken with its class adjustment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """Where the runs lie, and what all of them share."""

    folder: Path
    data: DataSet
    budget: Budget
    seed: int
    threads: int

    def train(self, method: str) -> tuple[Path, Cost]:
        """A training on all samples, by a method of `wv-bench methods`: its run, and what it cost."""
        run = self.folder / method
        return run, self._train(method, method, self.budget, ())

    def folds(self, count: int) -> tuple[NDArray[np.float32], Cost]:
        """(N, K) probabilities of each sample by a network that was not trained on it, and what they cost.

        Each of `count` plain trainings leaves its share of the samples out, with as many epochs.
        """
        with Dataset.open(self.data.train) as dataset:
            labels = dataset.index["label"].astype(np.int64)
            digest, classes = dataset.manifest.digest, len(dataset.manifest.classes)
        fold_of = stratified_folds(labels, count, self.seed)
        probabilities = np.full((len(labels), classes), np.nan, dtype=np.float32)
        total = Cost(wall_s=0.0, cpu_s=0.0)
        for fold in range(count):
            name = f"fold-{fold}-of-{count}"
            overlay = self.folder / f"{name}-left-out"
            rows = (fold_of == fold).astype(np.uint8)
            Overlay(kind=EXCLUDE, array=rows, manifest_digest=digest).save(overlay)
            share = Budget(images=self.budget.images - int(rows.sum()), epochs=self.budget.epochs)
            total += self._train(name, "ce", share, ("--exclude", str(overlay)))
            file = self.folder / f"{name}.npy"
            words = [str(self.folder / name), str(self.data.train), str(overlay), str(file), str(self.threads)]
            total += self._stage(f"{name}-predict", "wv_bench.suspects_predict", words)
            found = np.load(file)
            probabilities[rows != 0] = found[rows != 0]
        return probabilities, total

    def cleanlab(self, probabilities: NDArray[np.float32], folds: int) -> tuple[dict[str, NDArray[np.float64]], Cost]:
        """Label quality of each sample, (N,), lower is worse, by each of CLEANLAB_METHODS; and the cost of that."""
        file = self.folder / f"probabilities-{folds}.npy"
        np.save(file, probabilities)
        out = self.folder / f"cleanlab-{folds}.npz"
        words = [str(file), str(self.data.train), str(out)]
        cost = self._stage(f"cleanlab-{folds}", "wv_bench.suspects_cleanlab", words)
        with np.load(out) as found:
            return {name: found[name] for name in CLEANLAB_METHODS}, cost

    def suspects(self, run: Path) -> tuple[Path, Cost]:
        """The overlay of `wv-annotate suspects`, and what it cost."""
        out = self.folder / f"{run.name}-suspects"
        words = ["suspects", str(run), "--out", str(out), "--shards", str(self.data.train)]
        return out, self._stage(f"{run.name}-suspects", "wv_train.annotate.cli", words)

    def _train(self, name: str, method: str, budget: Budget, more: Sequence[str]) -> Cost:
        run, recipe = self.folder / name, self.folder / f"{name}.toml"
        if not (self.folder / f"{name}.cost.json").exists():
            shutil.rmtree(run, ignore_errors=True)  # of a run that was killed
            write_atomic(recipe, METHODS[method].recipe(budget, VALUES).encode())
        threads = ("--threads", str(self.threads), "--loader-threads", str(self.threads), "--device", "cpu")
        words = ["--shards", str(self.data.train), "--recipe", str(recipe), "--seed", str(self.seed)]
        return self._stage(name, "wv_train", [*words, "--out", str(run), *threads, *more])

    def _stage(self, name: str, module: str, words: Sequence[str]) -> Cost:
        """A process, unless it has ended well before. Raises click's error with its last line."""
        done, log = self.folder / f"{name}.cost.json", self.folder / f"{name}.log"
        if not done.exists():
            click.echo(f"{self.data.name}: {name} …", err=True)
        try:
            return run_stage(done, log, module, words, threads=self.threads)
        except RunError as error:
            raise click.ClickException(f"{name}: {error}") from None


def stratified_folds(labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) fold of each sample: within a class the folds' sizes differ by one at most, and so do they in all."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold_of = np.empty(len(labels), dtype=np.int64)
    fold_of[by_class] = np.arange(len(labels)) % folds
    return fold_of
