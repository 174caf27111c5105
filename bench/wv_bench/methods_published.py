"""Figures that papers give for CIFAR-10N, to stand beside ours from `wv-bench methods --published`.

Test accuracy of ResNet-34 after 100 epochs on all 50,000 images; theirs is of the best epoch, ours of the last, and our
test set is half of theirs.
"""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wv_bench.methods_results import Row
from wv_bench.methods_table import points

MODEL = "wv_resnet34_cifar"
PUBLISHED = {
    "worse": {"ce": 77.69, "gce": 80.66, "elr": 83.58, "co-teaching+": 83.26},
    "random1": {"ce": 85.02, "gce": 87.61, "elr": 91.46, "co-teaching+": 89.70},
}
"""Set → method → per cent, as collected in the benchmark's table (Wei et al., "Learning with Noisy Labels Revisited",
ICLR 2022)."""


def print_beside(console: Console, rows: Sequence[Row]) -> None:
    """Ours of the regime `published` beside theirs."""
    for data, theirs in PUBLISHED.items():
        ours = {
            (row.label, row.weights): row.measures["top1"]
            for row in rows
            if (row.data, row.regime) == (data, "published")
        }
        if not ours:
            continue
        table = Table(title=f"{data}: published, best epoch, and ours, last epoch", box=SIMPLE_HEAD)
        for heading in ("", "published", "ours", "ours, EMA"):
            table.add_column(heading, justify="right" if heading else "left")
        for label in dict.fromkeys((*theirs, *(label for label, _ in ours))):
            known = f"{theirs[label]:.2f}" if label in theirs else "–"
            table.add_row(label, known, points(ours.get((label, "model"))), points(ours.get((label, "ema"))))
        console.print(table)
