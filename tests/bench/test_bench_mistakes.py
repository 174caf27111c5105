"""A user's mistakes are a line from `wv-bench`, said before anything is measured."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from wv_bench import cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [*map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("gil SET --size-px 0", 2, "'--size-px'"),
        ("gil SET --batch-size 0", 2, "'--batch-size'"),
        ("gil SET --threads -1", 2, "'--threads'"),
        ("gil SET --batches 0", 2, "'--batches'"),
        ("gil nowhere", 1, "nowhere"),
        ("gil SET --batch-size 4096", 2, "239 samples are less than a batch: lower --batch-size 4096"),
        ("components nowhere", 1, "nowhere"),
        ("first-batch nowhere --samples 100 --classes 5 --batch-size 10", 1, "nowhere"),
        ("first-batch SET --samples 10 --batch-size 10", 2, "10 samples are too few for 5000 skewed classes"),
        ("first-batch SET --samples 10 --classes 2", 2, "10 samples are less than a batch"),
        ("first-batch SET --work nowhere", 2, "'nowhere' does not exist"),
        ("plan nowhere", 1, "nowhere"),
        ("plan SET --html nowhere/x.html", 2, "the folder nowhere is not there"),
        ("loader SET --chart nowhere/x.html", 2, "the folder nowhere is not there"),
        ("loader SET --json nowhere/x.json", 2, "the folder nowhere is not there"),
        ("loader SET --work FILE/work", 1, "Not a directory"),
    ],
)
def test_a_mistake_is_a_line(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    words = [word.replace("SET", str(small_dataset)).replace("FILE", "file") for word in arguments.split()]
    result = run(*words)
    assert (result.exit_code, type(result.exception)) == (code, SystemExit), result.output
    error = result.output[result.output.index("Error: ") :]
    assert message in error
    assert len(error.splitlines()) == 1


def test_figures_go_to_a_file_or_to_standard_output(small_dataset: Path, tmp_path: Path) -> None:
    common = ("components", small_dataset, "--size-px", 8, "--batch-size", 32, "--repeats", 1, "--max-samples", 32)
    written = run(*common, "--json", tmp_path / "figures.json")
    assert "CPU µs" in written.output
    printed = json.loads(run(*common, "--json").output)
    assert json.loads((tmp_path / "figures.json").read_text()).keys() == printed.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
