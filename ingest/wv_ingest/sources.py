"""What to build from: every row of the source as columns, and the classes' names. No image is opened here.

Four layouts are read (`webvision`, `folders`, `list`, `webdataset`; a file each), detected or named. A row is a path,
relative to the source's root, and a class id. Sixteen million rows fit: they are Arrow columns, never objects.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from wv_ingest.errors import SourceError
from wv_ingest.tars import Unlisted
from wv_shards import Manifest

if TYPE_CHECKING:
    from wv_ingest.source_webdataset import WebDatasetTars

SourceFormat = Literal["webvision", "folders", "list", "webdataset"]
Split = Literal["train", "val"]
Origin = Literal["google", "flickr", "all"]

ROWS_SCHEMA = pa.schema(
    [
        ("path", pa.large_binary()),  # bytes, as the file system knows it
        ("label", pa.int32()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("query", pa.dictionary(pa.int32(), pa.string())),
    ]
)

METADATA_COLUMNS = (
    pa.field("meta", pa.dictionary(pa.int32(), pa.string())),  # a JSON list
    pa.field("meta_row", pa.int32()),  # number in it, from 1; 0: none
)
"""Further columns of the rows, where the source has them."""

MAX_CLASSES = 1_000_000
"""More than this is taken for a mistake: ids that are no class ids."""
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """How the source is to be read."""

    split: Split = "train"
    source_format: SourceFormat | None = None
    """None: detect."""
    path_column: str = "path"
    label_column: str = "label"
    classes_from: Path | None = None
    """Shards whose classes, names and ids, this source has to use."""
    only: Origin = "all"
    """WebVision: the rows of one search engine."""
    class_ids: tuple[int, ...] | None = None
    """The classes to keep, ascending; their ids become 0 … k − 1. None: all."""
    label_key: str | None = None
    """WebDataset: where in a sample's `.json` the label is, as in `a.b`. None: in `.cls`, else `label` in `.json`."""
    class_names: Path | None = None
    """WebDataset: a file with a name a line, by class id."""

    def __post_init__(self) -> None:
        if self.class_ids is not None and self.classes_from is not None:
            raise ValueError("classes are chosen either by their ids or by a training set (--classes-from), got both")
        if self.class_names is not None and self.classes_from is not None:
            raise ValueError("class names come either from a file or from a training set (--classes-from), got both")

    def deciding(self) -> dict[str, object]:
        """The choice of rows, as the manifest's `options` has it; empty for all."""
        chosen: dict[str, object] = {} if self.only == "all" else {"only": self.only}
        if self.label_key is not None:
            chosen["label_key"] = self.label_key
        return chosen if self.class_ids is None else {**chosen, "classes": list(self.class_ids)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """All rows of a source, in its own order."""

    source_format: SourceFormat
    root: Path
    """What paths are relative to. Its place on this machine goes into no file."""
    rows: pa.Table
    """(rows,) of ROWS_SCHEMA."""
    class_names: tuple[str, ...]
    """By class id."""
    warnings: tuple[str, ...] = ()
    """What a person should know and no row shows."""
    tars: tuple[Path, ...] = ()
    """Archives that may hold what is not there as a file."""
    flat: bytes = b""
    """The folder of the flat validation images; see `tars.source_path`."""
    metadata_lists: tuple[str, ...] = ()
    """JSON lists that the lists name for some row, asked for or not."""
    folders: tuple[str, ...] | None = None
    """Folders in `root` whose files the lists should name; None: there is no saying."""
    original_ids: tuple[int, ...] | None = None
    """By class id: the id in the source; None: the same."""
    numbers: NDArray[np.int64] | None = None
    """(rows,) int64: each row's number in the source; None: all are there."""
    left_out: pa.Table | None = None
    """Rows not asked for, without a label, or not readable: path, label, source, detail, row (its number), reason."""
    places: NDArray[np.void] | None = None
    """(rows,) of tars.PLACE_DTYPE, where the source itself knows them; None: they are to be looked up."""
    strays: Unlisted | None = None
    """Members of WebDataset tars that belong to no sample."""
    streams: str | None = None
    """A fingerprint of the URLs of WebDataset tars that were spooled."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """(rows,) int32"""
        labels: NDArray[np.int32] = self.rows.column("label").to_numpy()
        return labels

    def class_rows(self) -> NDArray[np.int64]:
        """(classes,) int64: rows of each class, repeated ones too, those left out not."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    @property
    def rows_in_all(self) -> int:
        """Rows of the source, those left out too."""
        return int(self.rows.num_rows + (self.left_out.num_rows if self.left_out is not None else 0))

    @property
    def has_metadata(self) -> bool:
        """Whether the rows name records of metadata."""
        return "meta" in self.rows.schema.names

    def digest(self) -> str:
        """xxh3_128 over all paths, labels and records' numbers in their order, and the classes' names."""
        digest = xxhash.xxh3_128()
        for table in (self.rows, self.left_out):
            if table is None:
                continue
            for batch in table.select(["path", "label"]).to_batches(max_chunksize=1 << 16):
                paths, labels = batch.columns
                lengths = np.diff(np.frombuffer(paths.buffers()[1], dtype=np.int64)[paths.offset :][: len(paths) + 1])
                digest.update(lengths.tobytes())
                digest.update(b"".join(paths.to_pylist()))
                digest.update(labels.to_numpy().tobytes())
        if self.has_metadata:
            for batch in self.rows.select(["meta", "meta_row"]).to_batches(max_chunksize=1 << 16):
                digest.update("\0".join(batch.column(0).to_pylist()).encode("utf-8", "surrogateescape"))
                digest.update(batch.column(1).to_numpy().tobytes())
        if self.numbers is not None:
            digest.update(self.numbers.tobytes())
        if self.places is not None:
            digest.update(self.places.tobytes())
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """Class names by id, from the training set that a validation set must agree with."""

    names: tuple[str, ...]
    directory: Path
    original_ids: tuple[int, ...] | None = None
    """Where the training set is a part of its source's classes: their ids there."""

    def id_of(self) -> dict[str, int]:
        """Class id by name."""
        return {name: class_id for class_id, name in enumerate(self.names)}


def read_source(path: Path | str, options: SourceOptions, tars: "WebDatasetTars | None" = None) -> Source:
    """Read all rows of the source at `path`.

    Args:
        path: file or folder; where there are tars it is only named in messages.
        options: how to read it.
        tars: the scanned tars of a WebDataset source.

    Raises:
        SourceError: no such source, an unknown layout, no rows, labels out of range.
        ShardsError: `classes_from` is no finished data set.
    """
    from wv_ingest import (
        source_folders,
        source_list,
        source_webdataset,
        source_webvision,
    )  # they need this module's types
    from wv_ingest.selection import select

    where, path = str(path), Path(path)
    if tars is None and not path.exists():
        raise SourceError(f"{path}: no such file or folder; expected a WebVision root, a folder of classes, or a list")
    kind = "webdataset" if tars is not None else options.source_format or detect(path)
    classes = None
    if options.classes_from is not None:
        manifest = Manifest.load(options.classes_from)
        part = any(c.original_id is not None for c in manifest.classes)
        classes = Classes(
            names=tuple(c.name for c in manifest.classes),
            directory=options.classes_from,
            original_ids=tuple(-1 if c.original_id is None else c.original_id for c in manifest.classes)
            if part
            else None,
        )
    if kind == "list" and not path.is_file():
        raise SourceError(f"{path}: is a folder, expected a list file ({', '.join(LIST_SUFFIXES)})")
    if kind in ("webvision", "folders") and not path.is_dir():
        raise SourceError(f"{path}: is a file, expected a folder for source format {kind}")
    if options.only != "all" and kind != "webvision":
        raise SourceError(f"{where}: --only {options.only} needs WebVision's lists, this is read as {kind}")
    part_of = classes if classes is not None and classes.original_ids is not None else None
    if part_of is not None:
        classes = None  # the source has more classes than the training set; they are matched below
    if kind == "webvision":
        source = source_webvision.read(path, options.split, options.only, classes)
    elif kind == "folders":
        source = source_folders.read(path, classes)
    elif kind == "webdataset":
        if tars is None:
            raise SourceError(f"{where}: WebDataset tars are read by build-shards alone; build them, then merge")
        source = source_webdataset.read(where, tars, classes)
    else:
        source = source_list.read(path, options.path_column, options.label_column, classes)
    if not source.rows.num_rows:
        raise SourceError(f"{where}: no rows in it (read as {kind}); expected images with labels")
    if part_of is not None:
        return _as_in(source, part_of, None if options.only == "all" else options.only)
    if options.only == "all" and options.class_ids is None:
        return source
    return select(source, None if options.only == "all" else options.only, options.class_ids, None)


def _as_in(source: Source, training: Classes, origin: str | None) -> Source:
    """The rows of the training set's classes, with its ids: matched by name, by the original id where that is known."""
    from wv_ingest.selection import select

    by_name = {name: class_id for class_id, name in enumerate(source.class_names)}
    assert training.original_ids is not None
    numbered = all(name == str(class_id) for class_id, name in enumerate(source.class_names))
    if numbered:
        here = [c if c < len(source.class_names) else -1 for c in training.original_ids]
    else:
        here = [by_name.get(name, -1) for name in training.names]
    if max(here, default=-1) < 0:
        raise SourceError(f"{source.root}: has none of the classes of {training.directory}; give the same source")
    return replace(select(source, origin, here, training.names), original_ids=training.original_ids)


def detect(path: Path) -> SourceFormat:
    """Which layout `path` has.

    Raises:
        SourceError: none that is known.
    """
    if path.is_file():
        if path.suffix.lower() in LIST_SUFFIXES:
            return "list"
        raise SourceError(f"{path}: not a list; expected a file that ends in {', '.join(LIST_SUFFIXES)}")
    from wv_ingest.webdataset_urls import holds_samples

    info = path / "info"
    lists = (
        any(any(folder.glob("train_filelist_*.txt")) for folder in (path, info))
        or (info / "val_filelist.txt").is_file()
    )
    if lists or (path / "info.tar").is_file():
        return "webvision"
    if any(child.is_dir() and not child.name.startswith(".") for child in path.iterdir()):
        return "folders"
    if holds_samples(path):
        return "webdataset"
    raise SourceError(
        f"{path}: neither info/train_filelist_*.txt or info.tar (WebVision) nor class folders nor tars of images with "
        "labels (WebDataset) in it; give a WebVision root, a folder of class folders, a list file, or tars"
    )


def rows_table(
    paths: list[pa.Array], labels: list[NDArray[np.int32]], sources: list[pa.Array], queries: list[pa.Array]
) -> pa.Table:
    """Join the columns' parts into one table of ROWS_SCHEMA with one dictionary a column."""
    columns = [
        pa.chunked_array(paths, pa.large_binary()),
        pa.chunked_array([pa.array(part, pa.int32()) for part in labels], pa.int32()),
        pa.chunked_array(sources, pa.string()).dictionary_encode(),
        pa.chunked_array(queries, pa.string()).dictionary_encode(),
    ]
    return pa.table(columns, schema=ROWS_SCHEMA).unify_dictionaries().combine_chunks()


def constant(value: str, count: int) -> pa.Array:
    """(count,) strings, all `value`."""
    return pa.repeat(pa.scalar(value, pa.string()), count)
