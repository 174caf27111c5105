"""`wv-bench loader`: our loader against the loaders that a user could take instead, on the same images and cores.

All give random resized crops, mirrored half of the time, in batches; each peer is written as its documentation
advises for speed (peers/, one file each). Ceilings are our engines' decoding alone. Everybody runs in a process of
their own; how they are measured is in loader_run.py.
"""

import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from wv_bench.loader_chart import chart
from wv_bench.loader_inputs import Inputs, prepare
from wv_bench.loader_peers import PEERS, environment, pillow_of
from wv_bench.loader_report import document, print_table
from wv_bench.loader_run import Contestant, Row, measure
from wv_bench.loader_sides import engines_on, gpu_of, machine_on, ours, some_cores, work_folder
from wv_bench.options import STDOUT, OutputFile, device_option, json_option, write_json

_BENCH_PYTHON = Path(".venv-bench/bin/python")


_EXAMPLES = """\b
Examples:
  wv-bench loader shards/train --only ours --only torch --chart loaders.html
  wv-bench loader shards/train --device cuda --cores 8 --max-samples 65536
"""


@click.command("loader", epilog=_EXAMPLES)
@click.argument("shards", type=click.Path(path_type=Path))
@device_option()
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
    device: Any,
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

    A peer that is not installed, or that fails, is a row with the reason. With `--device cuda` everybody's batches end
    on the GPU, which NVML watches; an epoch's time ends when the GPU has done its work.
    """
    console = Console(stderr=json_file == STDOUT)
    python = peer_python or (_BENCH_PYTHON if _BENCH_PYTHON.exists() else Path(sys.executable))
    python = Path(os.path.abspath(python))  # not resolved: a venv's python is a link
    with some_cores(cores) as held, work_folder(work) as kept:
        pillow = pillow_of(python)
        if device.type == "cpu":
            console.print(f"peers run on {pillow} ({_whose(python)})", highlight=False)
        gpu, notes = gpu_of(device)
        about = machine_on(device, gpu) | {"peers_pillow": pillow}
        logs = kept / "logs"
        logs.mkdir(exist_ok=True)
        inputs = prepare(shards, kept, max_samples)
        batches = min(inputs.samples, max_samples) // batch_size
        if not batches:
            raise click.UsageError(f"{inputs.samples} samples are less than a batch: lower --batch-size {batch_size}")
        setup: dict[str, Any] = {
            "size_px": size_px,
            "batch_size": batch_size,
            "batches": batches,
            "workers": held,
            "device": str(device),
        }
        chosen = [
            contestant
            for contestant in _contestants(shards.resolve(), inputs, setup, device.type, python, kept)
            if not only or any(text.lower() in contestant.label.lower() for text in only)
        ]
        if not chosen:
            raise click.UsageError(f"nobody's name has {' or '.join(only)} in it")
        title = (
            f"{batches * batch_size:,} images an epoch, of {inputs.set_samples:,} in the set, "
            f"{1000 * inputs.mb / inputs.samples:.1f} KB each, to {size_px} px, batch {batch_size}, {held} cores"
        )

        def figures(rows: list[Row], rounds: int) -> dict[str, Any]:
            return document(f"{title}, {rounds} round{'s' * (rounds != 1)}", rows, about, notes)

        def keep(rows: list[Row], rounds: int) -> None:
            if json_file != STDOUT:
                write_json(json_file, figures(rows, rounds))  # a run that is stopped keeps what it has

        rows = measure(
            chosen,
            repeats=repeats,
            watched_epochs=epochs_rss,
            logs=logs,
            timeout_s=timeout,
            after_round=keep,
            gpu=gpu,
        )
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


def _contestants(
    shards: Path, inputs: Inputs, setup: dict[str, Any], device: str, python: Path, work: Path
) -> list[Contestant]:
    """Everybody: ours, ceilings, the reading rate, peers whose batches are on such a device."""
    peer_environment = environment(work)
    return [
        *(ours(f"ours, {engine}", shards, inputs, setup, engine=engine) for engine in engines_on(device)),
        *(
            ours(f"decode alone, {engine}", shards, inputs, setup, engine=engine, kind="ceiling", what="decode")
            for engine in engines_on(device)
            if not engine.startswith("dali")  # these decode whole batches, and nothing alone
        ),
        ours("read alone", shards, inputs, setup, engine="auto", kind="reading", what="read"),
        *(
            Contestant(
                name=peer.name,
                kind="peer",
                dtype=peer.dtype,
                command=(sys.executable if peer.ours else str(python), "-m", f"wv_bench.peers.{peer.module}"),
                setup={**setup, **inputs.as_setup(), "work": str(inputs.root / peer.module), "dtype": peer.dtype},
                environment=peer_environment,
                writes=peer.writes,
            )
            for peer in PEERS
            if peer.device == device
        ),
        *([_dali_reader(inputs, setup)] if device == "cpu" else []),
    ]


def _dali_reader(inputs: Inputs, setup: dict[str, Any]) -> Contestant:
    """DALI's reader before our operators, on this interpreter: what `ours, dali-cpu` is to be held against."""
    return Contestant(
        name="DALI reader, our ops",
        kind="peer",
        dtype="uint8",
        command=(sys.executable, "-m", "wv_bench.loader_dali_reader"),
        setup={**setup, **inputs.as_setup(), "work": str(inputs.root), "dtype": "uint8"},
        environment=dict(os.environ),
    )
