"""`wv-annotate`: every overlay is a command in a file of its own, imported only when it is asked for.

So what one of them needs (faiss, pyarrow) is not loaded for the others.
"""

import click

from wv_train.command_line import run_command
from wv_train.lazy_group import LazyGroup

COMMANDS = {
    "clusters": ("wv_train.annotate.cli_clusters", "k-means of features: clusters to learn in place of classes"),
    "curriculum": ("wv_train.annotate.cli_curriculum", "tiers of each class by density: easy, middle, hard"),
    "features": ("wv_train.annotate.cli_features", "what a run's head sees of every sample"),
    "teacher": ("wv_train.annotate.cli_teacher", "a run's most probable classes of every sample, as soft labels"),
    "exclude": ("wv_train.annotate.exclude", "the worst suspects as an overlay for wv-train --exclude"),
    "suspects": ("wv_train.annotate.suspects", "how probably each label is wrong, by a run's ledger"),
}
"""Command: module, which has it as `command`, and what it makes."""


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wv-toolkit")
def command() -> None:
    """Make overlays: files beside the shards that say something about every sample. docs/overlays.md describes each.

    A command that was killed goes on where it was when it is started again; an overlay is there whole or not at all.
    """


def main() -> None:
    """Entry point: exit code 0 done, 1 failed, 2 wrong usage; errors are one line."""
    run_command("wv-annotate", command)


if __name__ == "__main__":
    main()
