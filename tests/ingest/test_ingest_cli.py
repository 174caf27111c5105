"""The command line: what a person sees, exit codes, and that mistakes cost one line and leave nothing behind."""

import io
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from wv_ingest.cli import main
from wv_ingest.progress import Progress
from wv_shards import Manifest

Draw = Callable[..., bytes]
WriteList = Callable[..., Path]
Completed = subprocess.CompletedProcess[str]


def invoke(*arguments: object) -> Result:
    """The command in this process; `catch_exceptions` is off, so a traceback fails the test."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "200"})
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def built(webvision: Path, tmp_path_factory: pytest.TempPathFactory, ingest: Callable[..., Completed]) -> Path:
    out = tmp_path_factory.mktemp("built") / "shards"
    completed = ingest("build-shards", webvision, out, "--size", 16, "--max-reject-fraction", 0.5, "--workers", 1)
    assert completed.returncode == 0, completed.stderr
    first, *table = completed.stdout.splitlines()
    assert first.startswith("decoder: Pillow")
    text = "\n".join(table)
    for part in ("rows of the source", "264", "238", "rejected: truncated", "imbalance ratio", "(1 without images)"):
        assert part in text
    events = [json.loads(line) for line in completed.stderr.splitlines()]  # not a terminal: JSON lines only
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert warnings == ["1 classes without rows, they get no band: n00010003 thing 3, entity 3"]
    return out


@pytest.mark.parametrize(
    "name",
    ["", "build-shards", "finalize", "verify", "append", "merge", "exclude", "stats", "report", "sample-data"],
)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = invoke(*([name] if name else []), "--help")
    assert result.exit_code == 0
    assert f"wv-ingest {name}".strip() in result.output
    assert result.output.count("wv-ingest") >= 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["build-shards"],
        ["build-shards", "a", "b", "--size", "-1"],
        ["build-shards", "a", "b", "--quality", "0"],
        ["build-shards", "a", "b", "--min-side", "70000", "--max-side", "70001"],
        ["build-shards", "a", "b", "--source-format", "zip"],
        ["build-shards", "a", "b", "--no-such-option"],
        ["build-shards", "a", "b", "--part", "0/3"],
        ["build-shards", "a", "b", "--part", "4/3"],
        ["build-shards", "a", "b", "--part", "3"],
        ["finalize", "a"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


def error_of(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("wv-ingest: ")
    return last


def test_bad_sources_cost_one_line_and_leave_nothing(tmp_path: Path, webvision: Path, write_list: WriteList) -> None:
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "out"
    wrong_label = write_list(tmp_path / "labels.csv", [("a.jpg", -1)])
    for source, options, message in (
        (tmp_path / "absent", [], "no such file or folder"),
        (tmp_path / "nothing", [], "neither info/train_filelist"),
        (write_list(tmp_path / "empty.csv", []), [], "no rows in it"),
        (wrong_label, [], "labels.csv row 2: label -1 is outside"),
        (wrong_label, ["--label-column", "class"], "no column 'class'"),
        (webvision, ["--classes-from", tmp_path], "no manifest.json in it"),
    ):
        assert message in error_of("build-shards", source, out, *options)
        assert not out.exists()


def test_a_dry_run_prints_the_plan_and_writes_nothing(webvision: Path, tmp_path: Path, built: Path) -> None:
    result = invoke("build-shards", webvision, tmp_path / "out", "--size", 16, "--dry-run", "--workers", 1)
    assert result.exit_code == 0
    assert not (tmp_path / "out").exists()
    lines = [line.split() for line in result.output.splitlines()]
    manifest = Manifest.load(built)
    for band in {shard.band for shard in manifest.shards}:
        shards = sum(shard.band == band for shard in manifest.shards)
        assert any(str(band) in line and line[-2:-1] == [str(shards)] for line in lines), band
    assert "bytes in all, about" in result.output


def test_stats_count_what_the_manifest_counts(built: Path) -> None:
    document = json.loads(invoke("stats", built, "--json").output)
    manifest = Manifest.load(built)
    assert document["samples"] == manifest.samples == sum(c["samples"] for c in document["classes"])
    assert document["image_bytes"] == sum(c["bytes"] for c in document["classes"])
    assert document["shard_bytes"] == sum(p.stat().st_size for p in built.glob("*.tar"))
    assert sum(band["rows"] for band in document["bands"]) == manifest.rows
    assert sum(band["shards"] for band in document["bands"]) == len(manifest.shards)
    assert document["per_class"]["without"] == 1
    text = invoke("stats", built).output
    assert "imbalance ratio" in text
    assert "thing 5, entity 5" in text


def test_verify_is_silent_about_sound_shards_and_names_each_problem(built: Path, tmp_path: Path) -> None:
    result = invoke("verify", built)
    assert (result.exit_code, "all as the manifest says" in result.output) == (0, True)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", built, copy], check=True)
    flipped, cut, lost = sorted(copy.glob("*.tar"))[:3]
    data = bytearray(flipped.read_bytes())
    data[700] ^= 1
    flipped.write_bytes(data)
    os.truncate(cut, 2048)
    lost.unlink()
    result = invoke("verify", copy)
    assert result.exit_code == 1
    named = {line.split(":")[0] for line in result.output.splitlines()}
    assert {str(flipped), str(cut), str(lost)} <= named


def test_no_data_set_is_one_line_of_error(tmp_path: Path) -> None:
    for name in ("verify", "stats"):
        assert "no such directory" in error_of(name, tmp_path / "absent")
        assert "no manifest.json in it" in error_of(name, tmp_path)


def test_the_same_build_again_says_that_it_is_complete(webvision: Path, built: Path) -> None:
    options = ["--size", "16", "--max-reject-fraction", "0.5", "--workers", "1"]
    result = invoke("build-shards", webvision, built, *options)
    assert result.exit_code == 0
    assert "already complete, nothing to do" in result.output


def test_a_validation_set_takes_its_training_sets_classes(webvision: Path, built: Path, tmp_path: Path) -> None:
    options = ["--size", "16", "--workers", "1", "--split", "val", "--classes-from", built]
    assert invoke("build-shards", webvision, tmp_path / "val", *options).exit_code == 0
    train, val = Manifest.load(built), Manifest.load(tmp_path / "val")
    assert [c.name for c in val.classes] == [c.name for c in train.classes]
    assert (val.split, val.samples) == ("val", 12)


def test_a_full_disk_is_one_line_and_the_build_goes_on_when_there_is_space(
    small_disk: Path, tmp_path: Path, encode: Draw, write_list: WriteList, ingest: Callable[..., Completed]
) -> None:
    for i in range(200):
        (tmp_path / f"{i}.jpg").write_bytes(encode(i, 96, 96, quality=95))
    source = write_list(tmp_path / "list.csv", [(f"{i}.jpg", i % 2) for i in range(200)])
    out = small_disk / "out"
    failed = ingest("build-shards", source, out, "--size", 0, "--workers", 2)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(
        "wv-ingest: no space left on the device; free some and run the same"
    )
    assert "Traceback" not in failed.stderr
    assert not list(out.glob("*.tar"))
    assert not list(out.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = ingest("build-shards", source, out, "--size", 0, "--workers", 2)
    assert again.returncode == 0, again.stderr
    assert invoke("verify", out).exit_code == 0
    assert ingest("build-shards", source, tmp_path / "other", "--size", 0, "--workers", 1).returncode == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()
    }


def test_a_read_only_place_is_one_line(webvision: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert error_of("build-shards", webvision, small_disk / "out").endswith("out: Read-only file system")


def test_progress_lines_are_json_with_rate_and_eta(tmp_path: Path) -> None:
    stream = io.StringIO()
    counts = [0, 0, 0, 0]
    with Progress(stream) as progress:
        progress.start(total_rows=100, done_rows=10, done_rejects=2, counters=lambda: tuple(counts))
        progress._last_line -= 10
        counts[:] = [30, 3, 3000, 2000]
        progress.tick()
        progress.tick()  # too soon for another line
        progress.stop()
    (line,) = stream.getvalue().splitlines()
    document = json.loads(line)
    assert (document["rows"], document["total"], document["rejects"]) == (40, 100, 5)
    assert document["rows_per_s"] > 0
    assert document["bytes_per_s"] > 0
    assert document["eta_s"] >= 0


def test_names_with_control_characters_stay_on_their_line(
    tmp_path: Path, encode: Draw, draw_webvision: Callable[..., Path]
) -> None:
    """A name with a newline, or one that would colour the terminal, is shown as Python writes it."""
    for number, name in enumerate(("cat\ndog", "\x1b[31m[red]\x85", "山\u3000猫")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "1\n.jpg").write_bytes(encode(number, 64, 48))
    assert invoke("build-shards", tmp_path / "raw", tmp_path / "a", "--workers", 1, "--no-report").exit_code == 0
    text = invoke("stats", tmp_path / "a").output
    for shown in ("cat\\ndog", "\\x1b[31m[red]\\x85", "山\u3000猫"):
        assert shown in text
    assert "\x1b" not in text
    assert "\x85" not in text
    source = draw_webvision(tmp_path / "webvision", [6, 4])
    (source / "google" / "q0001" / "stray\n.jpg").touch()
    for arguments in ([], ["--dry-run"]):
        done = invoke("build-shards", source, tmp_path / "b\nc", "--workers", 1, "--no-report", *arguments)
        assert "1 (google/q0001/stray\\n.jpg)" in done.stdout
    assert f"{tmp_path}/b\\nc: already complete" in invoke("build-shards", source, tmp_path / "b\nc").stdout
