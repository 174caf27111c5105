"""`wv-bench`: every benchmark is a command in a file of its own, imported only when it is asked for.

So a benchmark may need what is not installed without taking the others along. Errors that a user can mend become one
line here, for all of them.
"""

import errno
from typing import Any

import click

from wv_loader import LoaderError
from wv_shards import ShardsError
from wv_train.errors import TrainError
from wv_train.lazy_group import LazyGroup

COMMANDS = {
    "components": ("wv_bench.components", "the loader's parts beside decoding: checksums, accounting, plan"),
    "duplicates": ("wv_bench.duplicates", "the search for duplicates: time, memory, recall against all pairs"),
    "first-batch": ("wv_bench.first_batch", "time to the first batch of a data set as large as WebVision"),
    "gil": ("wv_bench.gil", "how long the loader holds Python's lock, and the cores that a process can feed"),
    "gpu-check": ("wv_bench.gpu_check", "all that concerns a GPU, judged: does the loader keep it fed"),
    "ingest": ("wv_bench.ingest", "build-shards against bare loops, tar and webdataset.ShardWriter"),
    "ingest-plan": ("wv_bench.ingest_plan", "planning at WebVision's size: time, memory, bytes of index"),
    "loader": ("wv_bench.loader", "the loader against other loaders and the bare decoder"),
    "loader-sweep": ("wv_bench.loader_sweep", "settings of our loader against one another, on the CPU or a GPU"),
    "methods": ("wv_bench.methods", "noise-robust training: the gate and its rivals under one budget"),
    "plan": ("wv_bench.plan", "the epoch plan: exposures, shuffling, time and memory"),
    "suspects": ("wv_bench.suspects", "wrong labels found by a ledger, against cleanlab and the last loss"),
    "train": ("wv_bench.train", "training steps on images that lie ready, and on those of the loader"),
}
"""Command: module, which has it as `command`, and what it measures."""


class _Benchmarks(LazyGroup):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            return super().get_command(ctx, cmd_name)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"wv-bench {cmd_name} needs the package {error.name}, which is not installed"
            ) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ShardsError, LoaderError, TrainError) as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever reads the output has seen enough: click ends quietly
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from None


@click.group(cls=_Benchmarks, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure wv-toolkit: each command prints machine, versions and a ratio against its peer in the same run."""


if __name__ == "__main__":
    main()
