"""Clusters and tiers from an overlay of features: of this data set, dense, and the same however often interrupted."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wv_shards import Dataset, Overlay, OverlayMismatchError
from wv_train.annotate.clusters import ClusterOptions, make_clusters
from wv_train.annotate.curriculum import CurriculumOptions, make_tiers
from wv_train.annotate.density import densities, tiers
from wv_train.annotate.feature_input import Features, open_features
from wv_train.errors import TrainError

MISSING = [3, 77, 238]


def quiet(_what: str, _total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _more: None)


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    """(239,) which of four blobs a sample of `small_dataset` is in, whatever its class."""
    return np.random.default_rng(0).integers(0, 4, 239)


@pytest.fixture
def features(small_dataset: Path, blobs: np.ndarray, tmp_path: Path) -> Features:
    """Four far blobs in twelve columns, two of them always zero; three samples have no features."""
    draw = np.random.default_rng(1)
    array = 8 * draw.standard_normal((4, 12))[blobs] + draw.standard_normal((239, 12)) * 0.3
    array[:, 10:] = 0
    array[MISSING] = np.nan
    with Dataset.open(small_dataset) as dataset:
        info = {"shards": str(small_dataset)}
        digest = dataset.manifest.digest
        Overlay(kind="features", array=array.astype(np.float16), manifest_digest=digest, info=info).save(tmp_path / "f")
    return open_features(tmp_path / "f", None)


def load(out: Path, features: Features, kind: str) -> Overlay:
    return Overlay.load(out, manifest_digest=features.manifest_digest, kind=kind)


def files(base: Path) -> tuple[bytes, bytes]:
    return base.with_suffix(".npy").read_bytes(), base.with_suffix(".json").read_bytes()


def test_blobs_are_found_and_samples_without_features_have_no_cluster(
    features: Features, blobs: np.ndarray, tmp_path: Path
) -> None:
    done = make_clusters(features, ClusterOptions(clusters=4, pca=3), tmp_path / "clusters", quiet)
    found = load(tmp_path / "clusters", features, "clusters")
    assert found.array.dtype == np.int32
    assert found.neutral == -1
    assert np.flatnonzero(found.array == -1).tolist() == MISSING
    there = found.array >= 0
    pairs = set(zip(found.array[there].tolist(), blobs[there].tolist(), strict=True))
    assert len(pairs) == 4, "a cluster is a blob"
    assert (found.info["clusters"], found.info["classes"], found.info["components"]) == (4, None, 3)
    assert (done.sizes.sum(), done.without) == (236, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clusters.json", "clusters.npy", "f.json", "f.npy"]


def test_within_classes_ids_are_dense_and_each_belongs_to_its_class(features: Features, tmp_path: Path) -> None:
    """The smallest class has three samples, and so many clusters."""
    done = make_clusters(features, ClusterOptions(per_class=4, pca=3), tmp_path / "clusters", quiet)
    found = load(tmp_path / "clusters", features, "clusters")
    there = found.array >= 0
    classes = np.array(found.info["classes"])
    assert len(classes) == found.info["clusters"] == len(done.sizes)
    assert set(found.array[there].tolist()) == set(range(len(classes)))
    assert np.array_equal(classes[found.array[there]], features.labels[there])
    of_class = np.bincount(classes, minlength=6)
    members = np.bincount(features.labels[there], minlength=6)
    assert (of_class <= np.minimum(members, 4)).all()
    assert of_class[:3].tolist() == [4, 4, 4]


def test_clusters_that_get_no_sample_leave_no_gap(features: Features, tmp_path: Path) -> None:
    """Three different rows, and five clusters asked for."""
    array = np.repeat(np.eye(12, dtype=np.float16)[:3], [100, 100, 39], axis=0)
    Overlay(kind="features", array=array, manifest_digest=features.manifest_digest, info=features.info).save(
        tmp_path / "few"
    )
    done = make_clusters(
        open_features(tmp_path / "few", None), ClusterOptions(clusters=5), tmp_path / "clusters", quiet
    )
    assert (sorted(done.sizes.tolist()), done.asked) == ([39, 100, 100], 5)
    assert load(tmp_path / "clusters", features, "clusters").info["clusters"] == 3


def stopping(after: int) -> tuple[Callable[[str, int], AbstractContextManager[Callable[[int], None]]], list[str]]:
    """Bars that raise a KeyboardInterrupt when they are told so often of some work done."""
    calls, seen = iter(range(10_000)), []

    @contextmanager
    def bar(what: str, _total: int) -> Iterator[Callable[[int], None]]:
        def advance(_more: int) -> None:
            seen.append(what)
            if next(calls) == after:
                raise KeyboardInterrupt

        yield advance

    return bar, seen


@pytest.mark.parametrize(
    "options", [ClusterOptions(clusters=4, iterations=4), ClusterOptions(per_class=2, iterations=2)]
)
def test_interrupted_at_any_step_the_clusters_are_the_same(
    features: Features, tmp_path: Path, options: ClusterOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wv_train.annotate.feature_input._PIECE_BYTES", 64 * 12 * 4)
    make_clusters(features, options, tmp_path / "whole", quiet)
    whole = files(tmp_path / "whole")
    make_clusters(features, options, tmp_path / "again", quiet)
    assert files(tmp_path / "again") == whole
    stops = 0
    out = tmp_path / "pieces"
    while True:  # every life gets a little further
        bar, seen = stopping(2)
        try:
            done = make_clusters(features, options, out, bar, commit_s=0.0)
            break
        except KeyboardInterrupt:
            stops += 1
            assert not out.with_suffix(".npy").exists()
            assert stops < 40, seen
    assert stops > 3
    assert done.resumed
    assert files(out) == whole
    bar, _ = stopping(3)
    with pytest.raises(KeyboardInterrupt):
        make_clusters(features, ClusterOptions(clusters=9, seed=2), tmp_path / "changed", bar, commit_s=0.0)
    assert (tmp_path / "changed.model.part").exists()
    changed = make_clusters(features, options, tmp_path / "changed", quiet)
    assert (changed.resumed, changed.anew is None) == (False, False)
    assert files(tmp_path / "changed") == whole
    other = make_clusters(features, ClusterOptions(clusters=3, seed=1), out, quiet)
    assert len(other.sizes) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": 237}, "expected as many samples as clusters, 237, found 236 with features"),
        ({}, "the same in all rows"),
    ],
)
def test_too_few_samples_and_features_without_a_difference_are_refused(
    features: Features, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    if not change:
        array = np.ones((239, 4), dtype=np.float16)
        Overlay(kind="features", array=array, manifest_digest=features.manifest_digest, info=features.info).save(
            tmp_path / "f"
        )
        features = open_features(tmp_path / "f", None)
    with pytest.raises(TrainError, match=message):
        make_clusters(features, ClusterOptions(**change), tmp_path / "clusters", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.json", "f.npy"]


def test_features_of_another_data_set_are_refused(
    features: Features, small_dataset: Path, val_dataset: Path, tmp_path: Path
) -> None:
    assert open_features(tmp_path / "f.npy", small_dataset).identity == features.identity
    with pytest.raises(OverlayMismatchError, match="make it again for these shards"):
        open_features(tmp_path / "f", val_dataset)
    with pytest.raises(OverlayMismatchError, match="of kind 'features'"):
        Overlay.load(tmp_path / "f", manifest_digest=features.manifest_digest, kind="clusters")
    make_tiers(features, CurriculumOptions(), tmp_path / "tiers")
    with Dataset.open(val_dataset) as other, pytest.raises(OverlayMismatchError):
        Overlay.load(tmp_path / "tiers", manifest_digest=other.manifest.digest)


def test_tiers_are_of_each_class_by_itself_and_the_same_after_a_stop(features: Features, tmp_path: Path) -> None:
    done = make_tiers(features, CurriculumOptions(), tmp_path / "whole")
    found = load(tmp_path / "whole", features, "tiers").array
    assert found.dtype == np.uint8
    assert np.flatnonzero(found == 0).tolist() == MISSING
    for class_id in range(6):
        members = np.flatnonzero((features.labels == class_id) & (found > 0))
        expected = tiers(densities(features.array[members].astype(np.float32)))
        assert np.array_equal(found[members], expected)
    assert done.counts.tolist() == np.bincount(found, minlength=4).tolist()
    left = iter([False, False, True])

    def advance(_more: int) -> None:
        if next(left, False):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_tiers(features, CurriculumOptions(), tmp_path / "pieces", advance, commit_s=0.0)
    assert make_tiers(features, CurriculumOptions(), tmp_path / "pieces").resumed_at == 3
    assert files(tmp_path / "pieces") == files(tmp_path / "whole")


def test_large_classes_are_compared_with_references(features: Features, tmp_path: Path) -> None:
    options = CurriculumOptions(exact_up_to=55, references=50)
    assert make_tiers(features, options, tmp_path / "tiers").sampled_classes == 2  # 120 and 61 samples, few without
    exact = make_tiers(features, CurriculumOptions(exact_up_to=500, references=50), tmp_path / "exact")
    assert exact.sampled_classes == 0
    found, wanted = (load(tmp_path / name, features, "tiers").array for name in ("tiers", "exact"))
    small = features.labels > 1
    assert np.array_equal(found[small], wanted[small])
    assert (found == wanted).mean() > 0.8
