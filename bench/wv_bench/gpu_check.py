"""`wv-bench gpu-check`: whether our loader keeps a GPU fed, measured and judged by one command.

It runs the other commands, each in a process of its own and with `--json`, on at most eight cores: the settings' sweep,
the loaders' table, then training with the best settings. It measures nothing itself.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.gpu_check_data import make_sets
from wv_bench.gpu_check_page import page
from wv_bench.gpu_check_verdict import MOST_CORES, Verdict, judge
from wv_bench.loader_sides import gpu_of, machine_on, some_cores
from wv_bench.options import Several, device_option, write_json
from wv_loader import ENGINES
from wv_shards import Dataset

_EXAMPLES = """\b
Examples:
  wv-bench gpu-check                              makes its data
  wv-bench gpu-check shards/train --out check     on data of your own
"""


@click.command("gpu-check", epilog=_EXAMPLES)
@click.argument("shards", required=False, type=click.Path(path_type=Path))
@device_option(default="cuda")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="gpu-check",
    show_default=True,
    help="Folder for gpu-check.json, gpu-check.html, every command's figures and charts, and the data that is made.",
)
@click.option("--ready", is_flag=True, help="Only look whether the device is here.")
@click.option(
    "--engine", type=click.Choice(ENGINES[1:]), help="Decoder to be judged. Default: dali-gpu on CUDA, else turbo."
)
@click.option(
    "--cores",
    type=click.IntRange(1, MOST_CORES),
    help=f"Cores to be held to. Default: all that this process may use, at most {MOST_CORES}.",
)
@click.option("--model", default="resnet50", show_default=True)
@click.option("--size-px", type=click.IntRange(1), default=224, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--threads", type=Several(click.IntRange(1)), metavar="N,…", help="To sweep. Default: half the cores, all."
)
@click.option(
    "--hw-decoder-load", metavar="F,…", default="0,0.65,0.9", show_default=True, help="To sweep, of dali-gpu."
)
@click.option("--region", metavar="yes,no", default="yes,no", show_default=True, help="To sweep; of DALI's engines.")
@click.option("--only", multiple=True, metavar="TEXT", help="As of wv-bench loader: fewer contestants in its table.")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Training steps of a turn.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Rounds of everything.")
@click.option("--max-samples", type=click.IntRange(1), default=16384, show_default=True, help="Of a loader's epoch.")
@click.option("--samples", type=click.IntRange(100), default=65536, show_default=True, help="Of each set that is made.")
@click.option("--distinct", type=click.IntRange(10), default=2000, show_default=True, help="Pictures among them.")
def command(
    shards: Path | None,
    device: Any,
    out: Path,
    ready: bool,
    engine: str | None,
    cores: int | None,
    model: str,
    size_px: int,
    batch_size: int,
    threads: tuple[int, ...] | None,
    hw_decoder_load: str,
    region: str,
    only: tuple[str, ...],
    steps: int,
    repeats: int,
    max_samples: int,
    samples: int,
    distinct: int,
) -> None:
    """Sweep, loaders' table and training on a GPU, judged: PASS or MISSED for each bar.

    Bars, on at most 8 cores: the loader alone gives 1.15 times what the model consumes; training with the loader keeps
    0.98 of training on a synthetic batch. Exit code 0 only if all are reached. `--device cpu` is a dry run.
    """
    engine = engine or ("dali-gpu" if device.type == "cuda" else "turbo")
    console = Console()
    if engine == "dali-gpu" and device.type != "cuda":
        raise click.UsageError(f"--engine dali-gpu decodes on a GPU, found --device {device}")
    if ready:
        import torch  # `--help` does without its seconds

        console.print(
            f"{device}: {torch.cuda.get_device_name(str(device)) if device.type == 'cuda' else 'the dry run'}"
        )
        return
    if shards is not None:
        with Dataset.open(shards):
            pass  # refused before anything is measured
    out.mkdir(parents=True, exist_ok=True)
    with some_cores(cores, most=MOST_CORES) as held:
        gpu, notes = gpu_of(device)
        about = machine_on(device, gpu)
        for note in notes:
            console.print(note, highlight=False)
        sets = {"your shards": shards.resolve()} if shards else None
        if sets is None:
            console.print(f"making data in {out / 'data'}", highlight=False)
            (out / "data").mkdir(exist_ok=True)
            sets = make_sets((out / "data").resolve(), samples=samples, distinct=distinct)
        common = ("--device", str(device), "--size-px", size_px, "--batch-size", batch_size, "--repeats", repeats)
        sweep: list[object] = ["--engine", engine, "--threads", _commas(threads or sorted({(held + 1) // 2, held}))]
        if engine == "dali-gpu":
            sweep += ["--hw-decoder-load", hw_decoder_load]
        if engine.startswith("dali"):
            sweep += ["--region", region]
        loading = ("--max-samples", max_samples)
        contestants = [word for text in only for word in ("--only", text)]
        training = ("--model", model, "--steps", steps)
        check = Check(out=out, say=lambda line: console.print(line, highlight=False, markup=False))
        verdicts: list[Verdict] = []
        for number, (name, path) in enumerate(sets.items()):
            swept = check.run(f"sweep-{number}", name, ["loader-sweep", path, *common, *sweep, *loading], chart=True)
            check.run(f"loader-{number}", name, ["loader", path, *common, *loading, *contestants], chart=True)
            best = _best(engine, swept)
            trained = check.run(f"train-{number}", name, ["train", path, *common, *training, *best])
            verdicts += judge(name, trained, check.problem)
    result = {
        "machine": about,
        "verdicts": [{**asdict(verdict), "verdict": verdict.word} for verdict in verdicts],
        "runs": check.runs,
    }
    write_json(out / "gpu-check.json", result)
    (out / "gpu-check.html").write_text(page(result))
    _print(console, verdicts)
    console.print(f"figures: {out / 'gpu-check.json'}, page: {out / 'gpu-check.html'}", highlight=False)
    if not all(verdict.passed for verdict in verdicts):
        raise click.ClickException(f"{sum(not verdict.passed for verdict in verdicts)} of {len(verdicts)} bars missed")


@dataclass(kw_only=True, slots=True)
class Check:
    """Runs commands and keeps what they found."""

    out: Path
    say: Callable[[str], None]
    runs: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    """Why the last command failed; empty: it did not."""

    def run(self, name: str, data: str, words: Sequence[object], *, chart: bool = False) -> dict[str, Any] | None:
        """Run a command of wv-bench, its text going where ours goes: its figures, or None where it failed."""
        file = self.out / f"{name}.json"
        file.unlink(missing_ok=True)
        arguments = [*map(str, words), "--json", str(file)]
        if chart:
            arguments += ["--chart", str(self.out / f"{name}.html")]
        self.say(f"\n$ wv-bench {' '.join(arguments)}")
        sys.stdout.flush()
        started = time.monotonic()
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "wv_bench.cli", *arguments], stderr=subprocess.PIPE, text=True, check=False
        )
        sys.stderr.write(done.stderr)
        lines = done.stderr.strip().splitlines()
        self.problem = "" if not done.returncode else lines[-1] if lines else f"ended with {done.returncode}"
        figures = json.loads(file.read_text()) if file.exists() and not done.returncode else None
        self.runs.append(
            {
                "name": name,
                "data": data,
                "seconds": round(time.monotonic() - started, 1),
                "problem": self.problem,
                "chart": f"{name}.html" if chart and figures is not None else None,
                "figures": figures,
            }
        )
        return figures


def _best(engine: str, swept: dict[str, Any] | None) -> list[object]:
    """The best settings of a sweep as options of `wv-bench train`; the defaults where it found none."""
    settings = swept and swept["best_settings"]
    if not settings:
        return ["--engine", engine]
    options: list[object] = ["--engine", settings["engine"], "--threads", settings["threads"]]
    if "hw_decoder_load" in settings["dali"]:
        options += ["--hw-decoder-load", settings["dali"]["hw_decoder_load"]]
    if "region" in settings["dali"]:
        options += ["--region" if settings["dali"]["region"] else "--whole-images"]
    return options


def _commas(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _print(console: Console, verdicts: Sequence[Verdict]) -> None:
    table = Table(title="verdict", box=SIMPLE_HEAD, padding=0)
    for heading in ("", "data", "bar", "found", "least"):
        table.add_column(heading, justify="right" if heading in ("found", "least") else "left")
    for verdict in verdicts:
        found = "–" if verdict.found is None else f"{verdict.found:.3f}"
        table.add_row(verdict.word, verdict.data, verdict.bar, found, f"{verdict.least:.2f}")
    console.print(table)
    for verdict in verdicts:
        console.print(str(verdict), highlight=False, markup=False)
