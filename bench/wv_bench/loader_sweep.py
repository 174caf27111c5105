"""`wv-bench loader-sweep`: which settings of our loader are the fastest on a machine.

Every combination of the values given is timed in a process of its own, one at a time, round after round. What the other
loaders do with the same images is `wv-bench loader`'s affair.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from wv_bench.loader_chart import chart
from wv_bench.loader_inputs import Inputs, prepare
from wv_bench.loader_report import document, print_table
from wv_bench.loader_run import Contestant, Row, measure_apart
from wv_bench.loader_sides import engines_on, gpu_of, machine_on, ours, some_cores, work_folder
from wv_bench.options import STDOUT, OutputFile, Several, device_option, json_option, write_json

_EXAMPLES = """\b
Examples:
  wv-bench loader-sweep shards/train --engine turbo --threads 1,2 --batch-size 128,256
  wv-bench loader-sweep shards/train --device cuda --engine dali-gpu --cores 8 --threads 2,4,8 \\
      --hw-decoder-load 0,0.65,0.9 --region yes,no --chart sweep.html
"""


@click.command("loader-sweep", epilog=_EXAMPLES)
@click.argument("shards", type=click.Path(path_type=Path))
@device_option()
@click.option("--engine", help="Decoder: turbo, pillow, dali-cpu or dali-gpu. Default: dali-gpu on CUDA, else turbo.")
@click.option(
    "--threads", type=Several(click.IntRange(1)), metavar="N,…", help="Decoding threads. Default: as many as cores."
)
@click.option("--batch-size", type=Several(click.IntRange(1)), metavar="N,…", default="256", show_default=True)
@click.option(
    "--hw-decoder-load",
    type=Several(click.FloatRange(0, 1)),
    metavar="F,…",
    help="Share of a batch that the GPU's JPEG engine decodes. Of dali-gpu alone.",
)
@click.option(
    "--region",
    type=Several(click.Choice(("yes", "no"))),
    metavar="yes,no",
    help="Whether only the crop's region is decoded. Of DALI's engines alone.",
)
@click.option("--size-px", type=click.IntRange(1), default=224, show_default=True, help="Side of the images.")
@click.option("--cores", type=click.IntRange(1), help="Cores to be held to. Default: all that this process may use.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Timed rounds.")
@click.option(
    "--max-samples", type=click.IntRange(1), default=8192, show_default=True, help="Samples of an epoch, at most."
)
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Keep the processes' logs here."
)
@click.option("--timeout", type=click.IntRange(1), default=600, show_default=True, help="Seconds for one answer.")
@json_option()
@click.option("--chart", "chart_file", type=OutputFile(suffix=".html"), help="Write a chart (HTML).")
def command(
    shards: Path,
    device: Any,
    engine: str | None,
    threads: tuple[int, ...] | None,
    batch_size: tuple[int, ...],
    hw_decoder_load: tuple[float, ...] | None,
    region: tuple[str, ...] | None,
    size_px: int,
    cores: int | None,
    repeats: int,
    max_samples: int,
    work: Path | None,
    timeout: int,
    json_file: Path | None,
    chart_file: Path | None,
) -> None:
    """Images a second and processor time of our loader, for every combination of the values given.

    Lists have commas between their values. A combination that fails is a row with the reason.
    """
    engine = _engine(engine, device.type)
    if region and not engine.startswith("dali"):
        raise click.UsageError(
            f"--region is of dali-cpu and dali-gpu: engine {engine} reads what its crop needs anyway"
        )
    if hw_decoder_load and engine != "dali-gpu":
        raise click.UsageError(f"--hw-decoder-load is of dali-gpu: engine {engine} has no such decoder")
    console = Console(stderr=json_file == STDOUT)
    with some_cores(cores) as held, work_folder(work) as kept:
        gpu, notes = gpu_of(device)
        about = machine_on(device, gpu)
        inputs = prepare(shards, kept, max_samples, folder=False)
        most = min(inputs.samples, max_samples)
        if most < max(batch_size):
            raise click.UsageError(f"{most} samples are less than a batch: lower --batch-size {max(batch_size)}")
        common = {"size_px": size_px, "device": str(device)}
        dali = _combinations({"hw_decoder_load": hw_decoder_load, "region": _booleans(region)})
        chosen = [
            _contestant(engine, count, size, options, shards.resolve(), inputs, common, most)
            for count, size, options in product(threads or (held,), batch_size, dali)
        ]
        title = (
            f"engine {engine} on {device}: about {most:,} images an epoch, of {inputs.set_samples:,} in the set, "
            f"{1000 * inputs.mb / inputs.samples:.1f} KB each, to {size_px} px, {held} cores"
        )

        def figures(rows: list[Row], rounds: int) -> dict[str, Any]:
            result = document(f"{title}, {rounds} round{'s' * (rounds != 1)}", rows, about, notes)
            return result | {"best_settings": _settings(chosen, result["best"])}

        def keep(rows: list[Row], rounds: int) -> None:
            if json_file != STDOUT:
                write_json(json_file, figures(rows, rounds))  # a run that is stopped keeps what it has

        rows = measure_apart(chosen, repeats=repeats, logs=kept, timeout_s=timeout, after_round=keep, gpu=gpu)
    result = figures(rows, repeats)
    if chart_file is not None:
        chart_file.write_text(chart(result, "loader-sweep"))
    if write_json(json_file, result):
        print_table(console, result)
    if result["best"] is None:
        raise click.ClickException(f"no combination ran, the first because it {result['rows'][0]['reason']}")
    console.print(f"best: {result['best']}", highlight=False)


def _engine(name: str | None, device: str) -> str:
    known = engines_on(device)
    if name is None:
        return "dali-gpu" if "dali-gpu" in known else "turbo"
    if name not in known:
        needs = " needs --device cuda" if name in engines_on("cuda") else f": expected one of {', '.join(known)}"
        raise click.UsageError(f"--engine {name}{needs}")
    return name


def _booleans(words: Sequence[str] | None) -> tuple[bool, ...] | None:
    return None if words is None else tuple(word == "yes" for word in words)


def _combinations(values: Mapping[str, Sequence[Any] | None]) -> list[dict[str, Any]]:
    """Every combination of the options that values were given for; the others keep their defaults."""
    given = {name: options for name, options in values.items() if options is not None}
    return [dict(zip(given, chosen, strict=True)) for chosen in product(*given.values())]


def _contestant(
    engine: str,
    threads: int,
    batch_size: int,
    dali: dict[str, Any],
    shards: Path,
    inputs: Inputs,
    common: dict[str, Any],
    samples: int,
) -> Contestant:
    """The loader with one combination of settings, over as many whole batches as the samples give."""
    name = [f"{threads} thread{'s' * (threads != 1)}", f"batch {batch_size}"]
    if "hw_decoder_load" in dali:
        name.append(f"JPEG engine {dali['hw_decoder_load']:g}")
    if "region" in dali:
        name.append("region" if dali["region"] else "whole images")
    setup = {**common, "batch_size": batch_size, "batches": samples // batch_size, "workers": threads}
    return ours(", ".join(name), shards, inputs, setup, engine=engine, dali=dali)


def _settings(chosen: Sequence[Contestant], label: str | None) -> dict[str, Any] | None:
    """Those of a contestant, for whoever goes on with them."""
    for contestant in chosen:
        if contestant.label == label:
            setup = contestant.setup
            return {
                "engine": setup["engine"],
                "threads": setup["workers"],
                "batch_size": setup["batch_size"],
                "dali": setup["dali"],
            }
    return None
