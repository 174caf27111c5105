"""Part of a source: one of its origins, some of its classes. Rows left out stay accounted for."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wv_ingest.check import Reason
from wv_ingest.errors import SourceError
from wv_ingest.sources import MAX_CLASSES, Source

_RANGE = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")


def parse_classes(text: str) -> tuple[int, ...]:
    """Class ids of `0-49` or `0-49,60`, ascending.

    Raises:
        ValueError: it says no such thing.
    """
    ids: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"classes: expected ids and ranges like 0-49,60, got '{text}'")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < MAX_CLASSES:
            raise ValueError(f"classes: {first}-{last} is no range within 0 … {MAX_CLASSES - 1}")
        ids.update(range(first, last + 1))
    return tuple(sorted(ids))


def select(source: Source, origin: str | None, class_ids: Sequence[int] | None, names: Sequence[str] | None) -> Source:
    """The rows of one origin and of some classes, whose ids become 0 … k − 1 in the order given.

    Args:
        source: all rows.
        origin: `google` or `flickr`; None: all.
        class_ids: None: all; −1: a class that the source does not have.
        names: of the classes chosen; None: as the source names them.

    Raises:
        SourceError: the source has no such class, or nothing is left.
    """
    labels = source.labels
    kept = np.ones(len(labels), dtype=bool)
    if origin is not None:
        of_origin = pc.equal(source.rows.column("source"), origin).to_numpy(zero_copy_only=False)
        if not of_origin.any():
            raise SourceError(f"{source.root}: --only {origin}: none of the rows is of {origin}")
        kept &= of_origin
    lookup = np.arange(max(1, len(source.class_names)), dtype=np.int32)  # (classes,) new id by old
    if class_ids is not None:
        beyond = [c for c in class_ids if c >= len(source.class_names)]
        if beyond:
            raise SourceError(
                f"{source.root}: no class {beyond[0]}; expected ids within 0 … {len(source.class_names) - 1}"
            )
        lookup[:] = -1
        for new, old in enumerate(class_ids):
            if old >= 0:
                lookup[old] = new
        names = names or [source.class_names[c] for c in class_ids]
        kept &= lookup[labels] >= 0
    new_labels = lookup[labels]
    if not kept.any():
        raise SourceError(f"{source.root}: no row is of the origin and the classes asked for")
    column = source.rows.schema.get_field_index("label")
    rows = source.rows.set_column(column, "label", pa.array(new_labels, pa.int32()))
    out = np.flatnonzero(~kept)
    numbers = pa.array(out)
    words = pa.array([*(f"class-{c}" for c in range(len(source.class_names))), "source"])
    codes = np.where(new_labels[out] < 0, labels[out], len(words) - 1).astype(np.int32)
    detail = pa.DictionaryArray.from_arrays(pa.array(codes), words)
    own = np.arange(len(labels)) if source.numbers is None else source.numbers  # (rows,) numbers in the source
    left_out = rows.select(["path", "label", "source"]).take(numbers)
    left_out = left_out.append_column("detail", detail).append_column("row", pa.array(own[out]))
    left_out = left_out.append_column("reason", pa.repeat(pa.scalar(Reason.FILTERED.value), len(out)))
    if source.left_out is not None:
        other = source.left_out if origin is None else _of_other_origins(source.left_out, origin)
        left_out = pa.concat_tables([left_out.cast(other.schema), other]).unify_dictionaries().sort_by("row")
    return replace(
        source,
        rows=rows.filter(pa.array(kept)).combine_chunks(),
        class_names=tuple(names) if names is not None else source.class_names,
        original_ids=None if class_ids is None else tuple(class_ids),
        numbers=own[kept],
        left_out=left_out.combine_chunks(),
        places=None if source.places is None else source.places[kept],
    )


def _of_other_origins(left_out: pa.Table, origin: str) -> pa.Table:
    """Rows that can't be read are not asked for either where they are of another origin."""
    own = pc.equal(left_out.column("source").cast(pa.string()), origin)
    for name, value in (("reason", Reason.FILTERED.value), ("detail", "source")):
        place = left_out.schema.get_field_index(name)
        left_out = left_out.set_column(place, name, pc.if_else(own, left_out.column(name), value))
    return left_out
