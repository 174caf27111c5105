"""WebVision 1.0 and 2.0 as they unpack: file lists in `info/`, images by source and query.

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
from wv_ingest.sources import MAX_CLASSES, Classes, Source, Split, rows_table

VAL_FOLDERS = ("val_images_256", "val_images_resized", "val_images")
"""Where the flat validation images may lie, the first that exists counts."""
_CHUNK_LINES = 1 << 16


def read(root: Path, split: Split, classes: Classes | None) -> Source:
    """Rows of the training or the validation lists; see `sources.read_source`."""
    info = root / "info"
    warnings: list[str] = []
    names = _class_names(info / "synsets.txt", classes)
    prefix = b""
    if split == "train":
        lists = _train_lists(info)
        if len(lists) == 1 and not lists[0].name.endswith("_all.txt"):
            warnings.append(f"only {lists[0].name} is there: the other source's images are left out")
    else:
        lists = [info / "val_filelist.txt"]
        if not lists[0].is_file():
            raise SourceError(f"{root}: no info/val_filelist.txt; --split val needs it")
        prefix = _val_folder(root).encode() + b"/"
    paths: list[pa.Array] = []
    labels: list[NDArray[np.int32]] = []
    sources: list[pa.Array] = []
    queries: list[pa.Array] = []
    for file_list in lists:
        for chunk_paths, chunk_labels in _read_list(file_list, len(names) if names else None, classes):
            if prefix:
                chunk_paths = [prefix + path for path in chunk_paths]
            origins = [_origin(path) for path in chunk_paths] if split == "train" else [("", "")] * len(chunk_paths)
            paths.append(pa.array(chunk_paths, pa.large_binary()))
            labels.append(chunk_labels)
            sources.append(pa.array([source for source, _ in origins], pa.string()))
            queries.append(pa.array([query for _, query in origins], pa.string()))
    rows = rows_table(paths, labels, sources, queries)
    if not names:
        warnings.append("no info/synsets.txt: the classes' names are their numbers")
        count = int(rows.column("label").to_numpy().max(initial=-1)) + 1
        names = tuple(str(class_id) for class_id in range(count))
    return Source(source_format="webvision", root=root, rows=rows, class_names=names, warnings=tuple(warnings))


def _train_lists(info: Path) -> list[Path]:
    parts = [path for name in ("google", "flickr") if (path := info / f"train_filelist_{name}.txt").is_file()]
    whole = info / "train_filelist_all.txt"
    if len(parts) < 2 and whole.is_file():
        return [whole]
    if not parts:
        raise SourceError(f"{info}: no train_filelist_google.txt, _flickr.txt or _all.txt; --split train needs them")
    return parts


def _val_folder(root: Path) -> str:
    for name in VAL_FOLDERS:
        if (root / name).is_dir():
            return name
    raise SourceError(f"{root}: none of the folders {', '.join(VAL_FOLDERS)} is there; --split val needs one")


def _class_names(synsets: Path, classes: Classes | None) -> tuple[str, ...]:
    """A line's number is the class id; the line (`n01440764 tench, Tinca tinca`) is the name."""
    found: tuple[str, ...] = ()
    if synsets.is_file():
        lines = synsets.read_text(encoding="utf-8", errors="replace").splitlines()
        found = tuple(line.strip() for line in lines)
        while found and not found[-1]:
            found = found[:-1]
    if classes is None:
        return found
    if found and found != classes.names:
        differing = next((i for i, (a, b) in enumerate(zip(found, classes.names, strict=False)) if a != b), None)
        what = f"{len(found)} and {len(classes.names)} classes" if differing is None else f"class {differing} differs"
        raise SourceError(f"{synsets}: other classes than in {classes.directory} ({what}); give the same training set")
    return classes.names


def _read_list(
    path: Path, class_count: int | None, classes: Classes | None
) -> Iterator[tuple[list[bytes], NDArray[np.int32]]]:
    """Paths and labels of a file list, some ten thousand lines at a time."""
    limit = MAX_CLASSES if class_count is None else class_count
    with open(path, "rb") as file:
        first = 1
        while lines := list(islice(file, _CHUNK_LINES)):
            paths: list[bytes] = []
            labels: list[int] = []
            for number, line in enumerate(lines, first):
                text = line.strip()
                if not text:
                    continue
                name, _, label_text = text.rpartition(b" ")
                if not name or not label_text.lstrip(b"-").isdigit():
                    shown = text[:60].decode("utf-8", "backslashreplace")
                    raise SourceError(f"{path} line {number}: expected 'path label', found '{shown}'")
                label = int(label_text)
                if not 0 <= label < limit:
                    where = f"in {classes.directory}" if classes else "in info/synsets.txt"
                    known = f"the {limit} classes {where}" if class_count else f"0 … {limit - 1}"
                    raise SourceError(f"{path} line {number}: label {label} is outside {known}")
                paths.append(name.rstrip())
                labels.append(label)
            first += len(lines)
            yield paths, np.array(labels, dtype=np.int32)


def _origin(path: bytes) -> tuple[str, str]:
    """(source, query) of `google/q0001/name.jpg`; empty where the path has none."""
    parts = path.split(b"/", 2)
    if len(parts) < 3:
        return "", ""
    return parts[0].decode("utf-8", "backslashreplace"), parts[1].decode("utf-8", "backslashreplace")
