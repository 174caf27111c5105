"""How the time of Python's lock is told from the rest."""

import json
import time
from pathlib import Path

from click.testing import CliRunner

from wv_bench.cli import main
from wv_bench.gil import gil_use

CPU_S = 0.05


class Library:
    """One function stands for a call that gives the lock away, the other for Python."""

    @staticmethod
    def decode() -> None:
        Library.burn()

    @staticmethod
    def burn() -> None:
        end = time.thread_time() + CPU_S
        while time.thread_time() < end:
            pass


def test_only_what_gives_the_lock_away_is_not_counted() -> None:
    def work() -> int:
        Library.decode()
        Library.burn()
        Library.burn()
        return 3

    use = gil_use(work, [(Library, "decode")])
    assert use.items == 3
    assert CPU_S <= use.free_s < 2 * CPU_S
    assert 2 * CPU_S <= use.gil_s < use.cpu_s
    assert use.cores == use.cpu_s / use.gil_s
    both = gil_use(work, [(Library, "decode"), (Library, "burn")])  # one within the other counts once
    assert 3 * CPU_S <= both.free_s <= both.cpu_s * 1.1


def test_the_command_says_how_many_cores_a_process_can_feed(small_dataset: Path) -> None:
    arguments = ["gil", str(small_dataset), "--engine", "pillow", "--size-px", "32", "--batch-size", "16"]
    done = CliRunner().invoke(main, [*arguments, "--batches", "4"])
    assert done.exit_code == 0, done.output
    assert "one process can feed" in done.output
    result = json.loads(CliRunner().invoke(main, [*arguments, "--batches", "2", "--json"]).output)
    assert result["images"] == 32
    assert 0 < result["gil_us_per_image"] < result["cpu_us_per_image"]


def test_slots_without_an_image_do_not_count(small_dataset: Path) -> None:
    arguments = ["gil", str(small_dataset), "--engine", "pillow", "--size-px", "8", "--batch-size", "160"]
    result = json.loads(CliRunner().invoke(main, [*arguments, "--batches", "2", "--json"]).output)
    assert result["images"] == 239  # a batch of 160 and one of 79
