"""`wv-annotate teacher`: a run's most probable classes of every sample, as soft labels."""

from pathlib import Path
from typing import Any

import click

from wv_train.annotate.cli_pass import PassOptions, pass_options, run_pass
from wv_train.annotate.teacher import KIND, TeacherOptions, teacher_look
from wv_train.errors import FieldError

EPILOG = """\b
Examples:
  wv-annotate teacher runs/clean --shards shards/train --out overlays/teacher
  wv-annotate teacher runs/gated --top-k 10 --temperature 4
"""


@click.command(epilog=EPILOG)
@pass_options
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes of each sample, at most all."
)
@click.option(
    "--temperature", type=float, default=2.0, show_default=True, help="Logits are divided by it before the softmax."
)
def command(run_path: Path, top_k: int, temperature: float, **options: Any) -> None:
    """Write the overlay `teacher`: the most probable classes of every sample and their probabilities, as RUN sees it.

    From the evaluation crop. Probabilities are of the softmax over all classes; the recipe's key [phases.teacher] says
    how they are mixed with the labels. A killed command goes on where it was.
    """
    try:
        teacher = TeacherOptions(top_k=top_k, temperature=temperature)
    except FieldError as error:
        raise click.UsageError(str(error)) from error
    run_pass(run_path, lambda trained: teacher_look(trained, teacher), KIND, PassOptions(**options))
