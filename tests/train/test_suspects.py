"""`wv-annotate suspects` and `exclude`: what a ledger says of wrong labels, and what may be done with it."""

import csv
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from wv_loader import Loader
from wv_shards import Dataset, Manifest, Overlay
from wv_train.annotate.cli import command
from wv_train.annotate.exclude import exclude_suspects
from wv_train.annotate.suspect_scores import MIN_VISITS, suspicion_of, suspicions_of
from wv_train.annotate.suspects_choice import Choice
from wv_train.annotate.suspects_judged import calibration_error, judge_order, reliability
from wv_train.ledger import Ledger
from wv_train.report_suspects import ClassSuspects, SuspectImage, SuspectsPage, chosen_ordinals
from wv_train.report_suspects_page import render_suspects
from wv_train.run_directory import RunDirectory

CLASS_SIZES = [90, 40, 14, 6]


def draw_ledger(
    labels: NDArray[np.int64], wrong: NDArray[np.bool_], *, visits: int = 20, right: float = 0.6, seed: int = 0
) -> NDArray[Any]:
    """Training drawn: the confidence of right labels rises to `right`, that of wrong ones stays at a tenth of it."""
    rng = np.random.default_rng(seed)
    ledger = Ledger(len(labels))
    for visit in range(visits):
        expected = np.where(wrong, 0.1, 1.0) * right * min(1.0, 0.3 + visit / 10)
        confidence = rng.beta(8 * expected, 8 * (1 - expected))
        ledger.update(
            np.arange(len(labels)),
            label_conf=confidence,
            top1_conf=np.maximum(confidence, 1 - confidence),
            prediction=np.where(wrong, (labels + 1) % (labels.max() + 1), labels),
            kept=np.ones(len(labels), dtype=bool),
        )
    return ledger.rows


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, draw_dataset: Callable[..., Path]) -> Path:
    """150 samples in four classes."""
    return draw_dataset(tmp_path_factory.mktemp("suspects") / "shards", CLASS_SIZES)


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    """A run's folder with a drawn ledger: every fourth label is wrong; the last sample was never seen."""
    with Dataset.open(shards) as dataset:
        labels, digest = dataset.index["label"].astype(np.int64), dataset.manifest.digest
    folder = RunDirectory(tmp_path / "gated")
    facts: dict[str, Any] = {"shards": str(shards), "manifest_digest": digest, "recipe": {"phases": []}}
    facts |= {"classes": ["tench", "<b>eel", "ray", "=1+1"], "class_counts": CLASS_SIZES, "exposures": {}}
    folder.write_info(facts)
    rows = draw_ledger(labels, np.arange(len(labels)) % 4 == 0)
    rows[-1] = Ledger(1).rows[0]
    Overlay(kind="ledger", array=rows, manifest_digest=digest, neutral={"prediction": -1}).save(folder.ledger)
    return folder.path


def annotate(*words: object) -> Result:
    return CliRunner().invoke(command, list(map(str, words)))


def test_wrong_labels_come_first_and_as_many_are_expected_as_there_are() -> None:
    labels = np.random.default_rng(1).integers(0, 10, 4000)
    for share in (0.1, 0.4):
        wrong = np.random.default_rng(2).random(4000) < share
        said = suspicions_of(draw_ledger(labels, wrong), labels, 10)
        judged = judge_order(said.wrong, wrong)
        assert judged.auroc is not None
        assert judged.auroc > 0.98
        assert said.expected_wrong == pytest.approx(wrong.sum(), rel=0.2)
        assert said.interval[0] < wrong.sum() < said.interval[1]
        assert (said.believed == np.where(wrong, (labels + 1) % 10, labels)).all()
        order = np.argsort(said.suspicion, kind="stable")
        assert (np.diff(said.wrong[order].astype(np.float32)) > 0).all()  # as the overlay stores it; no two alike


def test_labels_of_a_hard_class_are_no_more_suspicious_than_those_of_an_easy_one() -> None:
    labels = np.repeat([0, 1], 2000)
    wrong = np.random.default_rng(3).random(4000) < 0.2
    easy, hard = draw_ledger(labels, wrong, right=0.9), draw_ledger(labels, wrong, right=0.08, seed=1)
    rows = np.where(labels == 0, easy, hard)
    relative = suspicion_of(rows, labels, 2)
    ours, plain = judge_order(relative, wrong), judge_order(-rows["label_conf_mean"], wrong)
    assert ours.auroc is not None
    assert plain.auroc is not None
    assert ours.auroc > plain.auroc + 0.1


def test_a_class_of_one_sample_is_measured_by_the_others() -> None:
    labels = np.append(np.zeros(1000, dtype=np.int64), 1)
    wrong = np.zeros(1001, dtype=bool)
    wrong[::5] = True  # the lonely one too
    said = suspicions_of(draw_ledger(labels, wrong), labels, 2)
    assert said.wrong[-1] > 0.5  # by its own class's mean alone nothing could be said


def test_samples_seldom_seen_are_unknown_and_an_empty_ledger_is_no_error() -> None:
    labels = np.zeros(50, dtype=np.int64)
    rows = draw_ledger(labels, np.arange(50) < 10)
    rows["seen"][:3] = MIN_VISITS - 1
    said = suspicions_of(rows, labels, 3)
    assert (np.isnan(said.wrong) == (np.arange(50) < 3)).all()
    assert (said.believed[:3] == -1).all()
    nothing = suspicions_of(Ledger(5).rows, labels[:5], 3)
    assert np.isnan(nothing.wrong).all()
    assert nothing.expected_wrong == 0


def test_a_ledger_without_a_history_is_judged_by_the_mean() -> None:
    labels = np.zeros(500, dtype=np.int64)
    wrong = np.arange(500) < 100
    rows = draw_ledger(labels, wrong)
    old = rows[[name for name in rows.dtype.names or () if name != "history"]]
    assert judge_order(suspicions_of(old, labels, 1).wrong, wrong).auroc == pytest.approx(1.0, abs=0.02)


def test_scores_are_those_of_all_pairs_with_ties_counted_half() -> None:
    rng = np.random.default_rng(4)
    suspicion, wrong = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.3
    higher = suspicion[wrong][:, None] - suspicion[~wrong]
    judged = judge_order(suspicion, wrong)
    assert judged.auroc == pytest.approx(((higher > 0) + 0.5 * (higher == 0)).mean())
    steps = [(wrong & (suspicion >= level)).sum() / (suspicion >= level).sum() for level in suspicion[wrong]]
    assert judged.average_precision == pytest.approx(np.mean(steps))
    assert judge_order(suspicion, np.zeros(80, dtype=bool)).auroc is None


def test_the_reliability_table_holds_every_sample_once_and_the_error_is_zero_where_expectations_come_true() -> None:
    probability = np.repeat([0.0, 0.25, 1.0], 4)
    wrong = np.array([0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    table = reliability(probability, wrong)
    assert [one.samples for one in table] == [4, 4, 4]
    assert calibration_error(table) == 0
    assert calibration_error(reliability(probability, ~wrong)) == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(top=2), [3, 0]),
        (Choice(top=0.5), [3, 0]),
        (Choice(min_probability=0.4), [3, 0, 4]),
        (Choice(top=2, min_probability=0.85), [3]),
        (Choice(), [3, 0, 4, 2]),
    ],
)
def test_a_choice_takes_the_most_probable_first_and_never_what_is_unknown(choice: Choice, expected: list[int]) -> None:
    for unknown in (-1.0, np.nan):
        wrong = np.array([0.8, unknown, 0.1, 0.9, 0.4], dtype=np.float32)
        assert choice.ordinals(wrong).tolist() == expected


def test_never_more_than_its_share_of_a_class_is_excluded() -> None:
    rng = np.random.default_rng(5)
    labels, wrong = rng.integers(0, 30, 2000), rng.random(2000).astype(np.float32)
    labels[:3], wrong[:3] = 30, 0.99  # a class of three, all of them suspects
    wrong[100:200] = -1
    excluded = exclude_suspects(wrong, labels, Choice(min_probability=0.2), max_class_fraction=0.4)
    gone = np.bincount(labels, weights=excluded.rows, minlength=31)
    assert (gone <= 0.4 * np.bincount(labels)).all()
    assert gone[30] == 1
    assert not excluded.rows[100:200].any()
    assert excluded.rows.sum() + excluded.spared == excluded.chosen
    for one in range(30):  # those that go are a class's worst
        mine = labels == one
        assert wrong[mine & (excluded.rows == 1)].min() >= wrong[mine & (wrong >= 0.2) & (excluded.rows == 0)].max()


def test_suspects_are_written_told_judged_and_excluded_from_training(run: Path, shards: Path, tmp_path: Path) -> None:
    with Dataset.open(shards) as dataset:
        labels = dataset.index["label"].astype(np.int64)
        table = dataset.samples_table(["key", "path"]).to_pylist()
    truth = tmp_path / "truth.csv"
    rows = [f"{row['path']},{labels[i]},{(labels[i] + (i % 4 == 0)) % 4}" for i, row in enumerate(table)]
    truth.write_text("\n".join(["path,label,true_label", *rows]) + "\n")
    names = ("--csv", tmp_path / "s.csv", "--top", "10", "--page", tmp_path / "s.html", "--truth", truth)
    done = annotate("suspects", run, *names)
    assert done.exit_code == 0, done.output
    assert "149 of 150 samples judged" in done.output
    assert "precision at 1% 1.00, at 10% 1.00" in " ".join(done.output.split())

    overlay = Overlay.load(run / "suspects", manifest_digest=Manifest.load(shards).digest, kind="suspects")
    assert overlay.array["wrong"][-1] == -1
    assert overlay.array["believed"][-1] == -1
    assert overlay.neutral == {"wrong": -1, "believed": -1}
    with (tmp_path / "s.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 10
    assert all(int(row["ordinal"]) % 4 == 0 for row in listed)
    assert all(row["key"] == table[int(row["ordinal"])]["key"] for row in listed)
    assert {row["label_name"] for row in listed} <= {"tench", "<b>eel", "ray", "=1+1"}

    gone = annotate("exclude", run / "suspects", "--top", "20%", "--out", tmp_path / "worst")
    assert gone.exit_code == 0, gone.output
    mask = Overlay.load(tmp_path / "worst", manifest_digest=overlay.manifest_digest, kind="exclude").array
    assert mask.sum() == 30
    assert not mask[np.arange(150) % 4 != 0].any()
    with Loader(shards, batch_size=30, size_px=8, train=False, exclude=[tmp_path / "worst"], threads=1) as loader:
        shown = np.concatenate([batch.ordinals[batch.valid].numpy() for batch in loader])
    assert sorted(shown) == np.flatnonzero(mask == 0).tolist()


def test_what_cannot_be_done_is_one_line(run: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        failed = annotate(*words)
        assert failed.exit_code != 0
        return failed.output + str(failed.exception)

    assert "expected --top or --min-probability" in refused("exclude", run / "suspects", "--out", tmp_path / "x")
    assert "expected an overlay" in refused("exclude", run / "none", "--top", "5", "--out", tmp_path / "x")
    assert "expected a share" in refused("suspects", run, "--csv", tmp_path / "s.csv", "--top", "120%")
    assert "expected a folder" in refused("suspects", run, "--page", tmp_path / "none" / "s.html")
    (run / "ledger.json").unlink()
    assert "no ledger yet" in refused("suspects", run)


class _Scripts(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - the parser's
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>&\u2028'\""


def test_names_and_keys_of_strangers_stay_text() -> None:
    image = SuspectImage(
        key=HOSTILE,
        path=HOSTILE,
        label=0,
        believed=-1,
        wrong=0.9,
        mean_confidence=0.1,
        last_confidence=0.2,
        visits=5,
        gated=2,
        history=(0.1, 0.2),
        thumbnail=None,
    )
    page = SuspectsPage(
        run=HOSTILE,
        shards=HOSTILE,
        samples=1,
        known=1,
        expected_wrong=0.9,
        interval=(0.0, 1.0),
        names=(HOSTILE,),
        classes=(ClassSuspects(class_id=0, name=HOSTILE, samples=1, expected_wrong=0.9, images=(0,)),),
        overall=(0,),
        images=(image,),
    )
    found = _Scripts(render_suspects(page))
    assert found.tags.count("script") == 2
    assert "img" not in found.tags
    data = json.loads(found.scripts[0])
    assert data["images"][0]["key"] == data["classes"][0][1] == HOSTILE
    assert "innerHTML" not in found.scripts[1]


def test_the_page_is_bounded_for_thousands_of_classes_and_the_worst_classes_are_on_it() -> None:
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 5000, 40_000)
    wrong = rng.random(40_000) * rng.random(5000)[labels]
    wrong[::7] = np.nan
    overall, by_class = chosen_ordinals(wrong, labels, images=2000)
    assert len(set(overall.tolist()).union(*(mine.tolist() for mine in by_class.values()))) <= 2000
    expected = np.bincount(labels, weights=np.nan_to_num(wrong), minlength=5000)
    assert set(by_class) == set(np.argsort(-expected, kind="stable")[: len(by_class)].tolist())
    assert len(by_class) > 200
    assert all((labels[mine] == one).all() and (np.diff(wrong[mine]) <= 0).all() for one, mine in by_class.items())


def test_a_class_shows_as_many_as_are_expected_to_be_wrong_within_its_share_of_the_page() -> None:
    labels = np.repeat(np.arange(4), 500)
    wrong = np.repeat([0.9, 0.1, 0.02, 0.001], 500)
    _, by_class = chosen_ordinals(wrong, labels, images=2000)
    assert {one: len(mine) for one, mine in by_class.items()} == {0: 450, 1: 50, 2: 10, 3: 8}
    _, by_class = chosen_ordinals(wrong, labels, images=400)
    assert {one: len(mine) for one, mine in by_class.items()} == {0: 100, 1: 50, 2: 10, 3: 8}
