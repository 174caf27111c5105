"""`wv-bench plan`: what a plan does to the classes, and what it costs to make."""

import json
import time
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from wv_bench.measure import machine
from wv_loader import Loader
from wv_loader.plan import EpochPlan

_CLASSES_SHOWN = 20


@click.command("plan", epilog="Example: wv-bench plan shards/ --balance 0.5 --epochs 5")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option(
    "--balance", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="τ: 1 as collected, 0 alike."
)
@click.option("--batch-size", default=1024, show_default=True)
@click.option("--max-repeat", default=16.0, show_default=True)
@click.option("--epochs", default=5, show_default=True, help="Epochs over which shows are counted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, all classes.")
def command(shards: Path, balance: float, batch_size: int, max_repeat: float, epochs: int, as_json: bool) -> None:
    """Target and achieved exposure of every class, distinct classes in a batch, and the seconds that planning takes."""
    started = time.perf_counter()
    with Loader(shards, batch_size=batch_size, size_px=32, balance=balance, max_repeat=max_repeat) as loader:
        once_s = time.perf_counter() - started
        plan, labels = loader.plan, loader.labels
        shows = np.zeros(loader.num_classes)
        seconds, lengths, distinct, ideal = [], [], [], []
        for number in range(epochs):
            started = time.perf_counter()
            epoch = plan.epoch(number)
            seconds.append(time.perf_counter() - started)
            lengths.append(epoch.samples)
            ordinals, _ = plan.shown(number, epoch.visit_runs, epoch.visit_numbers)
            counts = np.bincount(labels[ordinals], minlength=loader.num_classes)
            shows += counts
            drawn, expected = _mixing(epoch, labels, counts)
            distinct.append(drawn)
            ideal.append(expected)
        target, names = plan.target_exposure(0), loader.class_names
        result = {
            "machine": machine(),
            "samples": loader.num_samples,
            "epoch_lengths": lengths,
            "open_s": once_s,
            "epoch_s": min(seconds),
            "distinct_classes_per_batch": float(np.mean(distinct)),
            "distinct_classes_ideal": float(np.mean(ideal)),
            "classes": [
                {"name": name, "samples": int(n), "target": float(t), "achieved": float(s) / epochs}
                for name, n, t, s in zip(names, loader.class_counts, target, shows, strict=True)
            ],
        }
    if as_json:
        print(json.dumps(result))
    else:
        _print(result, balance, epochs)


def _mixing(epoch: EpochPlan, labels: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Distinct classes in a batch, on average over up to 32 of them, and what independent draws would give."""
    options = epoch.plan.options
    seen = []
    for b in np.unique(np.linspace(0, max(epoch.batches - 2, 0), 32).astype(int)).tolist():
        ordinals = epoch.batch(b, range(options.resolved_streams))
        seen.append(len(np.unique(labels[ordinals[ordinals >= 0]])))
    share = counts / counts.sum()
    return float(np.mean(seen)), float((1 - (1 - share) ** min(options.batch_size, epoch.samples)).sum())


def _print(result: dict[str, object], balance: float, epochs: int) -> None:
    console = Console()
    classes = result["classes"]
    assert isinstance(classes, list)
    rows = sorted(classes, key=lambda row: -row["samples"])
    if len(rows) > _CLASSES_SHOWN:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, _CLASSES_SHOWN).astype(int)]
    table = Table(title=f"shows of a class in an epoch at τ={balance}, mean of {epochs} epochs")
    for heading in ("class", "samples", "target", "achieved", "achieved / target"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for row in rows:
        ratio = f"{row['achieved'] / row['target']:.3f}" if row["target"] else "–"
        table.add_row(row["name"], f"{row['samples']:,}", f"{row['target']:,.1f}", f"{row['achieved']:,.1f}", ratio)
    console.print(table)
    console.print(
        f"epochs of {result['epoch_lengths']} samples; distinct classes in a batch "
        f"{result['distinct_classes_per_batch']:.1f}, ideal draw {result['distinct_classes_ideal']:.1f}",
        highlight=False,
    )
    console.print(f"opening {result['open_s']:.3f} s, an epoch {result['epoch_s']:.3f} s", highlight=False)
