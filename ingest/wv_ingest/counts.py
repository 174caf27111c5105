"""What a data set holds, counted: raw and packed, per class, per band and per source. Nothing is decoded.

Raw counts are rows of the source, packed counts are samples in the tars. Classes, bands and sources without any stand
here too, with zeros. Tables are read in batches, so memory does not grow with the samples.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wv_ingest.check import Reason
from wv_ingest.exclude import excluded_rows, refuse_lost
from wv_shards import REJECTS_FILE, SAMPLES_FILE, CorruptDataError, Dataset, Manifest

_INDEX_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginCounts:
    """Classes against sources. A source is the first part of a path, as in `google/q0001/name.jpg`."""

    names: tuple[str, ...]
    """(S,) those of the manifest; there is a "" more if some rows are of none of them."""
    rows: NDArray[np.int64]
    """(K, S) rows of the source, `filtered` ones left out."""
    samples: NDArray[np.int64]
    """(K, S) samples packed."""
    rejects: tuple[Counter[str], ...]
    """(S,) rows that did not get in, by reason; `filtered` ones and those without a label left out."""


def stats_document(dataset: Dataset) -> dict[str, Any]:
    """All that `stats` prints and `report` shows, JSON-able.

    Raises:
        ShardsError: a table or the exclude overlay is not what the manifest says.
    """
    manifest = dataset.manifest
    class_bytes, class_excluded = _class_sums(dataset)
    origins = count_origins(dataset)
    classes = [
        {
            "class_id": c.class_id,
            "original_id": c.class_id if c.original_id is None else c.original_id,
            "name": c.name,
            "band": c.band,
            "rows": c.rows,
            "samples": c.samples,
            "excluded": int(class_excluded[c.class_id]),
            "bytes": int(class_bytes[c.class_id]),
            "sources": {
                name: {"rows": int(origins.rows[c.class_id, s]), "samples": int(origins.samples[c.class_id, s])}
                for s, name in enumerate(origins.names)
            },
        }
        for c in manifest.classes
    ]
    return {
        "format_version": manifest.format_version,
        "digest": manifest.digest,
        "split": manifest.split,
        "seed": manifest.seed,
        "options": manifest.options,
        "codecs": manifest.codecs,
        "rows": manifest.rows,
        "samples": manifest.samples,
        "excluded": int(class_excluded.sum()),
        "rejects": manifest.rejects,
        "sources": {
            name: {
                "rows": int(origins.rows[:, s].sum()),
                "samples": int(origins.samples[:, s].sum()),
                "rejects": dict(sorted(origins.rejects[s].items())),
            }
            for s, name in enumerate(origins.names)
        },
        "unlisted": None if manifest.unlisted is None else asdict(manifest.unlisted),
        "metadata_gaps": manifest.metadata_gaps,
        "duplicates": None if manifest.duplicates is None else asdict(manifest.duplicates),
        "shards": len(manifest.shards),
        "shard_bytes": sum(shard.bytes for shard in manifest.shards),
        "image_bytes": int(class_bytes.sum()),
        "per_class": class_figures([c.samples for c in manifest.classes]),
        "bands": _bands(manifest, classes),
        "classes": classes,
    }


def class_figures(counts: list[int]) -> dict[str, Any]:
    """Smallest, median and largest class, and how many times the largest is the smallest one; empty ones left out."""
    some = sorted(count for count in counts if count)
    return {
        "classes": len(counts),
        "without": len(counts) - len(some),
        "min": some[0] if some else 0,
        "median": float(np.median(some)) if some else 0.0,
        "max": some[-1] if some else 0,
        "imbalance": some[-1] / some[0] if some else None,
    }


def exclusions(dataset: Dataset) -> NDArray[np.bool_] | None:
    """(N,) samples that are packed and not to be shown; None if the data set has no such overlay.

    Raises:
        ShardsError: the overlay is broken, or of another data set.
    """
    refuse_lost(dataset.directory, dataset.manifest)
    rows = excluded_rows(dataset.directory, dataset.manifest)
    return None if rows is None else rows.astype(bool)


def index_chunks(samples: int) -> Iterator[slice]:
    """Ordinals 0 … samples − 1 in pieces: what is copied out of the index at a time."""
    for start in range(0, samples, _INDEX_CHUNK):
        yield slice(start, min(samples, start + _INDEX_CHUNK))


def table_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a Parquet table, batch by batch.

    Raises:
        CorruptDataError: it is missing or can't be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise CorruptDataError(
            f"{path}: not a readable table ({type(error).__name__}); build the shards again"
        ) from error


def count_origins(dataset: Dataset) -> OriginCounts:
    """Count classes against sources, in one pass over both tables; no source at all where the manifest names none.

    Raises:
        CorruptDataError: a table is missing or can't be read.
    """
    manifest = dataset.manifest
    names = (*sorted(manifest.sources), "")
    shape = (len(manifest.classes), len(names))
    samples, lost = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    rejects = tuple(Counter[str]() for _ in names)
    if manifest.sources:
        for batch in table_batches(dataset.directory / SAMPLES_FILE, ["label", "source"]):
            _add(samples, batch.column("label"), _places(batch.column("source"), names))
        for batch in table_batches(dataset.directory / REJECTS_FILE, ["label", "reason", "path"]):
            asked_for = batch.filter(  # a row without a class is none of the classes' rows
                pc.and_(
                    pc.not_equal(batch.column("reason"), Reason.FILTERED.value),
                    pc.greater_equal(batch.column("label"), 0),
                )
            )
            origins = _places(_first_part(asked_for.column("path")), names)
            _add(lost, asked_for.column("label"), origins)
            for s, counter in enumerate(rejects):
                counted = pc.value_counts(asked_for.column("reason").filter(pa.array(origins == s)))
                counter.update({row["values"]: row["counts"] for row in counted.to_pylist()})
    rows = samples + lost
    kept = len(names) if rows[:, -1].any() else len(names) - 1
    return OriginCounts(names=names[:kept], rows=rows[:, :kept], samples=samples[:, :kept], rejects=rejects[:kept])


def _class_sums(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(K,) bytes of images, (K,) samples excluded."""
    classes = len(dataset.manifest.classes)
    sums, hidden = np.zeros(classes, dtype=np.int64), np.zeros(classes, dtype=np.int64)
    excluded = exclusions(dataset)
    for part in index_chunks(dataset.manifest.samples):
        labels, sizes = dataset.index["label"][part], dataset.index["size"][part]
        sums += np.bincount(labels, weights=sizes, minlength=classes).astype(np.int64)
        if excluded is not None:
            hidden += np.bincount(labels[excluded[part]], minlength=classes)
    return sums, hidden


def _bands(manifest: Manifest, classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By band; last those of no band: classes without rows, and tars that were not packed by band."""
    sums = ("rows", "samples", "excluded", "bytes")
    found = sorted({c["band"] for c in classes}, key=lambda band: (band is None, band or 0))
    bands = {band: {"band": band, "classes": 0, **dict.fromkeys(sums, 0), "shards": 0} for band in found}
    for info in classes:
        band = bands[info["band"]]
        band["classes"] += 1
        for name in sums:
            band[name] += info[name]
    for shard in manifest.shards:
        if shard.band in bands:
            bands[shard.band]["shards"] += 1
    return list(bands.values())


def _first_part(paths: pa.Array) -> pa.Array:
    """`google` of `google/q0001/name.jpg`; "" where a path has fewer parts."""
    found = pc.extract_regex(paths, r"(?s)^(?P<first>[^/]*)/[^/]*/.*$")
    return pc.fill_null(pc.struct_field(found, "first"), "")


def _places(origins: pa.Array, names: tuple[str, ...]) -> NDArray[np.int64]:
    """(n,) the place of each origin in `names`, whose last stands for all others."""
    found = pc.fill_null(pc.index_in(origins, pa.array(names)), len(names) - 1)
    return np.asarray(found, dtype=np.int64)


def _add(counts: NDArray[np.int64], labels: pa.Array, places: NDArray[np.int64]) -> None:
    """Add to counts (K, S) one for each pair of a label and a place."""
    flat = labels.to_numpy().astype(np.int64) * counts.shape[1] + places
    counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
