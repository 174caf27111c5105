"""`wv-bench loader`: real peers as real processes, every failure a row, and figures that mean what they say."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import PIL
import pytest
from click.testing import CliRunner, Result

from wv_bench import cli
from wv_bench.loader_report import cpu_text, document
from wv_bench.loader_run import Contestant, Row, measure

SETUP = {"folder": "", "tars": [], "work": "", "samples": 8, "size_px": 8, "batch_size": 2, "batches": 4, "workers": 1,
         "dtype": "uint8"}  # fmt: skip
PEER = """
import sys
from wv_bench.peers.protocol import Setup, serve
setup = Setup.parse(sys.argv[1])
def epoch(number):
{epoch}
serve(setup, ("numpy",), lambda data: epoch)
"""


def peer(epoch: str, name: str = "peer", before: str = "") -> Contestant:
    """A peer whose epochs run this code."""
    script = before + PEER.format(epoch=textwrap.indent(textwrap.dedent(epoch).strip(), "    "))
    return Contestant(
        name=name,
        kind="peer",
        dtype="uint8",
        command=(sys.executable, "-c", script),
        setup=SETUP,
        environment=dict(os.environ),
    )


def measured(
    tmp_path: Path,
    *contestants: Contestant,
    repeats: int = 1,
    timeout_s: float = 30,
    after_round: Callable[[list[Row], int], None] = lambda _rows, _rounds: None,
) -> list[Row]:
    return measure(
        contestants, repeats=repeats, watched_epochs=1, logs=tmp_path, timeout_s=timeout_s, after_round=after_round
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["loader", *map(str, arguments)])


class Page(HTMLParser):
    """Tags that were opened and not closed, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.rects = 0

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:  # noqa: ARG002 - its own
        self.rects += tag == "rect"
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_ours_and_torch_run_and_an_absent_peer_is_a_row(small_dataset: Path, tmp_path: Path) -> None:
    result = run(
        small_dataset, "--size-px", 16, "--batch-size", 32, "--repeats", 2, "--cores", 1,
        "--only", "ours, pillow", "--only", "torch DataLoader, uint8", "--only", "LitData",
        "--peer-python", sys.executable, "--json", tmp_path / "figures.json", "--chart", tmp_path / "chart.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = {row["label"]: row for row in figures["rows"]}
    assert set(rows) == {"ours, pillow", "torch DataLoader, uint8", "LitData, uint8"}
    assert rows["LitData, uint8"]["status"] == "skipped"
    assert "skipped: LitData, uint8: No module named 'litdata'" in result.output
    for label in ("ours, pillow", "torch DataLoader, uint8"):
        row = rows[label]
        assert row["status"] == "ok"
        assert len(row["rates"]) == 2
        assert min(row["cpu_s_per_1000"], row["peak_pss_mb"], row["first_batch_s"], row["rate_min"]) > 0
        shown = next(line for line in result.output.splitlines() if label in line)
        assert f"{row['rate_median']:,.0f}" in shown
        assert f"{row['peak_pss_mb']:,.0f}" in shown
        assert f"{row['ours_over_this']['median']:.2f}" in shown
    page = Page()
    page.feed((tmp_path / "chart.html").read_text())
    assert page.open == []
    assert page.rects == 2
    for text in (figures["title"], figures["machine"]["peers_pillow"]):
        assert text in page.text
        assert text in " ".join(result.output.split())
    assert "224 images an epoch, of 239 in the set" in figures["title"]
    assert PIL.__version__ in figures["machine"]["peers_pillow"]
    assert f"{rows['ours, pillow']['rate_median']:,.0f}" in page.text
    assert "No module named 'litdata'" in page.text


def test_whatever_a_peer_does_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    good, absent, broken, late, silent, empty = measured(
        tmp_path,
        peer("for _ in range(4): yield 2", "good"),
        peer("yield 2", "absent", before="import no_such_package_of_ours\n"),
        peer("raise RuntimeError('worker died')", "broken"),
        peer("import os\nif number: os.abort()\nyield 2", "late"),
        peer("import time\ntime.sleep(60)\nyield 2", "silent"),
        peer("return iter(())", "empty"),
        timeout_s=3,
    )
    assert not good.problem
    assert len(good.rates) == 1
    assert good.cpu_step_s_per_1000 == 1000 / os.sysconf("SC_CLK_TCK") / 8
    assert absent.skipped
    assert absent.problem == "No module named 'no_such_package_of_ours'"
    assert (broken.skipped, broken.problem) == (False, "ended with 1: RuntimeError: worker died")
    assert late.problem.startswith("killed by signal 6: ")
    assert silent.problem.startswith("no answer within 3 s")
    assert empty.problem == "gave no batch"


def test_the_time_and_memory_of_every_process_count(tmp_path: Path) -> None:
    (row,) = measured(
        tmp_path,
        peer("""
            import subprocess, sys
            work = "import time; held = b'x' * 150_000_000\\nwhile time.process_time() < 0.4: pass"
            subprocess.run([sys.executable, "-c", work], check=True)
            yield 2
        """),
    )
    assert row.cpu_s_per_1000[0] * 2 / 1000 >= 0.39
    assert max(row.pss_mb) > 143


def test_contestants_take_turns_and_begin_in_turn(tmp_path: Path) -> None:
    order = tmp_path / "order"
    note = f"open({str(order)!r}, 'a').write(sys.argv[0] and NAME + str(number) + ' ')\nyield 2"
    measured(tmp_path, *(peer(note, name, before=f"NAME = {name!r}\n") for name in ("a", "b")), repeats=3)
    assert order.read_text().split() == ["a0", "b0", "a0", "b0", "a1", "b1", "b2", "a2", "a3", "b3"]


def test_a_run_that_is_stopped_has_kept_its_rounds(tmp_path: Path) -> None:
    kept: list[tuple[int, list[int]]] = []

    def stop(rows: list[Row], rounds: int) -> None:
        figures = document("", rows, {})
        kept.append((rounds, [len(row["rates"]) for row in figures["rows"]]))
        if rounds == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, peer("yield 2", "a"), peer("yield 2", "b"), repeats=3, after_round=stop)
    assert kept == [(1, [1, 1]), (2, [2, 2])]


def test_figures_are_in_the_file_after_each_round(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, after_round: Callable[[list[Row], int], None], **__: object) -> None:
        after_round([], 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("wv_bench.loader.measure", stopped)
    assert run(small_dataset, "--batch-size", 32, "--json", tmp_path / "figures.json").exit_code == 1
    assert json.loads((tmp_path / "figures.json").read_text())["title"].endswith(", 2 rounds")


def test_little_processor_time_is_no_zero() -> None:
    def text(seconds: float) -> str:
        return cpu_text({"cpu_s_per_1000": seconds, "cpu_step_s_per_1000": 0.00333})

    assert [text(s) for s in (0.0, 0.003, 0.01, 0.1234, 1.234)] == ["<0.003", "<0.003", "0.010", "0.123", "1.23"]


def test_a_peer_that_never_stops_is_timed_without_what_it_made_while_idle(tmp_path: Path) -> None:
    (row,) = measured(tmp_path, peer("import time\ntime.sleep(0.3)\nyield 0\nwhile True: yield 2"))
    assert row.first_batch_s is not None
    assert row.first_batch_s < 0.3
    assert row.rates[0] > 8 / 0.3


def test_ratios_are_taken_round_by_round() -> None:
    def row(kind: str, rates: list[float], engine: str = "") -> Row:
        contestant = Contestant(
            name=f"{kind} {engine}", kind=kind, dtype="uint8", command=(), setup={}, environment={}, engine=engine
        )
        return Row(
            contestant=contestant, rates=rates, cpu_s_per_1000=[1.0] * 3, pss_mb=[100.0, 120.0], first_batch_s=1.0
        )

    rows = [
        row("ours", [10.0, 40.0, 30.0], "turbo"),
        row("ours", [5.0, 5.0, 5.0], "pillow"),
        row("ceiling", [20.0, 40.0, 60.0], "turbo"),
        row("ceiling", [10.0, 10.0, 5.0], "pillow"),
        row("peer", [10.0, 10.0, 10.0]),
    ]
    result = document("", rows, {})
    assert result["best"] == "ours turbo"
    turbo, pillow, _, _, other = result["rows"]
    assert other["ours_over_this"] == {"median": 3.0, "min": 1.0}
    assert turbo["share_of_ceiling"] == {"median": 0.5, "min": 0.5}
    assert pillow["share_of_ceiling"] == {"median": 0.5, "min": 0.5}
    assert other["share_of_ceiling"] == {"median": 0.25, "min": pytest.approx(1 / 6)}
    assert other["peak_pss_mb"] == 120.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chart", "chart.png"], "ends in .html"),
        (["--cores", "100000"], "this process may use"),
        (["--batch-size", "100000"], "less than a batch"),
        (["--batch-size", "32", "--only", "nobody"], "nobody's name has nobody in it"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(small_dataset: Path, arguments: list[str], message: str) -> None:
    result = run(small_dataset, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_no_data_set_is_one_line_and_cores_are_given_back(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    result = run(tmp_path, "--cores", 1)
    assert result.exit_code == 1
    assert result.output.count("Error: ") == 1
    assert os.sched_getaffinity(0) == before


def test_the_loaders_parts_add_up(small_dataset: Path) -> None:
    arguments = ["components", str(small_dataset), "--size-px", "16", "--batch-size", "32", "--repeats", "1", "--json"]
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    us: dict[str, float] = json.loads(result.output)["us_per_image"]
    total = us.pop("total")
    assert sum(us.values()) == pytest.approx(total)
    assert all(us[part] > 0 for part in ("decode", "read", "checksum", "plan", "accounting"))


def test_a_set_of_full_size_is_a_real_one_in_small(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from wv_bench import first_batch
    from wv_loader import Loader

    monkeypatch.setattr(first_batch, "_SHARD_SAMPLES", 50)
    (tmp_path / "set").mkdir()
    manifest = first_batch.make_set(small_dataset, tmp_path / "set", 620, 20)
    assert (manifest.samples, len(manifest.shards)) == (600, 12)
    assert len({(tmp_path / "set" / f"{shard.name}.tar").stat().st_ino for shard in manifest.shards}) == 1
    counts = [c.samples for c in manifest.classes]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 20 * counts[-1]
    with Loader(tmp_path / "set", batch_size=30, size_px=8) as loader:
        assert loader.class_counts.tolist() == counts
        assert all(batch.valid.all() for batch in loader)


def test_the_first_batch_is_timed_in_a_process_of_its_own(small_dataset: Path, tmp_path: Path) -> None:
    arguments = ["first-batch", str(small_dataset), "--samples", "100", "--classes", "5", "--batch-size", "10"]
    arguments += ["--size-px", "8", "--repeats", "1", "--work", str(tmp_path), "--json"]
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    figures = json.loads(result.output)
    assert 0 < figures["cold"]["open_s"] < figures["cold"]["first_batch_s"]
    assert figures["warm"]["peak_rss_mb"] > 0
    assert not list(tmp_path.iterdir())
