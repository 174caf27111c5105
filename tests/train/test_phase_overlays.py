"""What overlays give a phase: soft labels, weights and exclusions by tier, clusters; and who is refused."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wv_shards import Manifest
from wv_train.data import DataConfig, open_phase_loader, open_phase_overlays
from wv_train.distributed import World
from wv_train.errors import RecipeError, TrainError
from wv_train.phase_overlays import check_overlays, read_phase_overlays
from wv_train.phase_plan import plan_phase
from wv_train.recipe import Phase, recipe_from_table
from wv_train.teacher import SoftTargets, soft_cross_entropy

TEACHER_DTYPE = np.dtype([("class_id", "<i4", (2,)), ("probability", "<f2", (2,))])
CPU = World(rank=0, size=1, device=torch.device("cpu"))


def beliefs(rows: list[list[tuple[int, float]]]) -> NDArray[Any]:
    """Records of two places from (class, probability) pairs."""
    array = np.zeros(len(rows), dtype=TEACHER_DTYPE)
    array["class_id"] = [[class_id for class_id, _ in row] for row in rows]
    array["probability"] = [[probability for _, probability in row] for row in rows]
    return array


NONE = (-1, 0.0)
SAID = beliefs([[(2, 0.5), (0, 0.25)], [(1, 0.75), NONE], [NONE, NONE], [(4, 1.0), (3, 0.0)]])
OWN = np.array([0, 3, 1, 4])
DENSE = np.array(
    [  # λ = 0.4: 0.4 of the label, 0.6 of the teacher, what it leaves over evenly over the others
        [0.4 + 0.6 * 0.25, 0.6 * 0.25 / 3, 0.6 * 0.5, 0.6 * 0.25 / 3, 0.6 * 0.25 / 3],
        [0.6 * 0.0625, 0.6 * 0.75, 0.6 * 0.0625, 0.4 + 0.6 * 0.0625, 0.6 * 0.0625],
        [0.0, 1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ]
)


def test_a_target_is_the_label_and_the_teacher_and_sums_to_one() -> None:
    targets = SoftTargets.of(SAID, OWN, label_share=0.4, classes=5)
    dense = targets.rest[:, None].repeat(1, 5).scatter_add(1, targets.ids, targets.shares)
    torch.testing.assert_close(dense, torch.from_numpy(DENSE).float())
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(4))
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for smoothing in (0.0, 0.3):
        losses = soft_cross_entropy(logits, targets, label_smoothing=smoothing)
        expected = torch.nn.functional.cross_entropy(logits, dense, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(losses, expected)
    hard = SoftTargets.of(SAID, OWN, label_share=1.0, classes=5)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(OWN), reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, hard), expected)


def test_probabilities_that_say_all_classes_or_too_much_are_scaled_to_one() -> None:
    rows = beliefs([[(1, 0.75), (0, 0.125)]])  # there are no other classes
    targets = SoftTargets.of(rows, np.array([0]), label_share=0.0, classes=2)
    dense = targets.rest[:, None].repeat(1, 2).scatter_add(1, targets.ids, targets.shares)
    torch.testing.assert_close(dense, torch.tensor([[1 / 7, 6 / 7]]))
    rows["probability"] = [[1.0, 0.25]]
    targets = SoftTargets.of(rows, np.array([0]), label_share=0.0, classes=9)
    torch.testing.assert_close((targets.shares.sum() + 9 * targets.rest.sum()), torch.tensor(1.0))


def phase_of(**keys: Any) -> dict[str, Any]:
    return {"name": "one", "steps": 3, "lr": 0.1, **keys}


def recipe_table(*phases: dict[str, Any]) -> dict[str, Any]:
    return {"model": "wv_resnet_16_32_64", "batch_size": 16, "size_px": 16, "phases": list(phases)}


def test_a_phase_shows_and_weighs_what_its_overlays_leave(
    small_dataset: Path, tmp_path: Path, save_overlays: Callable[..., dict[str, NDArray[Any]]]
) -> None:
    made = save_overlays(small_dataset, tmp_path)
    data = DataConfig(shards=small_dataset, overlays=tmp_path, loader_threads=1)
    easy = phase_of(curriculum={"max_tier": 2}, class_weights="inverse")
    grouped = phase_of(name="two", labels="clusters", class_weights="inverse", balance=0.0)
    recipe = recipe_from_table(recipe_table(easy, grouped, phase_of(name="three")))
    assert [recipe.draws_head(index) for index in range(3)] == [False, True, True]
    expected = {0: np.isin(made["tiers"], (0, 3)), 1: made["clusters"] < 0}
    for index, left_out in expected.items():
        overlays = open_phase_overlays(data, recipe, index)
        with closing(open_phase_loader(data, recipe, index, CPU, overlays)) as loader:
            counts = np.bincount(loader.labels[~left_out], minlength=6)
            assert loader.class_counts.tolist() == counts.tolist()
            plan = plan_phase(recipe.phases[index], loader, overlays=overlays)
            assert plan.outputs == (6 if index == 0 else 4)
            if index == 0:
                shows = counts.astype(np.float64)
                assert {int(ordinal) for batch in loader for ordinal in batch.ordinals} - {-1} == set(
                    np.flatnonzero(~left_out).tolist()
                )
            else:  # every class is shown alike, so a sample as often as its class has room
                of_one = loader.expected_exposure() / np.maximum(counts, 1)
                members = [np.flatnonzero(made["clusters"] == k) for k in range(4)]
                shows = np.array([of_one[loader.labels[one]].sum() for one in members])
        inverse = np.where(shows > 0, 1 / np.maximum(shows, 1e-9), 0)
        np.testing.assert_allclose(plan.weights, inverse * shows.sum() / (shows * inverse).sum(), rtol=1e-5)


def test_overlays_that_are_missing_foreign_or_wrong_are_refused_by_phase_and_key(
    small_dataset: Path,
    tmp_path: Path,
    draw_dataset: Callable[..., Path],
    save_overlays: Callable[..., dict[str, NDArray[Any]]],
) -> None:
    save_overlays(small_dataset, tmp_path)
    manifest = Manifest.load(small_dataset)

    def refused(match: str, **keys: Any) -> None:
        phase = recipe_from_table(recipe_table(phase_of(**keys), phase_of(name="last"))).phases[0]
        with pytest.raises(TrainError, match=match):
            read_phase_overlays(tmp_path, phase, manifest)

    refused(
        "phase one, curriculum.overlay: .*gone: expected an overlay.*`wv-annotate curr", curriculum={"overlay": "gone"}
    )
    refused("phase one, labels: .*tiers: an overlay of kind 'tiers', expected 'clusters'", labels="tiers")
    refused("phase one, teacher.overlay: .*expected 'teacher'; `wv-annotate teacher`", teacher={"overlay": "clusters"})
    save_overlays(small_dataset, tmp_path, clusters=3)
    refused("phase one, labels: .*clusters: expected clusters 0 to 2, found 3", labels="clusters")
    save_overlays(small_dataset, tmp_path, top_class=6)
    refused("phase one, teacher.overlay: .*: expected class ids of this data set", teacher={})
    save_overlays(draw_dataset(tmp_path / "other", [20, 10]), tmp_path)
    refused("phase one, curriculum.overlay: .*made for data set", curriculum={})
    with pytest.raises(
        TrainError, match="overlay tiers: the run in runs/a began with checksum 1, over/tiers has 2; give"
    ):
        check_overlays(Path("over"), {"clusters": "0", "tiers": "1"}, {"clusters": "0", "tiers": "2"}, Path("runs/a"))


@pytest.mark.parametrize(
    ("keys", "refusal"),
    [
        ({"curriculum": {"max_tier": 4}}, r"phases\.one\.curriculum\.max_tier: expected 1 to 3, found 4"),
        ({"curriculum": {"weights": [1.0]}}, r"curriculum\.weights: expected 3 numbers of 0 or more"),
        ({"curriculum": {"max_tier": 1, "weights": [0, 1, 1]}}, "expected one above 0 among tiers 1 to 1"),
        ({"teacher": {"label_share": 1.5}}, r"teacher\.label_share: expected 0 to 1, found 1.5"),
        ({"labels": "clusters", "teacher": {}}, r"teacher: expected none in a phase with other labels"),
        ({"labels": "clusters", "class_weights": "file", "class_weights_file": "w.csv"}, "class_weights: expected not"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys: dict[str, Any], refusal: str) -> None:
    with pytest.raises(RecipeError, match=refusal):
        recipe_from_table(recipe_table(phase_of(**keys), phase_of(name="last")))


def test_the_last_phase_learns_the_classes() -> None:
    with pytest.raises(
        RecipeError, match="phases: expected a last phase that learns the classes, found \"labels = 'c'"
    ):
        recipe_from_table(recipe_table(phase_of(labels="c")))
    assert Phase(name="one", steps=1, lr=0.1, labels="c").labels == "c"
