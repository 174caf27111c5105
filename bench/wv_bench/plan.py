"""`wv-bench plan`: what a plan does to the classes, how well it mixes, what it reads, and what it costs to make."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from wv_bench.measure import machine
from wv_bench.options import OutputFile, json_option, write_json
from wv_bench.plan_measures import buffered_bytes, exposure, meetings, mixing, reading
from wv_bench.plan_page import write_page
from wv_bench.plan_subjects import Subject, from_list, from_shards, synthetic
from wv_loader.plan import EpochPlan, Plan, PlanOptions

_CLASSES_SHOWN = 12
_RANDOM_BATCHES = 200
_WORLD_SIZES = 1, 8


class _Schedule(click.ParamType[tuple[float, ...]]):
    """τ, or one per epoch with commas between."""

    name = "τ[,τ…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            taus = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers between 0 and 1, as 0.5 or 1,0.5,0", param, ctx)
        if not all(0 <= tau <= 1 for tau in taus):
            self.fail(f"{value!r}: τ is between 0 (every class alike) and 1 (as collected)", param, ctx)
        return taus


@click.command("plan", epilog="Example: wv-bench plan shards/ --balance 1,0.5,0 --epochs 5 --html plan.html")
@click.argument("shards", required=False, type=click.Path(path_type=Path))
@click.option("--list", "file_list", type=click.Path(path_type=Path, exists=True), help="Plan a file list: PATH CLASS.")
@click.option("--synthetic", type=click.IntRange(1), help="Plan that many drawn samples, skewed as WebVision.")
@click.option("--classes", type=click.IntRange(1), default=5000, show_default=True, help="Of --synthetic.")
@click.option(
    "--balance", default="0.5", show_default=True, type=_Schedule(), help="τ: 1 as collected, 0 alike; or per epoch."
)
@click.option("--batch-size", default=1024, show_default=True, help="Global.")
@click.option("--max-repeat", default=16.0, show_default=True, help="Repeats of a class in an epoch at most.")
@click.option("--streams", type=int, help="V. Default: the batch size's largest divisor up to 64.")
@click.option("--window", default=1024, show_default=True, help="Samples of a stream that are shuffled together.")
@click.option("--run-length", type=int, help="Samples read together. Default: N/4096, within 1 … 256.")
@click.option("--exclude", multiple=True, type=click.Path(path_type=Path), help="Overlay of samples not to be shown.")
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1), help="Over which shows are counted.")
@click.option("--html", type=OutputFile(), help="Write charts to this page.")
@json_option()
def command(
    shards: Path | None,
    file_list: Path | None,
    synthetic: int | None,
    classes: int,
    exclude: tuple[Path, ...],
    epochs: int,
    html: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Exposure of every class, quality of the shuffle, bytes read and buffered, seconds and memory of planning.

    \b
    target        shows an epoch that τ and the cap on repeats ask for
    achieved      shows an epoch, counted
    dispersion    of class counts over blocks of batches: variance over that of independent draws (1: a draw;
                  1 − n/L: a perfect shuffle of L shows; more: classes come in lumps)
    apart         pairs of samples that were in no batch together in all epochs, of pairs drawn by lot; ideal: the
                  shows of an epoch in random order; "in a run": pairs that are read together
    amplification bytes read over bytes of the images shown
    buffered      images of the open windows: V/W · window · mean size
    """
    if sum(chosen is not None for chosen in (shards, file_list, synthetic)) != 1:
        raise click.UsageError("give one of SHARDS, --list and --synthetic")
    try:
        plan_options = PlanOptions(**options)
        subject = _subject(shards, file_list, synthetic, classes, exclude)
        result = _measure(subject, plan_options, epochs)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if html is not None:
        write_page(html, result)
    if write_json(json_file, result):
        _print(result)


def _subject(
    shards: Path | None, file_list: Path | None, samples: int | None, classes: int, exclude: tuple[Path, ...]
) -> Subject:
    if shards is not None:
        return from_shards(shards, exclude)
    if exclude:
        raise click.UsageError("--exclude goes with SHARDS")
    return from_list(file_list) if file_list is not None else synthetic(samples or 0, classes)


def _measure(subject: Subject, options: PlanOptions, epochs: int) -> dict[str, Any]:
    held_mb = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    plan = Plan(subject.layout, options)
    open_s = time.perf_counter() - started
    epoch_s = {}
    for number in range(min(epochs, len(options.balance))):
        started = time.perf_counter()
        plan.epoch(number)
        epoch_s[f"{options.balance[number]:g}"] = time.perf_counter() - started
    last = plan.epoch(epochs - 1)
    batch_ms = _random_batches(last)
    peak_mb = _memory_mb("VmHWM")
    shows = exposure(plan, epochs)
    read = reading(last, subject.offsets)
    return {
        "machine": machine(),
        "subject": subject.name,
        "samples": len(subject.layout.labels),
        "included_samples": int(plan.class_counts.sum()),
        "shards": len(subject.layout.shard_bands),
        "runs": len(plan.runs),
        "options": {**asdict(options), "streams": options.resolved_streams, "run_length": plan.runs.length},
        "epochs": epochs,
        "epoch_lengths": shows.lengths,
        "unseen_fraction": shows.unseen_fraction,
        "mixing": asdict(mixing(plan, epochs)),
        "meetings": asdict(meetings(plan, epochs)),
        "reading": asdict(read),
        "buffered_bytes": {str(w): buffered_bytes(last, read.mean_bytes, w) for w in _WORLD_SIZES},
        "seconds": {"open": open_s, "epoch": epoch_s},
        "batch_ms": batch_ms,
        "memory_mb": {"before": held_mb, "peak": peak_mb},
        "classes": [
            {
                "name": name,
                "samples": int(n),
                "by_tau": float(u),
                "target": float(t),
                "expected": float(e),
                "achieved": float(a),
            }
            for name, n, u, t, e, a in zip(
                subject.class_names,
                plan.class_counts,
                shows.uncapped,
                shows.target,
                shows.expected,
                shows.achieved,
                strict=True,
            )
        ],
    }


def _random_batches(epoch: EpochPlan) -> dict[str, float]:
    """Milliseconds of a batch asked for at random, and of the next one."""
    streams = range(epoch.plan.options.resolved_streams)
    alone: list[float] = []
    following: list[float] = []
    for number in np.random.default_rng(0).integers(0, epoch.batches, _RANDOM_BATCHES).tolist():
        for measured, batch in ((alone, number), (following, min(number + 1, epoch.batches - 1))):
            started = time.perf_counter()
            epoch.batch(batch, streams)
            measured.append(1000 * (time.perf_counter() - started))
    return {
        "random_median": float(np.median(alone)),
        "random_p99": float(np.quantile(alone, 0.99)),
        "next_median": float(np.median(following)),
    }


def _memory_mb(field: str) -> float:
    """A figure of this process's memory, in million bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024 / 1e6


def _print(result: dict[str, Any]) -> None:
    console = Console()
    console.print(_classes_table(result))

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    ratios = achieved_ratios(result)
    kept = (
        100 * (1 - sum(row["target"] for row in capped) / sum(row["by_tau"] for row in capped))
        if (capped := [row for row in result["classes"] if row["target"] < 0.999 * row["by_tau"]])
        else 0.0
    )
    say(
        f"achieved / target: 5% {np.quantile(ratios, 0.05):.3f}, median {np.median(ratios):.3f}, 95% "
        f"{np.quantile(ratios, 0.95):.3f}; the cap on repeats keeps {kept:.1f}% from {len(capped)} classes"
    )
    lost = sum(row["target"] - row["expected"] for row in result["classes"] if row["expected"] < row["target"])
    if lost > 0.5:
        say(f"runs without a band keep {lost:,.0f} shows an epoch from their classes: pack by band to have them")
    lengths = result["epoch_lengths"]
    say(
        f"epochs of {min(lengths):,} to {max(lengths):,} shows of {result['included_samples']:,} samples; "
        f"{100 * result['unseen_fraction']:.2f}% of the samples not shown in {result['epochs']} epochs"
    )
    mixed, meet, read = result["mixing"], result["meetings"], result["reading"]
    say(
        f"distinct classes in a batch {mixed['distinct_classes']:.1f}, ideal draw {mixed['distinct_classes_ideal']:.1f}"
    )
    say(
        "dispersion (perfect shuffle) over batches: "
        + ", ".join(f"{m}: {d:.2f} ({mixed['dispersion_shuffle'][m]:.2f})" for m, d in mixed["dispersion"].items())
    )
    within = (
        ""
        if meet["apart_in_run"] is None
        else f"; in a run {100 * meet['apart_in_run']:.2f}%, ideal {100 * meet['apart_in_run_ideal']:.2f}%"
    )
    say(
        f"apart in {result['epochs']} epochs: {100 * meet['apart']:.3f}% of pairs, ideal "
        f"{100 * meet['apart_ideal']:.3f}%{within}"
    )
    say(
        f"read amplification {read['merged']:.3f} (whole visits {read['whole_visits']:.2f}); an epoch shows "
        f"{read['used_over_unique']:.2f} times the bytes of the data set"
    )
    buffers = ", ".join(f"{size / 1e6:,.0f} MB on {w} ranks" for w, size in result["buffered_bytes"].items())
    options = result["options"]
    say(
        f"buffered {buffers.replace('on 1 ranks', 'on 1 rank')}; {result['shards']:,} shards, {result['runs']:,} runs "
        f"of {options['run_length']} at most, {options['streams']} streams, windows of {options['window']}"
    )
    epochs = ", ".join(f"{s:.2f} s (τ={tau})" for tau, s in result["seconds"]["epoch"].items())
    batch, memory = result["batch_ms"], result["memory_mb"]
    say(
        f"opening {result['seconds']['open']:.2f} s, an epoch {epochs}; a batch at random {batch['random_median']:.1f} "
        f"ms, 99% {batch['random_p99']:.1f}, the next {batch['next_median']:.2f}; memory {memory['peak']:,.0f} MB at "
        f"the peak, {memory['before']:,.0f} before"
    )
    about = result["machine"]
    say(f"{about['processor']}, {about['cores']} cores, Python {about['python']}")
    say(about["command"])


def achieved_ratios(result: dict[str, Any]) -> NDArray[np.float64]:
    """Achieved over target, of the classes that have a target."""
    return np.array([row["achieved"] / row["target"] for row in result["classes"] if row["target"]])


def _classes_table(result: dict[str, Any]) -> Table:
    """The largest and smallest classes, and those whose exposure is furthest from its target."""
    rows = sorted((row for row in result["classes"] if row["target"]), key=lambda row: -row["samples"])
    if len(rows) > _CLASSES_SHOWN:
        part = _CLASSES_SHOWN // 3
        furthest = sorted(rows[part:-part], key=lambda row: abs(row["achieved"] / row["target"] - 1))[-part:]
        rows = [*rows[:part], *sorted(furthest, key=lambda row: -row["samples"]), *rows[-part:]]
    table = Table(
        title=f"shows of a class in an epoch, τ={result['options']['balance']}, mean of {result['epochs']} epochs"
    )
    for heading in ("class", "samples", "by τ alone", "target", "achieved", "achieved / target"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for row in rows:
        numbers = (f"{row[name]:,.1f}" for name in ("by_tau", "target", "achieved"))
        table.add_row(row["name"], f"{row['samples']:,}", *numbers, f"{row['achieved'] / row['target']:.3f}")
    return table
