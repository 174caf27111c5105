"""`wv-report`: one page that shows what runs did and which images they did not believe. `report` does the work."""

from pathlib import Path
from typing import Any

import click

from wv_train.command_line import run_command
from wv_train.report import write_report

EPILOG = """\b
Examples:
  wv-report runs/gated
  wv-report runs/plain runs/gated --truth raw/truth.csv --out report.html
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The page. One run: RUN/report.html.")
@click.option(
    "--truth",
    "truth_path",
    type=click.Path(path_type=Path),
    help="CSV with path, label, true_label: judge the suspects.",
)
@click.option("--shards", type=click.Path(path_type=Path), help="Where the runs' shards are now, if they were moved.")
@click.version_option(package_name="wv-toolkit")
def command(runs: tuple[Path, ...], out: Path | None, truth_path: Path | None, shards: Path | None) -> None:
    """Write a page of one file about RUN, or about several compared: classes, curves, evaluation, suspects.

    The same numbers go into a JSON file beside the page.
    """
    if out is None:
        if len(runs) > 1:
            raise click.UsageError(f"expected --out FILE where {len(runs)} runs share a page")
        out = runs[0] / "report.html"
    if out.suffix not in (".html", ".htm"):
        raise click.UsageError(f"expected --out to end in .html, got {out.name}")
    document = write_report(runs, out, truth_path=truth_path, shards=shards)
    for numbers in document["runs"]:
        if numbers["base_rate"] is not None:
            click.echo(_judgement_text(numbers))
    click.echo(f"report: {out}")


def main() -> None:
    """Entry point: exit code 0 done, 1 failed, 2 wrong usage; errors are one line."""
    run_command("wv-report", command)


def _judgement_text(numbers: dict[str, Any]) -> str:
    precision = ", ".join(f"first {name} {share:.0%}" for name, share in numbers["suspects_precision"].items())
    memorised, auroc = numbers["memorised_fraction"], numbers["auroc"]
    return (
        f"{numbers['run']}: suspects really wrong: {precision}; by chance {numbers['base_rate']:.0%}; "
        f"AUROC {'–' if auroc is None else f'{auroc:.3f}'}; "
        f"wrong labels memorised {'–' if memorised is None else f'{memorised:.0%}'}"
    )
