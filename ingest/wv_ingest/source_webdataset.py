"""Samples of WebDataset tars as rows: path `TAR/MEMBER`, the place of the image, and a class id.

All tars are scanned before (`wds_samples.scan_tar`). Here their labels become class ids, and samples without one are
put aside, with the reason.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from wv_ingest.check import Reason
from wv_ingest.errors import SourceError
from wv_ingest.keys import text_of
from wv_ingest.sources import MAX_CLASSES, Classes, Source, rows_table
from wv_ingest.tars import EXAMPLES, NO_IMAGE, PLACE_DTYPE, Unlisted
from wv_ingest.wds_samples import ScannedTar

_DIGITS = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WebDatasetTars:
    """Tars of a source, scanned."""

    names: tuple[str, ...]
    """What row paths call them."""
    paths: tuple[Path, ...]
    """Where their bytes lie: as long as `names`."""
    scanned: tuple[ScannedTar, ...]
    warnings: tuple[str, ...] = ()
    streams: str | None = None
    """A fingerprint of their URLs where some were spooled: what they hold may change without notice."""
    class_names: tuple[str, ...] | None = None
    """By class id; None: the labels themselves."""


def read(where: str, tars: WebDatasetTars, classes: Classes | None) -> Source:
    """Rows of all samples; see `sources.read_source`.

    Args:
        where: the source, for messages.
        tars: its tars.
        classes: of the training set.

    Raises:
        SourceError: no sample has a label.
    """
    samples = pa.concat_tables(tar.samples for tar in tars.scanned)
    names = classes.names if classes is not None else tars.class_names
    labels, names, reasons, details, warning = _class_ids(samples, names)
    rowless = np.array([reason != "" for reason in reasons.to_pylist()], dtype=bool)
    if len(samples) and rowless.all():
        counts = ", ".join(f"{n['values']} {n['counts']}" for n in pc.value_counts(reasons).to_pylist())
        raise SourceError(
            f"{where}: none of its {len(samples)} samples has a label ({counts}); expected a member .cls with a whole "
            "number, or a .json (--label-key names the value in it)"
        )
    paths = _paths(tars)
    of_tar = np.repeat(np.arange(len(tars.names)), [tar.samples.num_rows for tar in tars.scanned])
    places = np.zeros(len(samples), dtype=PLACE_DTYPE)
    places["offset"], places["size"] = samples.column("offset").to_numpy(), samples.column("size").to_numpy()
    places["tar"] = np.where(places["offset"] < 0, NO_IMAGE, of_tar)
    kept = np.flatnonzero(~rowless)
    take = pa.array(kept)
    out = np.flatnonzero(rowless)
    strays: list[bytes] = []
    for name, tar in zip(tars.names, tars.scanned, strict=True):
        strays += [name.encode() + b"/" + stray for stray in tar.first_strays]
    left_out = None
    if len(out):
        numbers = pa.array(out)
        left_out = pa.table(
            {
                "path": paths.take(numbers),
                "label": pa.array(np.full(len(out), -1, dtype=np.int32)),
                "source": samples.column("source").take(numbers).dictionary_encode(),
                "detail": details.take(numbers),
                "row": numbers,
                "reason": reasons.take(numbers),
            }
        ).combine_chunks()
    return Source(
        source_format="webdataset",
        root=tars.paths[0].parent,
        rows=rows_table(
            paths.take(take).chunks,
            [labels[kept]],
            samples.column("source").take(take).chunks,
            samples.column("query").take(take).chunks,
        ),
        class_names=names,
        warnings=(*tars.warnings, *(text for tar in tars.scanned for text in tar.warnings), *warning),
        tars=tars.paths,
        places=places[kept],
        streams=tars.streams,
        strays=Unlisted(
            files=sum(tar.strays for tar in tars.scanned),
            first=tuple(text_of(name) for name in sorted(strays)[:EXAMPLES]),
        ),
        numbers=kept if left_out is not None else None,
        left_out=left_out,
    )


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names of classes, one a line, by class id.

    Raises:
        SourceError: no such file, no text, an empty line, a name that stands there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise SourceError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SourceError(f"{path}: not UTF-8 text; expected a class name a line") from None
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, 1):
        if not name or name in names[: number - 1]:
            what = f"'{name}' stands there before" if name else "no name"
            raise SourceError(f"{path} line {number}: {what}; expected a class name a line, each once")
    if not names:
        raise SourceError(f"{path}: empty; expected a class name a line")
    return tuple(names)


def digest_of(texts: Sequence[str]) -> str:
    """A fingerprint of texts, for the manifest's options: they may name machines and folders."""
    return xxhash.xxh3_128_hexdigest("\0".join(texts).encode("utf-8", "surrogateescape"))


def _paths(tars: WebDatasetTars) -> pa.ChunkedArray:
    slash = pa.scalar(b"/", pa.large_binary())
    chunks: list[pa.Array] = []
    for name, tar in zip(tars.names, tars.scanned, strict=True):
        prefix = pa.scalar(name.encode("utf-8", "surrogateescape"), pa.large_binary())
        chunks += [pc.binary_join_element_wise(prefix, part, slash) for part in tar.samples.column("member").chunks]
    return pa.chunked_array(chunks, pa.large_binary())


def _class_ids(
    samples: pa.Table, names: tuple[str, ...] | None
) -> tuple[NDArray[np.int32], tuple[str, ...], pa.ChunkedArray, pa.ChunkedArray, tuple[str, ...]]:
    """(samples,) class ids, −1 where there is none; the names; reasons and details of those; warnings."""
    encoded = samples.column("label").combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(len(texts)).to_numpy().astype(np.int64)  # (samples,); the last: no label
    warning: tuple[str, ...] = ()
    numbered = [_DIGITS.fullmatch(text) is not None for text in texts]
    if all(numbered):
        limit = MAX_CLASSES if names is None else len(names)
        ids = [int(text) if 0 <= int(text) < limit else -1 for text in texts]
        names = tuple(str(i) for i in range(max(ids, default=-1) + 1)) if names is None else names
        detail = "range"
    else:
        if names is None:
            names = tuple(sorted(texts, key=lambda text: text.encode()))
        by_name = {name: class_id for class_id, name in enumerate(names)}
        ids = [by_name.get(text, -1) for text in texts]
        detail = "unknown-class"
        counts = np.bincount(codes, minlength=len(texts) + 1)
        numbers, others = (
            int(sum(counts[i] for i, yes in enumerate(numbered) if yes is want)) for want in (True, False)
        )
        if numbers > others:
            warning = (f"labels are taken as names: {others} of {numbers + others} are not whole numbers",)
    lookup = np.array([*ids, -1], dtype=np.int32)
    labels = lookup[codes]
    beyond = pa.chunked_array([pa.array((labels < 0) & (codes < len(texts)))])
    reasons = pc.if_else(beyond, Reason.BAD_LABEL.value, samples.column("reason"))
    details = pc.if_else(beyond, detail, samples.column("detail"))
    return labels, names, reasons, details, warning
