"""WebVision 1.0 and 2.0: file lists in `info/` or `info.tar`, images by source and query as files or in tars.

Labels come from the file lists only. Nothing is matched by base name: one tenth of the names stand in more than
one query folder.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wv_ingest.errors import SourceError
from wv_ingest.info_files import INFO_TAR, InfoFiles
from wv_ingest.sources import MAX_CLASSES, METADATA_COLUMNS, Classes, Origin, Source, Split, rows_table

VAL_FOLDERS = ("val_images_256", "val_images_resized", "val_images")
"""Where the flat validation images may lie, as a folder or a tar; the first that exists counts."""
SOURCE_FOLDERS = ("google", "flickr")
_SYNSETS, _VAL_LIST = "synsets.txt", "val_filelist.txt"
_CHUNK_LINES = 1 << 16


def read(root: Path, split: Split, only: Origin, classes: Classes | None) -> Source:
    """Rows of the training or the validation lists; see `sources.read_source`."""
    info = InfoFiles(root)
    warnings = [info.damage] if info.damage else []
    names = _class_names(info, classes)
    flat = b""
    if split == "train":
        lists = _train_lists(root, info)
        if only == "all" and len(lists) == 1 and not lists[0].endswith("_all.txt"):
            warnings.append(f"only {lists[0]} is there: the other source's images are left out")
    else:
        lists = [_VAL_LIST]
        if _VAL_LIST not in info:
            raise SourceError(f"{root}: no info/{_VAL_LIST}; --split val needs it")
        flat = _val_folder(root).encode()
    paths: list[pa.Array] = []
    labels: list[NDArray[np.int32]] = []
    sources: list[pa.Array] = []
    queries: list[pa.Array] = []
    for file_list in lists:
        for chunk_paths, chunk_labels in _read_list(info, file_list, len(names) if names else None, classes):
            if flat:
                chunk_paths = [flat + b"/" + path for path in chunk_paths]
            origins = [_origin(path) for path in chunk_paths] if split == "train" else [("", "")] * len(chunk_paths)
            paths.append(pa.array(chunk_paths, pa.large_binary()))
            labels.append(chunk_labels)
            sources.append(pa.array([source for source, _ in origins], pa.string()))
            queries.append(pa.array([query for _, query in origins], pa.string()))
    rows = rows_table(paths, labels, sources, queries)
    if split == "train":
        rows = _with_metadata(info, lists, rows, warnings)
    if not names:
        warnings.append("no info/synsets.txt: the classes' names are their numbers")
        count = int(rows.column("label").to_numpy().max(initial=-1)) + 1
        names = tuple(str(class_id) for class_id in range(count))
    return Source(
        source_format="webvision",
        root=root,
        rows=rows,
        class_names=names,
        warnings=tuple(warnings),
        tars=tuple(_tars(root, split, only)),
        flat=flat,
        folders=(flat.decode(),) if flat else SOURCE_FOLDERS if only == "all" else (only,),
    )


def _tars(root: Path, split: Split, only: Origin) -> Iterator[Path]:
    """Archives that may hold the split's images, in the order of their names; `info.tar`, for metadata, with them."""
    other = {"google": "flickr", "flickr": "google", "all": "\0"}[only]
    for path in sorted(root.glob("*.tar")):
        of_val = path.name.startswith("val")
        if (split == "val" and of_val) or (
            split == "train" and not of_val and not path.name.startswith(("test", other))
        ):
            yield path


def _train_lists(root: Path, info: InfoFiles) -> list[str]:
    parts = [name for source in SOURCE_FOLDERS if (name := f"train_filelist_{source}.txt") in info]
    whole = "train_filelist_all.txt"
    if len(parts) < 2 and whole in info:
        return [whole]
    if not parts:
        raise SourceError(
            f"{root}: no train_filelist_google.txt, _flickr.txt or _all.txt in info/ or {INFO_TAR}; "
            "--split train needs them" + (f" ({info.damage})" if info.damage else "")
        )
    return parts


def _val_folder(root: Path) -> str:
    for name in VAL_FOLDERS:
        if (root / name).is_dir() or (root / f"{name}.tar").is_file():
            return name
    raise SourceError(
        f"{root}: none of the folders {', '.join(VAL_FOLDERS)} is there, and no tar of that name; --split val needs one"
    )


def _class_names(info: InfoFiles, classes: Classes | None) -> tuple[str, ...]:
    """A line's number is the class id; the line (`n01440764 tench, Tinca tinca`) is the name."""
    found: tuple[str, ...] = ()
    if _SYNSETS in info:
        with info.open(_SYNSETS) as file:
            lines = file.read().decode("utf-8", "replace").splitlines()
        found = tuple(line.strip() for line in lines)
        while found and not found[-1]:
            found = found[:-1]
    if classes is None:
        return found
    if found and found != classes.names:
        differing = next((i for i, (a, b) in enumerate(zip(found, classes.names, strict=False)) if a != b), None)
        what = f"{len(found)} and {len(classes.names)} classes" if differing is None else f"class {differing} differs"
        where = info.where(_SYNSETS)
        raise SourceError(f"{where}: other classes than in {classes.directory} ({what}); give the same training set")
    return classes.names


def _lines(info: InfoFiles, name: str) -> Iterator[tuple[int, list[bytes]]]:
    """Number of the first and the lines, some ten thousand at a time."""
    with info.open(name) as file:
        first = 1
        while lines := list(islice(file, _CHUNK_LINES)):
            yield first, lines
            first += len(lines)


def _read_list(
    info: InfoFiles, file_list: str, class_count: int | None, classes: Classes | None
) -> Iterator[tuple[list[bytes], NDArray[np.int32]]]:
    """Paths and labels of a file list."""
    limit = MAX_CLASSES if class_count is None else class_count
    where = info.where(file_list)
    for first, lines in _lines(info, file_list):
        paths: list[bytes] = []
        labels: list[int] = []
        for number, line in enumerate(lines, first):
            text = line.strip()
            if not text:
                continue
            name, _, label_text = text.rpartition(b" ")
            if not name or not label_text.lstrip(b"-").isdigit():
                shown = text[:60].decode("utf-8", "backslashreplace")
                raise SourceError(f"{where} line {number}: expected 'path label', found '{shown}'")
            label = int(label_text)
            if not 0 <= label < limit:
                of = f"in {classes.directory}" if classes else "in info/synsets.txt"
                known = f"the {limit} classes {of}" if class_count else f"0 … {limit - 1}"
                raise SourceError(f"{where} line {number}: label {label} is outside {known}")
            paths.append(name.rstrip())
            labels.append(label)
        yield paths, np.array(labels, dtype=np.int32)


def _with_metadata(info: InfoFiles, lists: list[str], rows: pa.Table, warnings: list[str]) -> pa.Table:
    """The rows with each one's record of metadata, from lists that say so line by line, if there are such."""
    names: list[pa.Array] = []
    numbers: list[NDArray[np.int32]] = []
    for file_list in lists:
        meta_list = file_list.replace("filelist", "meta_list")
        if meta_list not in info:
            return rows
        for _, lines in _lines(info, meta_list):
            pairs = [_meta(line) for line in lines if line.strip()]
            names.append(pa.array([name for name, _ in pairs], pa.string()))
            numbers.append(np.array([number for _, number in pairs], dtype=np.int32))
    count = sum(len(part) for part in numbers)
    if count != rows.num_rows:
        warnings.append(f"metadata left out: its lists have {count:,} lines, the file lists {rows.num_rows:,}")
        return rows
    column = pa.chunked_array(names, pa.string()).dictionary_encode().unify_dictionaries().combine_chunks()
    return rows.append_column(METADATA_COLUMNS[0], column).append_column(
        METADATA_COLUMNS[1], pa.array(np.concatenate(numbers), pa.int32())
    )


def _meta(line: bytes) -> tuple[str, int]:
    """`google/q0001.json 17` → the list and the number, from 1; a line that says something else: no record."""
    name, _, number = line.strip().rpartition(b" ")
    if not name or not number.isdigit() or len(number) > 9:
        return "", 0
    return name.rstrip().decode("utf-8", "backslashreplace"), int(number)


def _origin(path: bytes) -> tuple[str, str]:
    """(source, query) of `google/q0001/name.jpg`; empty where the path has none."""
    parts = path.split(b"/", 2)
    if len(parts) < 3:
        return "", ""
    return parts[0].decode("utf-8", "backslashreplace"), parts[1].decode("utf-8", "backslashreplace")
