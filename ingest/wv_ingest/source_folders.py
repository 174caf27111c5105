"""A folder of class folders: the class is the folder's name, ids follow the names' bytes.

Every file below a class folder is a row, at any depth; the check decides whether it is an image.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from wv_ingest.errors import SourceError
from wv_ingest.keys import text_of
from wv_ingest.sources import Classes, Source, constant, rows_table

_SPLITS = {b"train", b"training", b"val", b"valid", b"validation", b"test"}


def read(root: Path, classes: Classes | None) -> Source:
    """Rows of all class folders in `root`; see `sources.read_source`."""
    base = os.fsencode(root)
    folders, loose = [], 0
    for entry in _sorted_entries(base):
        if entry.name.startswith(b"."):
            continue
        if entry.is_dir():
            folders.append(entry.name)
        else:
            loose += 1
    if not folders:
        raise SourceError(f"{root}: no class folders in it; expected one folder for each class")
    if set(folders) <= _SPLITS:
        listed = ", ".join(text_of(name) for name in folders)
        raise SourceError(f"{root}: holds the folders of splits ({listed}), not of classes; give one of them")
    names = [text_of(folder) for folder in folders]
    ids = {name: class_id for class_id, name in enumerate(names)} if classes is None else classes.id_of()
    paths, labels = [], []
    for folder, name in zip(folders, names, strict=True):
        if name not in ids:
            assert classes is not None  # or the name would be there
            raise SourceError(f"{root}: folder '{name}' is not a class of {classes.directory}; remove or rename it")
        files = list(_files(base, folder, ()))
        paths.append(pa.array(files, pa.large_binary()))
        labels.append(np.full(len(files), ids[name], dtype=np.int32))
    count = sum(len(part) for part in paths)
    warnings = (f"{loose} files beside the class folders belong to no class and are left out",) if loose else ()
    return Source(
        source_format="folders",
        root=root,
        rows=rows_table(paths, labels, [constant("", count)], [constant("", count)]),
        class_names=tuple(names) if classes is None else classes.names,
        warnings=warnings,
    )


def _files(base: bytes, folder: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    """Paths of all files below `folder`, relative to `base`, depth first in the order of names' bytes.

    Links to folders are followed unless they lead back up.
    """
    status = os.stat(os.path.join(base, folder))
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in _sorted_entries(os.path.join(base, folder)):
        path = folder + b"/" + entry.name
        if entry.is_dir():
            yield from _files(base, path, (*above, here))
        else:
            yield path


def _sorted_entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
