"""`wv-bench methods`: noise-robust training side by side, under one budget, on real label noise and on skewed sets.

Makes the data, trains every method with every seed, judges the last checkpoint on clean images, prints means and
spreads. Every run is a chain of our own commands; what is done is not done again, so it may be stopped at any time.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.measure import machine
from wv_bench.methods_bars import Verdict, judge
from wv_bench.methods_data import REGIMES, SETS, Cifar10n, make_set
from wv_bench.methods_ensemble import ensemble_line, ensembles_of, judge_ensembles, read_ensembles
from wv_bench.methods_markdown import markdown
from wv_bench.methods_page import page
from wv_bench.methods_plan import (
    STUDIES,
    Run,
    Setting,
    contestants_named,
    contestants_of_study,
    contestants_to_tune,
    plan_runs,
)
from wv_bench.methods_published import MODEL, print_beside
from wv_bench.methods_recipes import GATES, METHODS, SKEW_GATES
from wv_bench.methods_results import document, read_results, summarise
from wv_bench.methods_run import Workers
from wv_bench.methods_table import best_values, print_tables
from wv_bench.options import Several, write_json
from wv_shards import write_atomic

_EXAMPLES = """\b
Examples:
  wv-bench methods out --data DATA                            the core: worse and worse-skewed, two regimes, three seeds
  wv-bench methods out --data DATA --methods ce,gate --seeds 0-4 --regimes memorise
  wv-bench methods out --data DATA --tune --methods gate --sets worse --seeds 0
  wv-bench methods out --data DATA --show                     the tables of what is done so far
"""
_WIDTH = 150
"""Of tables that go to a file."""
_NOMINAL_RATE = 1_400.0
"""Images a second of the small network in training on a core, for the estimate before any run is done."""


class Seeds(click.ParamType[Any]):
    """`0-2` or `0,3,7`: a tuple of whole numbers."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        seeds: dict[int, None] = {}
        for part in str(value).split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and (not last.isdecimal() or int(last) < int(first))):
                self.fail(f"{value}: expected seeds as in 0-2 or 0,3,7", param, ctx)
            seeds |= dict.fromkeys(range(int(first), int(last or first) + 1))
        return tuple(seeds)


@click.command("methods", epilog=_EXAMPLES)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--data",
    "data_directory",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder with cifar10n_train.npz and cifar10n_test.npz. Only the set demo does without.",
)
@click.option(
    "--sets", type=Several(click.Choice(SETS)), metavar="NAME,…", default="worse,worse-skewed", show_default=True
)
@click.option(
    "--regimes",
    type=Several(click.Choice(tuple(REGIMES))),
    metavar="NAME,…",
    default="memorise,short",
    show_default=True,
    help="memorise: 5,000 images × 60 epochs. short: 20,000 × 16.",
)
@click.option(
    "--methods",
    "names",
    type=Several(click.STRING),
    metavar="NAME,…",
    default="core",
    show_default=True,
    help=f"core, all or some of {', '.join(METHODS)}.",
)
@click.option("--seeds", type=Seeds(), default="0-2", show_default=True, help="As 0-2 or 0,3,7.")
@click.option("--study", type=click.Choice(STUDIES), help="Instead of --methods: larger batches, or the gates' values.")
@click.option(
    "--tune", is_flag=True, help="Every value of a method's grid, scored on held-out samples with noisy labels."
)
@click.option("--holdout", type=click.FloatRange(0.01, 0.5), default=0.1, show_default=True, help="Of --tune.")
@click.option(
    "--published",
    is_flag=True,
    help="All images, 100 epochs, ResNet-34, on worse and random1, beside the figures of papers. For a GPU.",
)
@click.option("--bars", is_flag=True, help="Hold the results against the bars of the method: PASS, MISSED or missing.")
@click.option(
    "--best-gate",
    type=click.Choice((*GATES, *SKEW_GATES)),
    default="sce_then_gate",
    show_default=True,
    help="The gate that the bars are held against.",
)
@click.option("--epochs", type=click.IntRange(1), help="Instead of the regime's.")
@click.option("--images", type=click.IntRange(100, 50_000), help="Instead of the regime's.")
@click.option("--model", help="Instead of the small network.")
@click.option("--size-px", type=click.IntRange(8), help="Instead of 32.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Runs at once. Default: one for each core; one on a GPU.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each run.")
@click.option("--dry-run", is_flag=True, help="List the runs, and how long they may take.")
@click.option("--show", is_flag=True, help="Run nothing: show the tables of what is done, and write them to OUT.")
def command(
    out: Path,
    data_directory: Path | None,
    sets: tuple[str, ...],
    regimes: tuple[str, ...],
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    study: str | None,
    tune: bool,
    holdout: float,
    published: bool,
    bars: bool,
    best_gate: str,
    epochs: int | None,
    images: int | None,
    model: str | None,
    size_px: int | None,
    device: str,
    jobs: int | None,
    threads: int,
    dry_run: bool,
    show: bool,
) -> None:
    """Compare methods of learning from noisy labels, and write everything to OUT."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    if study is not None and tune:
        raise click.UsageError("--study and --tune: expected one of them")
    if bars and (epochs or images or model or tune or study or published):
        raise click.UsageError(
            "--bars are for the regimes as they are: without --epochs, --images, --model and the like"
        )
    if show and dry_run:
        raise click.UsageError("--show and --dry-run: expected one of them")
    if show and not out.is_dir():
        raise click.UsageError(f"--show {out}: no such folder, so there are no results yet")
    given = click.get_current_context().get_parameter_source
    if published and (named := [key for key in ("sets", "regimes") if given(key) is not ParameterSource.DEFAULT]):
        raise click.UsageError(f"--published names its sets and its regime itself: leave out --{named[0]}")
    if published:
        sets, regimes, model = ("worse", "random1"), ("published",), model or MODEL
    if model:
        from wv_train.models import own_size_px  # torch and timm: loaded where a model has to be looked up

        own_size_px(model)  # refuses a name that nobody knows, before anything is made
    source = Cifar10n(data_directory)
    setting = Setting(
        out=out.absolute(),
        model=model,
        size_px=size_px,
        device=device,
        holdout=holdout if tune else 0.0,
        epochs=epochs,
        images=images,
    )
    contestants = contestants_of_study(study) if study else (contestants_to_tune if tune else contestants_named)(names)
    runs = plan_runs(setting, sets, regimes, contestants, seeds, source.labels)
    jobs = jobs or (1 if device == "cuda" else len(os.sched_getaffinity(0)))
    if dry_run:
        _list(console, runs, jobs)
        return

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    about, plain = machine(("torch",)), study is None and not tune
    workers = None
    if not show:
        out.mkdir(parents=True, exist_ok=True)
        with _held(out):
            made = _make_sets(out, runs, source, console)
            workers = Workers(sets=made, machine=about, jobs=jobs, threads=threads, say=say)
            workers.work(runs)
            if plain:
                judge_ensembles(out, ensembles_of(runs, best_gate), made, say)
    results = read_results(run.result_file for run in runs)
    rows, ensembles = summarise(results), read_ensembles(out, ensembles_of(runs, best_gate)) if plain else []
    print_tables(console, rows, held_out=tune)
    print_beside(console, rows)
    lines = [ensemble_line(one) for one in ensembles]
    for line in lines:
        say(line)
    if tune:
        for line in best_values(rows):
            say(line)
    commits = list(dict.fromkeys(str(one["commit"]) for one in results))
    if len(commits) > 1:
        say(f"made by {len(commits)} states of the code: {', '.join(commits)}")
    verdicts = judge(results, ensembles, best_gate=best_gate) if plain else []
    if bars:
        _print_verdicts(console, verdicts)
    name = "tune" if tune else f"study-{study}" if study else "methods"
    told = [{**asdict(one), "word": one.word} for one in verdicts]
    figures = {"machine": about, "commits": commits, "rows": document(rows), "ensembles": ensembles, "verdicts": told}
    write_json(out / f"{name}.json", figures)
    write_atomic(out / f"{name}.html", page(rows, told if bars else [], about).encode())
    write_atomic(out / f"{name}.md", markdown(rows, told if bars else [], lines).encode())
    say(f"figures: {out / name}.json, page: {out / name}.html, for documents: {out / name}.md")
    if workers is not None and workers.failed:
        lost = [f"{run}: {workers.failed[run.result_file]}" for run in runs if run.result_file in workers.failed]
        raise click.ClickException(f"{len(lost)} of {len(runs)} runs failed:\n" + "\n".join(lost))


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """One benchmark at a time in a folder."""
    with (out / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(f"{out}: another wv-bench methods is at work here; --show looks at it") from None
        yield


def _make_sets(out: Path, runs: Sequence[Run], source: Cifar10n, console: Console) -> dict[tuple[str, str], Any]:
    folder = (out / "data").absolute()
    folder.mkdir(exist_ok=True)
    wanted = {(run.data, run.regime.name): run for run in runs}
    console.print(f"data in {folder}: {', '.join(f'{data} {regime}' for data, regime in wanted)}", highlight=False)
    return {key: make_set(folder, run.data, run.regime, source) for key, run in wanted.items()}


def _list(console: Console, runs: Sequence[Run], jobs: int) -> None:
    """What would run, with an estimate from the runs that are done, else from a nominal speed."""
    done = {run.result_file: run for run in runs if run.result_file.exists()}
    known = [
        (run.budget.steps * run.budget.batch_size, one["own_cost"]["wall_s"])
        for run, one in zip(done.values(), read_results(done), strict=True)
        if one["own_cost"]["wall_s"] is not None
    ]
    rate = sum(shows for shows, _ in known) / sum(wall for _, wall in known) if known else _NOMINAL_RATE
    seconds = 0.0
    for run in runs:
        mine = 0.0 if run.result_file in done else run.budget.steps * run.budget.batch_size / rate
        seconds += mine
        said = "done" if run.result_file in done else f"{run.budget.steps:,} steps, about {mine:.0f} s"
        console.print(f"{run}: {said}", highlight=False)
    source = f"{len(known)} runs that are done" if known else "a nominal speed of the small network"
    console.print(
        f"{len(runs)} runs, {len(done)} done; about {seconds / jobs / 60:.0f} minutes, {jobs} at once, by {source}",
        highlight=False,
    )


def _print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    table = Table(title="bars", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("", "bar", "data", "expected", "found"):
        table.add_column(heading)
    for one in verdicts:
        table.add_row(one.word, one.bar, one.data, one.expected, one.found)
    console.print(table)
    console.print("The bar of the suspects is judged by wv-bench suspects.", highlight=False)
