"""`wv-bench suspects`: finding wrong labels by a training's ledger, against cleanlab and against the last epoch's loss.

On CIFAR-10N, where the truth is known. All rivals have the same network, images and epochs. What counts as cost is what
a rival needs beyond the one training that is made anyway: the ledger's reading for us, k trainings more for cleanlab,
whose probabilities must come from networks that have not seen the sample.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from wv_bench.measure import machine
from wv_bench.methods_data import Cifar10n, Regime, make_set
from wv_bench.methods_values import Budget
from wv_bench.options import STDOUT, Several, json_option, write_json
from wv_bench.stage_process import Cost
from wv_bench.suspects_stages import Stages
from wv_shards import Dataset, Overlay
from wv_train.annotate.suspects_judged import Judged, calibration_error, judge_order, reliability
from wv_train.annotate.suspects_overlay import KIND, SUSPECTS_DTYPE
from wv_train.truth import read_true_labels

COST_BAR = 0.1
"""Of cleanlab's cost beyond the one training: ours may not be more."""
TRAININGS = {"ce": "plain", "gate": "gated"}
"""Method of `wv-bench methods`, and what the table calls it."""
_OURS, _LOSS, _CLEANLAB = "suspects", "last loss", "cleanlab"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to find wrong labels, on one set."""

    data: str
    way: str
    judged: Judged
    cost: Cost
    """Beyond one training."""
    calibration: dict[str, Any] | None = None
    """Of ways that give probabilities: ECE, expected and found share of wrong labels."""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "set": self.data,
            "way": self.way,
            **asdict(self.judged),
            "beyond_one_training": self.cost.document(),
            "calibration": self.calibration,
        }


@click.command("suspects")
@click.option(
    "--data", "data_dir", required=True, type=click.Path(path_type=Path), help="Folder with CIFAR-10N's .npz files."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="For sets and runs.")
@click.option(
    "--sets",
    type=Several(click.Choice(["worse", "random1"])),
    default="worse,random1",
    show_default=True,
    help="Whose labels, with commas.",
)
@click.option("--images", type=click.IntRange(100), default=5000, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True, help="Of every training.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="cleanlab's trainings.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each process.")
@json_option()
def command(
    data_dir: Path,
    out: Path,
    sets: tuple[str, ...],
    images: int,
    epochs: int,
    folds: int,
    seed: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Wrong labels found by the ledger of one training, by its last loss, and by cleanlab with k more trainings.

    Runs that are done are not made again: the same command goes on after a kill. Needs the extra [cleanlab] for
    cleanlab's rows.
    """
    console = Console(stderr=json_file == STDOUT)
    source, rows = Cifar10n(data_dir), []
    budget = Budget(images=images, epochs=epochs)
    for name in sets:
        data = make_set(out / "sets", name, Regime(name="suspects", images=images, epochs=epochs), source)
        folder = out / f"{name}-{images}-{epochs}-seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        rows += _rows(Stages(folder=folder, data=data, budget=budget, seed=seed, threads=threads), folds)
    _print(console, rows)
    verdicts = verdicts_of(rows)
    for verdict in verdicts:
        console.print(_verdict_line(verdict), highlight=False)
    if json_file is not None:
        about = machine(("torch", "numpy", *(("cleanlab",) if _has_cleanlab() else ())))
        asked = {"images": images, "epochs": epochs, "folds": folds, "seed": seed, "threads": threads}
        document = {"about": about, **asked, "rows": [row.document() for row in rows], "verdicts": verdicts}
        write_json(json_file, document)


def verdicts_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Ours against the best of cleanlab's scores, by set and training: the issue's bar."""
    verdicts = []
    for name in dict.fromkeys(row.data for row in rows):
        mine = [row for row in rows if row.data == name]
        theirs = [row for row in mine if row.way.startswith(_CLEANLAB)]
        for row in mine:
            if not row.way.startswith(_OURS) or not theirs:
                continue
            best = max(theirs, key=lambda one: one.judged.auroc or 0.0)
            ratio = (row.cost.cpu_s or 0.0) / (best.cost.cpu_s or np.inf)
            reached = (row.judged.auroc or 0.0) >= (best.judged.auroc or 0.0) and ratio < COST_BAR
            verdicts.append(
                {
                    "set": name,
                    "way": row.way,
                    "auroc": row.judged.auroc,
                    "cleanlab_auroc": best.judged.auroc,
                    "cost_ratio": ratio,
                    "verdict": "PASS" if reached else "MISSED",
                }
            )
    return verdicts


def _rows(stages: Stages, folds: int) -> list[Row]:
    """All ways on one set."""
    with Dataset.open(stages.data.train) as dataset:
        labels = dataset.index["label"].astype(np.int64)
        wrong = read_true_labels(stages.data.truth, dataset) != labels
        digest = dataset.manifest.digest
    rows = []
    for method, called in TRAININGS.items():
        run, _ = stages.train(method)
        overlay, cost = stages.suspects(run)
        suspects = Overlay.load(overlay, manifest_digest=digest, kind=KIND).array
        assert suspects.dtype == SUSPECTS_DTYPE
        rows.append(
            Row(
                data=stages.data.name,
                way=f"{_OURS}, {called}",
                judged=judge_order(suspects["wrong"], wrong),
                cost=cost,
                calibration=_calibration(suspects["wrong"], wrong),
            )
        )
        ledger = Overlay.load(run / "ledger", manifest_digest=digest, kind="ledger").array
        nothing = Cost(wall_s=0.0, cpu_s=0.0)
        last = judge_order(-ledger["label_conf"], wrong)  # as −log of it, the loss, orders them
        rows.append(Row(data=stages.data.name, way=f"{_LOSS}, {called}", judged=last, cost=nothing))
    if not _has_cleanlab():
        click.echo("cleanlab is not installed: make setup EXTRAS=dev,cleanlab; its rows are left out", err=True)
        return rows
    probabilities, cost = stages.folds(folds)
    scores, scoring = stages.cleanlab(probabilities, folds)
    for name, quality in scores.items():
        judged = judge_order(-quality, wrong)
        way = f"{_CLEANLAB}, {name.replace('_', ' ')}, {folds} folds"
        rows.append(Row(data=stages.data.name, way=way, judged=judged, cost=cost + scoring))
    return rows


def _calibration(probability: NDArray[np.float32], wrong: NDArray[np.bool_]) -> dict[str, Any]:
    known = probability >= 0
    bins = reliability(probability[known], wrong[known])
    return {
        "ece": calibration_error(bins),
        "expected": float(probability[known].mean()),
        "found": float(wrong[known].mean()),
        "bins": [asdict(one) for one in bins],
    }


def _print(console: Console, rows: Sequence[Row]) -> None:
    title = "CPU s: beyond the one training; expected: share of wrong labels, of the true share"
    table = Table("set", "way", "AUROC", "AP", "at 1%", "at 10%", "CPU s", "expected", "ECE", title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        judged, known = row.judged, row.calibration
        table.add_row(
            row.data,
            row.way,
            "–" if judged.auroc is None else f"{judged.auroc:.3f}",
            "–" if judged.average_precision is None else f"{judged.average_precision:.3f}",
            f"{judged.precision_at_1:.2f}",
            f"{judged.precision_at_10:.2f}",
            "–" if row.cost.cpu_s is None else f"{row.cost.cpu_s:,.1f}",
            "" if known is None else f"{known['expected']:.1%} of {known['found']:.1%}",
            "" if known is None else f"{known['ece']:.3f}",
        )
    console.print(table)


def _verdict_line(verdict: dict[str, Any]) -> str:
    return (
        f"{verdict['verdict']}: {verdict['set']}, {verdict['way']}: AUROC {verdict['auroc']:.3f}, cleanlab's best "
        f"{verdict['cleanlab_auroc']:.3f}, at {verdict['cost_ratio']:.4f} of its cost (bar: below {COST_BAR})"
    )


def _has_cleanlab() -> bool:
    return importlib.util.find_spec("cleanlab") is not None
