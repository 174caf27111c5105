"""`make demo`: the whole way on drawn data whose truth is known, by the commands that a user would type.

sample-data → build-shards → wv-train, plain and gated under one budget → wv-eval → wv-report. Each step says the
command that it runs. A step that is done already is not done again, so a stopped demo continues.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RUNS = {"plain": "demo-plain", "gated": "demo"}
"""Name of each run and its recipe; both take the same number of steps."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("demo"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn images, the shards and the training")
    arguments = parser.parse_args()
    root: Path = arguments.directory
    seed = str(arguments.seed)
    started = time.monotonic()
    raw, train, val = root / "raw", root / "train", root / "val"
    if not (raw / "truth.csv").exists():
        run("wv-ingest", "sample-data", raw, "--seed", seed)
    run("wv-ingest", "build-shards", raw, train, "--size", "48", "--seed", seed)
    run("wv-ingest", "build-shards", raw, val, "--size", "48", "--split", "val", "--classes-from", train)
    for name, recipe in RUNS.items():
        out = root / name
        if not finished(out):
            begin = (
                ["--resume"] if (out / "run.json").exists() else ["--shards", train, "--val", val, "--recipe", recipe]
            )
            run("wv-train", *begin, "--out", out, *([] if "--resume" in begin else ["--seed", seed]))
        run("wv-eval", "--run", out, "--shards", val)
    page = root / "report.html"
    run("wv-report", *(root / name for name in RUNS), "--truth", raw / "truth.csv", "--out", page)
    summarise(root, page, time.monotonic() - started)
    return 0


def run(command: str, *arguments: str | Path) -> None:
    """Run one of our commands as a user would; the demo ends where a command fails."""
    words = [command, *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    program = Path(sys.executable).parent / command
    done = subprocess.run([program, *words[1:]], check=False)  # noqa: S603 - our own commands
    if done.returncode:
        sys.exit(done.returncode)


def finished(out: Path) -> bool:
    """Whether a training run has taken its last step."""
    metrics = out / "metrics.jsonl"
    if not metrics.exists():
        return False
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    phases = json.loads((out / "run.json").read_text())["recipe"]["phases"]
    ended = {row["phase"] for row in rows if row["kind"] == "phase" and row["event"] == "end"}
    return ended == {phase["name"] for phase in phases}


def summarise(root: Path, page: Path, seconds: float) -> None:
    report: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())
    judged = {Path(row["run"]).name: row for row in report["runs"]}
    table = Table(title="learning all, or learning good?")
    for heading in ("", *RUNS):
        table.add_column(heading, justify="left" if not heading else "right")
    evals = {name: json.loads((root / name / "eval.json").read_text()) for name in RUNS}
    table.add_row("top-1 on clean images, mean of classes", *(f"{evals[name]['mean_class_top1']:.1%}" for name in RUNS))
    table.add_row("top-1 on clean images", *(f"{evals[name]['top1']:.1%}" for name in RUNS))
    table.add_row("wrong labels memorised", *(f"{judged[name]['memorised_fraction']:.1%}" for name in RUNS))
    for first in ("50", "200"):
        cells = (f"{judged[name]['suspects_precision'][first]:.1%}" for name in RUNS)
        table.add_row(f"really wrong among the {first} images least believed", *cells)
    table.add_row("really wrong by chance", *(f"{judged[name]['base_rate']:.1%}" for name in RUNS))
    console = Console()
    console.print()
    console.print(table)
    console.print(
        f"{seconds:.0f} s in all. The report, with the images that the models did not believe: {page}", highlight=False
    )


if __name__ == "__main__":
    sys.exit(main())
