"""`wv-bench plan`: its figures against slow and obvious ones, on shards, lists and drawn sizes."""

import json
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from wv_bench.cli import main
from wv_bench.plan_measures import buffered_bytes, exposure, meetings, mixing, reading
from wv_bench.plan_subjects import Subject, from_list, from_shards, synthetic
from wv_loader.plan import Plan, PlanOptions
from wv_shards import Overlay


def run(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["plan", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.output)
    return result


def planned(subject: Subject, **options: Any) -> Plan:
    return Plan(subject.layout, PlanOptions(**{"batch_size": 16, "balance": (0.3,), **options}))


def walk(plan: Plan, epoch: int) -> list[np.ndarray]:
    streams = range(plan.options.resolved_streams)
    batches = [plan.epoch(epoch).batch(b, streams) for b in range(plan.epoch(epoch).batches)]
    return [batch[batch >= 0] for batch in batches]


def test_exposures_are_those_of_the_batches(small_dataset: Path) -> None:
    subject = from_shards(small_dataset, ())
    plan = planned(subject, balance=(1.0, 0.2), max_repeat=4.0)
    shows = exposure(plan, 3)
    walked = [np.concatenate(walk(plan, e)) for e in range(3)]
    assert shows.lengths == [len(ordinals) for ordinals in walked]
    everything = np.concatenate(walked)
    assert (shows.achieved * 3).round().tolist() == np.bincount(subject.layout.labels[everything]).tolist()
    assert shows.unseen_fraction == 1 - len(np.unique(everything)) / len(subject.layout.labels)
    assert shows.target.sum() == pytest.approx(len(subject.layout.labels))
    assert shows.uncapped[5] > shows.target[5] == pytest.approx((3 + 2 * 12) / 3)  # of 3 samples, 4 times at most


def test_what_runs_without_a_band_keep_from_a_class_is_reported() -> None:
    subject = synthetic(40_000, 3)
    labels = np.zeros(len(subject.layout.labels), dtype=np.int32)
    labels[::100] = 1  # rare everywhere
    foreign = replace(subject.layout, labels=labels, shard_bands=np.full_like(subject.layout.shard_bands, -1))
    shows = exposure(Plan(foreign, PlanOptions(batch_size=64, balance=(0.0,), max_repeat=64.0, run_length=100)), 10)
    assert shows.expected[1] < 0.5 * shows.target[1]
    assert shows.achieved[1] == pytest.approx(shows.expected[1], rel=0.02)


def test_mixing_counts_classes_over_blocks_of_batches(small_dataset: Path) -> None:
    subject = from_shards(small_dataset, ())
    plan = planned(subject)
    mixed = mixing(plan, 1)
    batches = [subject.layout.labels[batch] for batch in walk(plan, 0) if len(batch) == 16]
    share = np.bincount(subject.layout.labels[np.concatenate(walk(plan, 0))]) / plan.epoch(0).samples
    assert mixed.distinct_classes == pytest.approx(np.mean([len(set(batch.tolist())) for batch in batches]))
    blocks = [np.concatenate(batches[i : i + 4]) for i in range(0, len(batches) - 3, 4)]
    squares = [((np.bincount(block, minlength=6) - 64 * share) ** 2).sum() for block in blocks]
    assert mixed.dispersion[4] == pytest.approx(np.mean(squares) / (64 * (share * (1 - share)).sum()))
    assert mixed.dispersion_shuffle[4] == pytest.approx(1 - 64 / plan.epoch(0).samples)
    assert 1024 not in mixed.dispersion


def test_dispersion_tells_lumps_from_a_shuffle() -> None:
    """One stream and a window of one batch over runs of one class each: batches hold few classes."""
    subject = synthetic(4_000, 40)
    order = np.argsort(subject.layout.labels, kind="stable")
    subject.layout.labels[:] = subject.layout.labels[order]
    lumps = planned(subject, balance=(1.0,), streams=1, window=16, run_length=64)
    even = planned(subject, balance=(1.0,), window=1024, run_length=1)
    assert mixing(lumps, 1).dispersion[1] > 5 > 1.2 > mixing(even, 1).dispersion[1]
    assert mixing(lumps, 1).distinct_classes < 0.5 * mixing(even, 1).distinct_classes


def test_meetings_are_those_of_the_batches(small_dataset: Path) -> None:
    subject = from_shards(small_dataset, ())
    plan = planned(subject, run_length=5, batch_size=24)
    met = np.zeros((len(subject.layout.labels),) * 2, dtype=bool)
    for epoch in range(3):
        for batch in walk(plan, epoch):
            for a, b in combinations(batch.tolist(), 2):
                met[a, b] = met[b, a] = True
    run_of = np.searchsorted(plan.run_starts, np.arange(len(met)), side="right")
    same_run = run_of[:, None] == run_of[None, :]
    upper = np.triu(np.ones_like(met), 1)
    meet = meetings(plan, 3)
    assert meet.apart == pytest.approx(1 - met[upper & ~same_run].mean())
    assert meet.apart_in_run == pytest.approx(1 - met[upper & same_run].mean())
    assert meet.apart == pytest.approx(meet.apart_ideal, abs=0.03)
    short_last = meetings(planned(subject, batch_size=160, balance=(1.0,)), 1)  # 160 and 79 of 239
    assert [short_last.apart, short_last.apart_ideal] == pytest.approx([160 * 79 / (239 * 238 / 2)] * 2)
    everyone = meetings(planned(subject, batch_size=4096), 1)
    assert everyone.apart == pytest.approx(everyone.apart_ideal)  # one batch: who is shown has met
    assert meetings(planned(subject, run_length=1), 1).apart_in_run is None


def test_large_sets_are_judged_by_samples_that_stand_for_all() -> None:
    meet = meetings(planned(synthetic(8_000, 10), batch_size=256, run_length=4), 2)
    assert meet.apart == pytest.approx(meet.apart_ideal, abs=0.005)
    assert meet.apart_in_run is not None


def test_bytes_read_are_those_of_the_visits(small_dataset: Path, tmp_path: Path) -> None:
    whole = from_shards(small_dataset, ())
    gone = np.random.default_rng(0).random(len(whole.layout.labels)) < 0.4
    Overlay(kind="exclude", array=gone, manifest_digest=digest(small_dataset)).save(tmp_path / "gone")
    subject = from_shards(small_dataset, (tmp_path / "gone",))
    plan = planned(subject, run_length=16)
    epoch, sizes, offsets = plan.epoch(1), subject.layout.sizes.astype(int), subject.offsets
    used = merged = spans = 0
    for run, number in zip(epoch.visit_runs, epoch.visit_numbers, strict=True):
        shown = plan.shown(1, np.array([run]), np.array([number]))[0].tolist()
        used += sum(sizes[i] for i in shown)
        merged += sum(sizes[i] for i in shown)
        for a, b in pairwise(shown):
            gap = offsets[b] - offsets[a] - sizes[a]
            merged += gap if gap <= 8192 else 0
        first, last = plan.run_starts[run], plan.run_starts[run + 1] - 1
        spans += offsets[last] + sizes[last] - offsets[first]
    read = reading(epoch, offsets)
    assert read.merged == pytest.approx(merged / used)
    assert read.whole_visits == pytest.approx(spans / used)
    assert read.used_over_unique == pytest.approx(used / sizes[~gone].sum())
    assert read.mean_bytes == pytest.approx(used / epoch.samples)
    assert 1 < read.merged < read.whole_visits
    assert buffered_bytes(epoch, 100.0, 2) == round(epoch.samples * 100 / 2)  # a stream is shorter than a window


def digest(directory: Path) -> str:
    return str(json.loads((directory / "manifest.json").read_text())["digest"])


def test_shards_are_reported_with_a_page(small_dataset: Path, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    result = run(small_dataset, "--balance", "1,0.5,0", "--batch-size", 32, "--html", page)
    assert result["options"]["balance"] == [1, 0.5, 0]
    assert list(result["seconds"]["epoch"]) == ["1", "0.5", "0"]
    assert [row["samples"] for row in result["classes"]] == [120, 61, 30, 17, 8, 3]
    assert set(result["buffered_bytes"]) == {"1", "8"}
    text = page.read_text()
    assert "http" not in text
    charts = [f"<svg{part.split('</svg>')[0]}</svg>" for part in text.split("<svg")[1:]]
    lines = [[path.get("d") for path in ElementTree.fromstring(chart).iter("path")] for chart in charts]
    assert len(lines) == 2
    marks = [text.text for text in ElementTree.fromstring(charts[0]).iter("text") if text.get("y") == "280"]
    assert marks == ["1", "2", "3", "4", "5", "6"]  # every class of a few has its number
    assert all("nan" not in str(line) for chart in lines for line in chart)
    done = CliRunner().invoke(main, ["plan", str(small_dataset), "--batch-size", "32"])
    assert done.exit_code == 0
    for word in ("target", "achieved", "distinct classes", "dispersion", "apart", "read amplification", "buffered"):
        assert word in done.output


def test_a_single_place_on_an_axis_is_seen(small_dataset: Path, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    run(small_dataset, "--batch-size", 200, "--balance", 1, "--html", page)  # one whole batch: one place
    assert page.read_text().count('h8"/>') == 2
    run(small_dataset, "--batch-size", 4096, "--html", page)
    assert "No whole batch in an epoch." in page.read_text()


def test_the_lists_of_webvision_are_planned_without_images(test_data: Path) -> None:
    path = test_data / "webvision1_train_classes_0-9.txt"
    result = run("--list", path, "--balance", 0, "--epochs", 20)
    assert [row["samples"] for row in result["classes"]] == np.bincount(
        [int(line.split()[-1]) for line in path.read_text().splitlines()]
    ).tolist()
    assert all(abs(row["achieved"] / row["target"] - 1) < 0.01 for row in result["classes"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give one of SHARDS, --list and --synthetic"),
        (["--synthetic", "9", "shards"], 2, "give one of"),
        (["--synthetic", "9", "--exclude", "x"], 2, "--exclude goes with SHARDS"),
        (["nowhere"], 1, "no such directory"),
        (["--synthetic", "100", "--balance", "1,2"], 2, "τ is between 0"),
        (["--synthetic", "100", "--balance", "half"], 2, "expected numbers between 0 and 1"),
        (["--synthetic", "100", "--batch-size", "10", "--streams", "3"], 1, "streams must divide the batch size 10"),
    ],
)
def test_what_can_not_be_planned_is_refused_in_a_line(arguments: list[str], code: int, message: str) -> None:
    done = CliRunner().invoke(main, ["plan", *arguments])
    assert done.exit_code == code
    assert message in done.output
    assert "Traceback" not in done.output


def test_a_list_with_a_broken_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/b.jpg 0\nno class here\n")
    with pytest.raises(ValueError, match=r"list.txt:2: expected a path and a class id, found 'no class here'"):
        from_list(tmp_path / "list.txt")


@pytest.mark.parametrize(("samples", "classes"), [(1, 1), (30, 40), (1_000, 20), (300_000, 100)])
def test_drawn_sizes_are_what_was_asked_for(samples: int, classes: int) -> None:
    subject = synthetic(samples, classes)
    counts = np.bincount(subject.layout.labels, minlength=classes)
    assert len(counts) == classes
    assert len(subject.layout.labels) == pytest.approx(samples, rel=0.05, abs=classes)
    assert subject.layout.shard_starts[-1] == len(subject.layout.labels)
