"""A folder of class folders: the class is the folder's name, ids follow the names' bytes.

Every file below a class folder is a row, at any depth; the check decides whether it is an image. A class folder may be
a link, and files may; links to folders below are not followed, so that no image gets in twice.
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
_SHOWN = 3


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
    folders, skipped = _without_links_inside(base, folders)
    names = [text_of(folder) for folder in folders]
    ids = {name: class_id for class_id, name in enumerate(names)} if classes is None else classes.id_of()
    paths, labels = [], []
    for folder, name in zip(folders, names, strict=True):
        if name not in ids:
            assert classes is not None  # or the name would be there
            raise SourceError(f"{root}: folder '{name}' is not a class of {classes.directory}; remove or rename it")
        files = list(_files(base, folder, skipped))
        paths.append(pa.array(files, pa.large_binary()))
        labels.append(np.full(len(files), ids[name], dtype=np.int32))
    count = sum(len(part) for part in paths)
    warnings = []
    if loose:
        warnings.append(f"{loose} files beside the class folders belong to no class and are left out")
    if skipped:
        shown = ", ".join(text_of(path) for path in skipped[:_SHOWN]) + (", …" if len(skipped) > _SHOWN else "")
        warnings.append(f"{len(skipped)} links to folders are not followed ({shown}); put real folders in their place")
    return Source(
        source_format="folders",
        root=root,
        rows=rows_table(paths, labels, [constant("", count)], [constant("", count)]),
        class_names=tuple(names) if classes is None else classes.names,
        warnings=tuple(warnings),
    )


def _without_links_inside(base: bytes, folders: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Class folders, and apart from them links to another one, to what is in one, or to what holds the source."""
    root = os.path.realpath(base)
    links = {folder for folder in folders if os.path.islink(os.path.join(base, folder))}
    real = set(folders) - links
    skipped = []
    for link in sorted(links):
        target = os.path.realpath(os.path.join(base, link))
        holds_source = os.path.commonpath([root, target]) == target
        if holds_source or os.path.relpath(target, root).split(b"/", 1)[0] in real:
            skipped.append(link)
    return [folder for folder in folders if folder not in skipped], skipped


def _files(base: bytes, folder: bytes, skipped: list[bytes]) -> Iterator[bytes]:
    """Paths of all files below `folder`, relative to `base`, depth first in the order of names' bytes.

    Links to folders are not followed but put into `skipped`.
    """
    for entry in _sorted_entries(os.path.join(base, folder)):
        path = folder + b"/" + entry.name
        if not entry.is_dir():
            yield path
        elif entry.is_symlink():
            skipped.append(path)
        else:
            yield from _files(base, path, skipped)


def _sorted_entries(folder: bytes) -> list[os.DirEntry[bytes]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
