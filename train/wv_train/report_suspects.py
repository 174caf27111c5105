"""What the page of suspects shows: which classes, which of their samples, and small pictures of these.

The page's size is bounded, however large the data set: classes with the most wrong labels to be expected come first,
each with a few of its worst, until there are pictures enough. `report_suspects_page` writes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wv_shards import Dataset
from wv_train.ledger import history_of
from wv_train.thumbnail import thumbnail

THUMBNAIL_PX = 80
PAGE_IMAGES = 2000
"""Pictures on the page by default: some 6 MB."""
OVERALL_IMAGES = 120
"""The worst of all classes."""
_LEAST_OF_A_CLASS = 8
"""Pictures of a class that comes onto the page, where it has so many samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuspectImage:
    """One sample on the page."""

    key: str
    path: str
    label: int
    believed: int
    """Class ids; −1: unknown."""
    wrong: float
    """Probability that the label is wrong."""
    mean_confidence: float
    """Of the label, over all visits."""
    last_confidence: float
    visits: int
    gated: int
    history: tuple[float, ...]
    """The label's confidence at the last visits, oldest first."""
    thumbnail: bytes | None
    """A JPEG; None if the image can't be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSuspects:
    """A class in the list."""

    class_id: int
    name: str
    samples: int
    """That have a probability."""
    expected_wrong: float
    images: tuple[int, ...]
    """Places of its worst samples in the page's images, the worst first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuspectsPage:
    """Everything that the page shows."""

    run: str
    shards: str
    samples: int
    known: int
    expected_wrong: float
    interval: tuple[float, float]
    """Of the number of wrong labels."""
    names: tuple[str, ...]
    """Of all classes."""
    classes: tuple[ClassSuspects, ...]
    """Those that have samples, the most wrong labels first."""
    overall: tuple[int, ...]
    """Places of the worst samples of all classes."""
    images: tuple[SuspectImage, ...]


def chosen_ordinals(
    wrong: NDArray[np.float64], labels: NDArray[np.int64], *, images: int = PAGE_IMAGES
) -> tuple[NDArray[np.int64], dict[int, NDArray[np.int64]]]:
    """Ordinals of the worst overall, and of the worst of each class that comes onto the page.

    Of a class as many as are expected to be wrong, within its share of the page and not fewer than a handful.

    Args:
        wrong: (N,) probability that the label is wrong, NaN where unknown.
        labels: (N,) class ids.
        images: samples on the page, at most.
    """
    known = np.flatnonzero(~np.isnan(wrong))
    order = known[np.argsort(-wrong[known], kind="stable")]
    overall = order[: min(OVERALL_IMAGES, images)]
    classes = int(labels.max(initial=-1)) + 1
    expected = np.bincount(labels[known], weights=wrong[known], minlength=classes)
    share = max(_LEAST_OF_A_CLASS, images // max(1, classes))
    per_class = np.clip(np.rint(expected).astype(np.int64), _LEAST_OF_A_CLASS, share)
    by_class = order[np.argsort(labels[order], kind="stable")]  # within a class the worst first
    starts = np.searchsorted(labels[by_class], np.arange(classes + 1))
    taken = set(overall.tolist())
    chosen: dict[int, NDArray[np.int64]] = {}
    for class_id in np.argsort(-expected, kind="stable").tolist():
        worst = by_class[starts[class_id] : starts[class_id + 1]][: per_class[class_id]]
        more = set(worst.tolist()) - taken
        if not len(worst):
            continue
        if len(taken) + len(more) > images:
            break
        taken |= more
        chosen[class_id] = worst
    return overall, chosen


def gather_page(
    dataset: Dataset,
    ledger: NDArray[Any],
    wrong: NDArray[np.float64],
    believed: NDArray[np.int64],
    *,
    run: str,
    names: Sequence[str],
    interval: tuple[float, float],
    images: int = PAGE_IMAGES,
) -> SuspectsPage:
    """Choose, and read the pictures. Arrays are (N,), `ledger` of LEDGER_DTYPE, `wrong` NaN where unknown.

    Raises ShardsError: the table of samples is damaged. A damaged image is shown as such.
    """
    labels = dataset.index["label"][: len(wrong)].astype(np.int64)
    overall, by_class = chosen_ordinals(wrong, labels, images=images)
    ordinals = np.unique(np.concatenate([overall, *by_class.values()]))
    place = {int(ordinal): number for number, ordinal in enumerate(ordinals)}
    facts = dataset.samples_table(["key", "path"]).take(ordinals).to_pylist()
    histories = history_of(ledger[ordinals])
    known = ~np.isnan(wrong)
    counts = np.bincount(labels[known], minlength=len(names))
    expected = np.bincount(labels[known], weights=wrong[known], minlength=len(names))
    return SuspectsPage(
        run=run,
        shards=str(dataset.directory),
        samples=len(wrong),
        known=int(known.sum()),
        expected_wrong=float(expected.sum()),
        interval=interval,
        names=tuple(names),
        classes=tuple(
            ClassSuspects(
                class_id=class_id,
                name=names[class_id],
                samples=int(counts[class_id]),
                expected_wrong=float(expected[class_id]),
                images=tuple(place[ordinal] for ordinal in by_class.get(class_id, np.empty(0, np.int64)).tolist()),
            )
            for class_id in np.argsort(-expected, kind="stable").tolist()
            if counts[class_id]
        ),
        overall=tuple(place[ordinal] for ordinal in overall.tolist()),
        images=tuple(
            _image(dataset, ordinal, fact, ledger[ordinal], history, float(wrong[ordinal]), int(believed[ordinal]))
            for ordinal, fact, history in zip(ordinals.tolist(), facts, histories, strict=True)
        ),
    )


def _image(
    dataset: Dataset,
    ordinal: int,
    fact: dict[str, str],
    row: Any,
    history: NDArray[np.float32],
    wrong: float,
    believed: int,
) -> SuspectImage:
    return SuspectImage(
        key=fact["key"],
        path=fact["path"],
        label=int(dataset.index[ordinal]["label"]),
        believed=believed,
        wrong=wrong,
        mean_confidence=float(row["label_conf_mean"]),
        last_confidence=float(row["label_conf"]),
        visits=int(row["seen"]),
        gated=int(row["gated"]),
        history=tuple(round(float(value), 3) for value in history[np.isfinite(history)]),
        thumbnail=thumbnail(dataset, ordinal, THUMBNAIL_PX),
    )
