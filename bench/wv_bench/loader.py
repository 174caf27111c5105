"""`wv-bench loader`: our loader against the loaders that a user could take instead, on the same images and cores.

All give random resized crops, mirrored half of the time, in batches; each peer is written as its documentation
advises for speed (peers/, one file each). Ceilings are our engines' decoding alone. Everybody runs in a process of
their own; how they are measured is in loader_run.py.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from wv_bench.loader_chart import chart
from wv_bench.loader_inputs import Inputs, prepare
from wv_bench.loader_peers import PEERS, environment, pillow_of
from wv_bench.loader_report import document, print_table
from wv_bench.loader_run import Contestant, Row, measure
from wv_bench.measure import machine
from wv_bench.options import STDOUT, OutputFile, json_option, write_json
from wv_loader import ENGINES

_BENCH_PYTHON = Path(".venv-bench/bin/python")


@click.command("loader", epilog="Example: wv-bench loader shards/train --only ours --only torch --chart loaders.html")
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--size-px", type=click.IntRange(1), default=224, show_default=True, help="Side of the images.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--cores",
    type=click.IntRange(1),
    help="Cores that everybody is held to, and workers or threads of each. Default: all that this process may use.",
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Timed rounds.")
@click.option(
    "--max-samples",
    type=click.IntRange(1),
    default=8192,
    show_default=True,
    help="Samples of an epoch, at most; whole batches are shown.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="TEXT",
    help='Only contestants with this in their name: ours, alone, "torch DataLoader, uint8" … May be given again.',
)
@click.option(
    "--peer-python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Interpreter that has the peers. Default: that of `make bench-setup`, if it is here; else this one.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the images as a folder and the peers' formats here. Default: a temporary folder.",
)
@click.option(
    "--epochs-rss",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Epochs over which each one's memory is watched, before the timed ones.",
)
@click.option("--timeout", type=click.IntRange(1), default=600, show_default=True, help="Seconds for one answer.")
@json_option()
@click.option("--chart", "chart_file", type=OutputFile(suffix=".html"), help="Write a chart (HTML).")
def command(
    shards: Path,
    size_px: int,
    batch_size: int,
    cores: int | None,
    repeats: int,
    max_samples: int,
    only: tuple[str, ...],
    peer_python: Path | None,
    work: Path | None,
    epochs_rss: int,
    timeout: int,
    json_file: Path | None,
    chart_file: Path | None,
) -> None:
    """Images a second, processor time, memory and time to the first batch: ours, its ceilings, and other loaders.

    A peer that is not installed, or that fails, is a row with the reason.
    """
    allowed = os.sched_getaffinity(0)
    cores = cores or len(allowed)
    if cores > len(allowed):
        raise click.UsageError(f"--cores {cores}: this process may use {len(allowed)}")
    console = Console(stderr=json_file == STDOUT)
    python = peer_python or (_BENCH_PYTHON if _BENCH_PYTHON.exists() else Path(sys.executable))
    python = Path(os.path.abspath(python))  # not resolved: a venv's python is a link
    pillow = pillow_of(python)
    console.print(f"peers run on {pillow} ({_whose(python)})", highlight=False)
    about = machine(("torch", "numpy"))
    about |= {"cores": cores, "load": round(os.getloadavg()[0], 2), "peers_pillow": pillow}
    kept = work if work is not None else Path(tempfile.mkdtemp(prefix="wv-bench-"))
    try:
        os.sched_setaffinity(0, sorted(allowed)[:cores])
        logs = kept.resolve() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        inputs = prepare(shards, kept.resolve(), max_samples)
        batches = min(inputs.samples, max_samples) // batch_size
        if not batches:
            raise click.UsageError(f"{inputs.samples} samples are less than a batch: lower --batch-size {batch_size}")
        setup = {"size_px": size_px, "batch_size": batch_size, "batches": batches, "workers": cores}
        chosen = [
            contestant
            for contestant in _contestants(shards.resolve(), inputs, setup, python, kept.resolve())
            if not only or any(text.lower() in contestant.label.lower() for text in only)
        ]
        if not chosen:
            raise click.UsageError(f"nobody's name has {' or '.join(only)} in it")
        title = (
            f"{batches * batch_size:,} images an epoch, of {inputs.set_samples:,} in the set, "
            f"{1000 * inputs.mb / inputs.samples:.1f} KB each, to {size_px} px, batch {batch_size}, {cores} cores"
        )

        def figures(rows: list[Row], rounds: int) -> dict[str, Any]:
            return document(f"{title}, {rounds} round{'s' * (rounds != 1)}", rows, about)

        def keep(rows: list[Row], rounds: int) -> None:
            if json_file != STDOUT:
                write_json(json_file, figures(rows, rounds))  # a run that is stopped keeps what it has

        rows = measure(
            chosen, repeats=repeats, watched_epochs=epochs_rss, logs=logs, timeout_s=timeout, after_round=keep
        )
    finally:
        os.sched_setaffinity(0, allowed)
        if work is None:
            shutil.rmtree(kept, ignore_errors=True)
    result = figures(rows, repeats)
    if chart_file is not None:
        chart_file.write_text(chart(result))
    if write_json(json_file, result):
        print_table(console, result)


def _whose(python: Path) -> str:
    if python == Path(os.path.abspath(_BENCH_PYTHON)):
        return "of `make bench-setup`"
    if python == Path(sys.executable):
        return "this interpreter's own packages: `make bench-setup` installs the peers"
    return "of --peer-python"


def _contestants(shards: Path, inputs: Inputs, setup: dict[str, Any], python: Path, work: Path) -> list[Contestant]:
    """Everybody: ours, ceilings, the reading rate, peers."""
    images = {"folder": str(inputs.folder), "tars": [str(tar) for tar in inputs.tars], "samples": inputs.samples}

    def ours(name: str, kind: str, what: str, engine: str) -> Contestant:
        task = {"what": what, "engine": engine}
        return Contestant(
            name=name,
            kind=kind,
            dtype="" if kind == "reading" else "uint8",
            command=(sys.executable, "-m", "wv_bench.loader_ours"),
            setup={**setup, **images, "work": str(inputs.root), "dtype": "uint8", "shards": str(shards), **task},
            environment=dict(os.environ),
            engine=engine,
        )

    engines = [engine for engine in ENGINES if engine in ("turbo", "pillow")]
    peer_environment = environment(work)
    return [
        *(ours(f"ours, {engine}", "ours", "loader", engine) for engine in engines),
        *(ours(f"decode alone, {engine}", "ceiling", "decode", engine) for engine in engines),
        ours("read alone", "reading", "read", "auto"),
        *(
            Contestant(
                name=peer.name,
                kind="peer",
                dtype=peer.dtype,
                command=(str(python), "-m", f"wv_bench.peers.{peer.module}"),
                setup={**setup, **images, "work": str(inputs.root / peer.module), "dtype": peer.dtype},
                environment=peer_environment,
                writes=peer.writes,
            )
            for peer in PEERS
        ),
    ]
