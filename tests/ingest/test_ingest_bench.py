"""`wv-bench`: its commands are found lazily, and the ingest benchmark's figures are about the same work."""

import json

import pytest
from click.testing import CliRunner

from wv_bench import cli


def test_ingest_is_timed_against_the_bare_loop() -> None:
    options = ["ingest", "--images", "24", "--size", "64", "--workers", "1", "--repeats", "1", "--json"]
    result = CliRunner().invoke(cli.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads(result.output)
    bare, ours = document["rows"]
    assert (bare["name"], ours["name"]) == ("bare loop", "build-shards")
    assert bare["items"] == ours["items"] == 24
    assert ours["ratio_median"] > 0
    assert document["machine"]["decoder"].startswith("Pillow")


def test_a_benchmark_whose_package_is_absent_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "alien", ("no_such_package_of_ours.bench", "measures nothing"))
    result = CliRunner().invoke(cli.main, ["--help"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "measures nothing" in result.output
    result = CliRunner().invoke(cli.main, ["alien"], catch_exceptions=False)
    assert result.exit_code == 1
    assert "needs the package no_such_package_of_ours, which is not installed" in result.output
    assert CliRunner().invoke(cli.main, ["ingest", "--help"], catch_exceptions=False).exit_code == 0
