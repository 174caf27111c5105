"""What to build from: every row of the source as columns, and the classes' names. No image is opened here.

Three layouts are read (`webvision`, `folders`, `list`; a file each), detected or named. A row is a path, relative
to the source's root, and a class id. Sixteen million rows fit: they are Arrow columns, never objects.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from wv_ingest.errors import SourceError
from wv_shards import Manifest

SourceFormat = Literal["webvision", "folders", "list"]
Split = Literal["train", "val"]

ROWS_SCHEMA = pa.schema(
    [
        ("path", pa.large_binary()),  # bytes, as the file system knows it
        ("label", pa.int32()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("query", pa.dictionary(pa.int32(), pa.string())),
    ]
)

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

    @property
    def labels(self) -> NDArray[np.int32]:
        """(rows,) int32"""
        labels: NDArray[np.int32] = self.rows.column("label").to_numpy()
        return labels

    def class_rows(self) -> NDArray[np.int64]:
        """(classes,) int64: rows of each class, repeated ones too."""
        return np.bincount(self.labels, minlength=len(self.class_names)).astype(np.int64)

    def digest(self) -> str:
        """xxh3_128 over all paths and labels in their order, and the classes' names."""
        digest = xxhash.xxh3_128()
        for batch in self.rows.select(["path", "label"]).to_batches(max_chunksize=1 << 16):
            paths, labels = batch.columns
            lengths = np.diff(np.frombuffer(paths.buffers()[1], dtype=np.int64)[paths.offset :][: len(paths) + 1])
            digest.update(lengths.tobytes())
            digest.update(b"".join(paths.to_pylist()))
            digest.update(labels.to_numpy().tobytes())
        digest.update("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """Class names by id, from the training set that a validation set must agree with."""

    names: tuple[str, ...]
    directory: Path

    def id_of(self) -> dict[str, int]:
        """Class id by name."""
        return {name: class_id for class_id, name in enumerate(self.names)}


def read_source(path: Path, options: SourceOptions) -> Source:
    """Read all rows of the source at `path`.

    Raises:
        SourceError: no such source, an unknown layout, no rows, labels out of range.
        ShardsError: `classes_from` is no finished data set.
    """
    from wv_ingest import source_folders, source_list, source_webvision  # they need this module's types

    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; expected a WebVision root, a folder of classes, or a list")
    kind = options.source_format or detect(path)
    classes = None
    if options.classes_from is not None:
        manifest = Manifest.load(options.classes_from)
        classes = Classes(names=tuple(c.name for c in manifest.classes), directory=options.classes_from)
    if kind == "list" and not path.is_file():
        raise SourceError(f"{path}: is a folder, expected a list file ({', '.join(LIST_SUFFIXES)})")
    if kind != "list" and not path.is_dir():
        raise SourceError(f"{path}: is a file, expected a folder for source format {kind}")
    if kind == "webvision":
        source = source_webvision.read(path, options.split, classes)
    elif kind == "folders":
        source = source_folders.read(path, classes)
    else:
        source = source_list.read(path, options.path_column, options.label_column, classes)
    if not source.rows.num_rows:
        raise SourceError(f"{path}: no rows in it (read as {kind}); expected images with labels")
    return source


def detect(path: Path) -> SourceFormat:
    """Which layout `path` has.

    Raises:
        SourceError: none that is known.
    """
    if path.is_file():
        if path.suffix.lower() in LIST_SUFFIXES:
            return "list"
        raise SourceError(f"{path}: not a list; expected a file that ends in {', '.join(LIST_SUFFIXES)}")
    info = path / "info"
    if any(info.glob("train_filelist_*.txt")) or (info / "val_filelist.txt").is_file():
        return "webvision"
    if any(child.is_dir() and not child.name.startswith(".") for child in path.iterdir()):
        return "folders"
    raise SourceError(
        f"{path}: neither info/train_filelist_*.txt (WebVision) nor class folders in it; "
        "give a WebVision root, a folder of class folders, or a list file"
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
