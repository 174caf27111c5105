"""Clusters of features: k-means on PCA-whitened rows, over all samples or within each class.

After Sun et al., "Learning From Web data: learning all or learning good?", 2018, whose base model learns clusters in
place of classes. What is held in memory: a sample of rows to learn the whitening from, whitened rows to learn the
centroids from (SAMPLES_PER_CLUSTER for each), an id per sample.
"""

import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from wv_shards import COMMIT_S, Overlay, OverlayRows, write_atomic
from wv_train.annotate.feature_input import Features
from wv_train.annotate.kmeans import F32, FAISS_VERSION, Whitening, kmeans_steps, nearest, train_whitening
from wv_train.errors import FieldError, TrainError

KIND = "clusters"
SAMPLES_PER_CLUSTER = 256
"""Rows that centroids are learned from, for each; more change them little (faiss takes as many)."""
_PCA_ROWS, _PCA_ROWS_PER_COLUMN = 16_384, 16
"""The whitening is learned from so many rows, or so many for each column where that is more."""

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""What and how much there is to do → what is told how much more is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """What is asked for."""

    clusters: int = 1000
    """Over all samples; not looked at with `per_class`."""
    per_class: int | None = None
    """Clusters within each class instead; a class with fewer samples gets one for each."""
    pca: int = 128
    """Components of the whitened rows, at most."""
    iterations: int = 25
    """Of k-means."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clusters", "pca", "iterations"):
            if getattr(self, name) < 1:
                raise FieldError(name, "1 or more", getattr(self, name))
        if self.per_class is not None and self.per_class < 1:
            raise FieldError("per_class", "1 or more", self.per_class)
        if self.seed < 0 or self.seed >= 2**31:
            raise FieldError("seed", "0 to 2³¹ − 1", self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clustered:
    """What came of it."""

    sizes: NDArray[np.int64]
    """(K,) samples of each cluster, none 0."""
    without: int
    """Samples that have no features, and no cluster."""
    asked: int
    """Clusters that were asked for; fewer are there where some got no sample, or a class has too few."""
    resumed: bool
    anew: str | None


def make_clusters(
    features: Features, options: ClusterOptions, out: Path, bar: Bar, *, commit_s: float = COMMIT_S
) -> Clustered:
    """Make the overlay `clusters`, or what is left to do of it, as `out`.

    Raises TrainError: fewer samples than clusters, or features without any difference.
    """
    asked = {"clusters": None} if options.per_class is not None else {}
    identity = {**features.identity, **{f"asked_{k}": v for k, v in (asdict(options) | asked).items()}}
    identity["faiss"] = FAISS_VERSION
    made: dict[str, Any] = {"kind": KIND, "manifest_digest": features.manifest_digest, "identity": identity}
    samples = len(features.array)
    with OverlayRows(out, shape=(samples,), dtype=np.int32, commit_s=commit_s, **made) as rows:
        learned = _Learned(out.with_name(out.name + ".model.part"), rows)
        resumed = learned.resumed or rows.done > 0
        if not OverlayRows.is_finished(out, **made):
            try:
                components = _cluster_all(rows, learned, features, options, bar)
            except TrainError:  # of no use to go on with
                rows.discard()
                learned.path.unlink(missing_ok=True)
                raise
            _save(rows, features, options, components, out)
        rows.discard()
        learned.path.unlink(missing_ok=True)
    found = Overlay.load(out, manifest_digest=features.manifest_digest, kind=KIND)
    return Clustered(
        sizes=np.bincount(found.array[found.array >= 0]),
        without=int((found.array < 0).sum()),
        asked=options.clusters if options.per_class is None else options.per_class * features.classes,
        resumed=resumed,
        anew=rows.anew,
    )


def _cluster_all(rows: OverlayRows, learned: "_Learned", features: Features, options: ClusterOptions, bar: Bar) -> int:
    """Fill the rows; how many components the whitening has."""
    whitening = learned.whitening(features, options, bar)
    if options.per_class is None:
        _assign(rows, features, whitening, learned.centroids(features, whitening, options, bar), bar)
    else:
        _within_classes(rows, features, whitening, options, bar)
    return len(whitening.matrix)


class _Learned:
    """The whitening and the last centroids, kept in a file of their own while the overlay is in the making."""

    def __init__(self, path: Path, rows: OverlayRows) -> None:
        self.path = path
        self._key = json.dumps({**rows.identity, "manifest_digest": rows.manifest_digest}, sort_keys=True)
        self._arrays: dict[str, NDArray[Any]] = {}
        try:
            with np.load(path) as saved:
                if str(saved["key"]) == self._key:
                    self._arrays = {name: saved[name] for name in saved.files if name != "key"}
        except (OSError, ValueError, KeyError, BadZipFile):
            pass  # not begun, or by another version: learned again
        self.resumed = bool(self._arrays)

    def whitening(self, features: Features, options: ClusterOptions, bar: Bar) -> Whitening:
        if "matrix" not in self._arrays:
            size = max(_PCA_ROWS, _PCA_ROWS_PER_COLUMN * features.array.shape[1])
            with bar("whitening", 1) as advance:
                _, sample = features.rows(features.drawn(size, options.seed))
                if not len(sample):
                    raise TrainError("expected features to cluster, found none: all rows are empty")
                found = train_whitening(sample, options.pca)
                advance(1)
            self._keep(matrix=found.matrix, bias=found.bias)
        return Whitening(matrix=self._arrays["matrix"], bias=self._arrays["bias"])

    def centroids(self, features: Features, whitening: Whitening, options: ClusterOptions, bar: Bar) -> F32:
        steps = int(self._arrays.get("steps", 0))
        if steps < options.iterations:
            ordinals = features.drawn(SAMPLES_PER_CLUSTER * options.clusters, options.seed + 1)
            pieces = [whitening.apply(features.rows(piece)[1]) for piece in features.pieces(ordinals)]
            sample = np.concatenate(pieces)
            del pieces
            if len(sample) < options.clusters:
                raise TrainError(
                    f"expected as many samples as clusters, {options.clusters:,}, found {len(sample):,} with features; "
                    "ask for fewer: --clusters"
                )
            with bar("k-means", options.iterations) as advance:
                advance(steps)
                left = kmeans_steps(
                    sample,
                    options.clusters,
                    iterations=options.iterations - steps,
                    seed=options.seed,
                    centroids=self._arrays.get("centroids"),
                )
                for number, centroids in enumerate(left, steps + 1):
                    self._keep(centroids=centroids, steps=np.array(number))
                    advance(1)
        return self._arrays["centroids"]

    def _keep(self, **arrays: NDArray[Any]) -> None:
        self._arrays |= arrays
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, key=np.array(self._key), **self._arrays)
        write_atomic(self.path, buffer.getvalue())


def _assign(rows: OverlayRows, features: Features, whitening: Whitening, centroids: F32, bar: Bar) -> None:
    """Every sample to its nearest centroid."""
    samples = len(rows.array)
    with bar("assigning", samples) as advance:
        advance(rows.done)
        for piece in features.pieces(np.arange(rows.done, samples)):
            ordinals, taken = features.rows(piece)
            rows.array[piece] = -1
            if len(ordinals):
                rows.array[ordinals] = nearest(whitening.apply(taken), centroids)
            advance(len(piece))
            rows.advance(int(piece[-1]) + 1)


def _within_classes(
    rows: OverlayRows, features: Features, whitening: Whitening, options: ClusterOptions, bar: Bar
) -> None:
    """Every class clustered for itself: ids from 0 in each."""
    assert options.per_class is not None
    members = features.by_class()
    with bar("classes", len(members)) as advance:
        advance(rows.done)
        for class_id in range(rows.done, len(members)):
            pieces = [features.rows(piece) for piece in features.pieces(members[class_id])]
            rows.array[members[class_id]] = -1
            if pieces and (ordinals := np.concatenate([found for found, _ in pieces])).size:
                whitened = np.concatenate([whitening.apply(taken) for _, taken in pieces])
                count = min(options.per_class, len(ordinals))
                rows.array[ordinals] = _cluster(whitened, count, options, seed=options.seed + class_id)
            advance(1)
            rows.advance(class_id + 1)


def _cluster(whitened: F32, count: int, options: ClusterOptions, *, seed: int) -> NDArray[np.int32]:
    size = SAMPLES_PER_CLUSTER * count
    sample = whitened
    if len(whitened) > size:
        sample = whitened[np.sort(np.random.default_rng(seed).choice(len(whitened), size, replace=False))]
    *_, centroids = kmeans_steps(sample, count, iterations=options.iterations, seed=seed % 2**31)
    return nearest(whitened, centroids)


def _save(rows: OverlayRows, features: Features, options: ClusterOptions, components: int, out: Path) -> None:
    """Ids made dense: clusters that no sample is nearest to get none."""
    found = np.array(rows.array, dtype=np.int64)
    has = found >= 0
    if options.per_class is not None:
        found += features.labels.astype(np.int64) * options.per_class
    used, dense = np.unique(found[has], return_inverse=True)
    array = np.full(len(found), -1, dtype=np.int32)
    array[has] = dense
    Overlay(
        kind=KIND,
        array=array,
        manifest_digest=features.manifest_digest,
        info={
            **rows.identity,
            "clusters": len(used),
            "classes": None if options.per_class is None else (used // options.per_class).tolist(),
            "components": components,
            "features": features.info,
        },
        neutral=-1,
    ).save(out)
