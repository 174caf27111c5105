"""`wv-bench`: its commands are found lazily, and the ingest benchmark's figures are about the same work."""

import json
import sys

import pytest
from click.testing import CliRunner

from wv_bench import cli


def rows_of(*options: object) -> dict[str, dict[str, float]]:
    arguments = ["ingest", "--images", "24", "--workers", "1", "--repeats", "1", "--json", *map(str, options)]
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads(result.output)
    assert document["machine"]["decoder"].startswith("Pillow")
    assert all(row["items"] == 24 and row["ratio_median"] > 0 for row in document["rows"])
    return {row["name"]: row for row in document["rows"]}


def test_ingest_is_timed_against_bare_loops() -> None:
    assert set(rows_of("--size", 64)) == {"bare loop, Pillow", "build-shards"}
    assert {"bare loop, Pillow", "build-shards"} <= set(rows_of("--size", 0))


def test_ingest_by_headers_is_timed_against_tar() -> None:
    assert set(rows_of("--size", 0, "--check", "header")) == {"bare loop", "tar cf", "build-shards"}


def test_ingest_is_timed_against_webdatasets_writer() -> None:
    """The peer's own interpreter is this one here; it writes the shards that it is asked for."""
    assert "webdataset.ShardWriter" in rows_of("--size", 64, "--peer-python", sys.executable)


def test_a_benchmark_whose_package_is_absent_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "alien", ("no_such_package_of_ours.bench", "measures nothing"))
    result = CliRunner().invoke(cli.main, ["--help"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "measures nothing" in result.output
    result = CliRunner().invoke(cli.main, ["alien"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "needs the package no_such_package_of_ours, which is not installed" in result.output
    assert CliRunner().invoke(cli.main, ["ingest", "--help"], catch_exceptions=False).exit_code == 0
