"""WebVision 1.0 and 2.0: file lists in `info/` or `info.tar`, images by source and query as files or in tars.

Labels come from the file lists only. Nothing is matched by base name: one tenth of the names stand in more than
one query folder. A line that can't be read is a row without a label; its text is kept for the account.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wv_ingest.check import Reason
from wv_ingest.errors import SourceError
from wv_ingest.info_files import INFO_TAR, InfoFiles
from wv_ingest.sources import MAX_CLASSES, METADATA_COLUMNS, Classes, Origin, Source, Split, rows_table

VAL_FOLDERS = ("val_images_256", "val_images_resized", "val_images")
"""Where the flat validation images may lie, as a folder or a tar; the first that exists counts."""
SOURCE_FOLDERS = ("google", "flickr")
_SYNSETS, _VAL_LIST, _ALL_LIST = "synsets.txt", "val_filelist.txt", "train_filelist_all.txt"
_CHUNK_LINES = 1 << 16
_NO_LABEL, _NO_NUMBER, _OUT_OF_RANGE = "no-label", "label-not-a-number", "label-out-of-range"
_OUTSIDE = "outside-source"
_WHOLE_NUMBER = re.compile(rb"-?[0-9]+")


def read(root: Path, split: Split, only: Origin, classes: Classes | None) -> Source:
    """Rows of the training or the validation lists; see `sources.read_source`."""
    info = InfoFiles(root)
    warnings = []
    if info.damage:
        _refuse_lost_lists(root, info, split)
        warnings.append(f"{info.damage}; the lists beside it are read, metadata may be missing")
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
    numbers: list[NDArray[np.int64]] = []
    bad: list[pa.Table] = []
    first_bad, count = "", 0
    for file_list in lists:
        before = count
        for lines in _read_list(info, file_list, flat, len(names) if names else None, classes):
            origins = [_origin(path) for path in lines.paths] if split == "train" else [("", "")] * len(lines.paths)
            paths.append(pa.array(lines.paths, pa.large_binary()))
            labels.append(np.array(lines.labels, dtype=np.int32))
            sources.append(pa.array([source for source, _ in origins], pa.string()))
            queries.append(pa.array([query for _, query in origins], pa.string()))
            places = np.array(lines.bad_places, dtype=np.int64)
            numbers.append(np.delete(np.arange(count, count + lines.rows), places))
            if len(places):
                bad.append(_bad_rows(lines, places + count, file_list))
                first_bad = first_bad or lines.first_bad
            count += lines.rows
        if count == before:
            raise SourceError(f"{info.where(file_list)}: no rows in it, expected 'path label' a line; restore the list")
    left_out = pa.concat_tables(bad).unify_dictionaries().combine_chunks() if bad else None
    if left_out is not None:
        if left_out.num_rows == count:
            raise SourceError(f"{first_bad}; none of the {count:,} rows can be read")
        warnings.append(
            f"{left_out.num_rows:,} of {count:,} rows can't be read and are rejected, the first: {first_bad}"
        )
    if len(lists) > 1 and _ALL_LIST in info and (others := _count_rows(info, _ALL_LIST)) != count:
        warnings.append(
            f"{info.where(_ALL_LIST)} has {others:,} rows, the lists of google and flickr have {count:,}: only these "
            "two are read; restore or remove what is wrong"
        )
    rows = rows_table(paths, labels, sources, queries)
    own = np.concatenate([np.empty(0, dtype=np.int64), *numbers])
    metadata_lists: tuple[str, ...] = ()
    if split == "train":
        rows, metadata_lists = _with_metadata(info, lists, rows, own, count, warnings)
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
        metadata_lists=metadata_lists,
        numbers=None if left_out is None else own,
        left_out=left_out,
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
    if len(parts) < 2 and _ALL_LIST in info:
        return [_ALL_LIST]
    if not parts:
        raise SourceError(
            f"{root}: no train_filelist_google.txt, _flickr.txt or _all.txt in info/ or {INFO_TAR}; "
            "--split train needs them"
        )
    return parts


def _refuse_lost_lists(root: Path, info: InfoFiles, split: Split) -> None:
    """A tar that is cut off may have lost any list: fine only where all lists are there as files too."""
    whole = [["train_filelist_google.txt", "train_filelist_flickr.txt"], [_ALL_LIST]]
    choices = whole if split == "train" else [[_VAL_LIST]]
    if not any(all(info.unpacked(name) for name in [*names, _SYNSETS]) for names in choices):
        raise SourceError(f"{root}: {info.damage}, lists may be lost; download {INFO_TAR} again")


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


def _count_rows(info: InfoFiles, name: str) -> int:
    return sum(sum(not line.isspace() for line in lines) for _, lines in _lines(info, name))


@dataclass(kw_only=True, slots=True)
class _Rows:
    """Rows of some lines of a list: those that can be read, and the others apart."""

    paths: list[bytes]
    labels: list[int]
    bad_places: list[int]
    """Places among the rows of these lines."""
    bad_paths: list[bytes]
    """What a line says of its path; its own text where that is all there is to say."""
    details: list[str]
    first_bad: str = ""
    """The first line that can't be read, for a person."""

    @property
    def rows(self) -> int:
        """All of them."""
        return len(self.paths) + len(self.bad_places)


def _read_list(
    info: InfoFiles, file_list: str, flat: bytes, class_count: int | None, classes: Classes | None
) -> Iterator[_Rows]:
    """The rows of a file list; blank lines are none. Paths get `flat` before them."""
    limit = MAX_CLASSES if class_count is None else class_count
    where = info.where(file_list)
    prefix = flat + b"/" if flat else b""
    for first, lines in _lines(info, file_list):
        found = _Rows(paths=[], labels=[], bad_places=[], bad_paths=[], details=[])
        for number, line in enumerate(lines, first):
            text = line.strip()
            if not text:
                continue
            path, label, detail = _row(text, limit)
            if not detail:
                found.paths.append(prefix + path)
                found.labels.append(label)
                continue
            if not found.first_bad:
                of = f"in {classes.directory}" if classes else "in info/synsets.txt"
                known = f"the {limit} classes {of}" if class_count else f"0 … {limit - 1}"
                found.first_bad = f"{where} line {number}: {_wrong(text, detail, known)}"
            found.bad_places.append(found.rows)
            found.bad_paths.append(path if detail == _OUTSIDE else prefix + path)
            found.details.append(detail)
        yield found


def _row(text: bytes, limit: int) -> tuple[bytes, int, str]:
    """Path, label, and what is wrong with a line, or an empty text. Blanks or a TAB stand before the label."""
    name, label_text = text.rsplit(None, 1) if b" " in text or b"\t" in text else (text, b"")
    path: bytes | None = name
    if b"//" in name or b"/." in name or name.startswith((b"/", b".")):
        path = _normal(name)
    if label_text.isdigit() and len(label_text) < 10 and path is not None:
        label = int(label_text)
        return (path, label, "") if label < limit else (path, -1, _OUT_OF_RANGE)
    if not label_text or text.startswith(b"#"):
        return text if path is None or label_text else path, -1, _NO_LABEL
    if path is None:
        return name, -1, _OUTSIDE
    return path, -1, _OUT_OF_RANGE if _WHOLE_NUMBER.fullmatch(label_text) else _NO_NUMBER


def _normal(path: bytes) -> bytes | None:
    """One spelling of a path below the source; None: it leads out, or takes a way that may."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    return None if path.startswith(b"/") or b".." in parts or not parts else b"/".join(parts)


def _wrong(text: bytes, detail: str, known: str) -> str:
    shown = text[:60].decode("utf-8", "backslashreplace")
    if detail == _OUT_OF_RANGE:
        label = text.rsplit(None, 1)[1][:20].decode()
        return f"label {label} is outside {known}"
    if detail == _OUTSIDE:
        return f"'{shown}' leads out of the source"
    return f"expected 'path label', found '{shown}'"


def _bad_rows(lines: _Rows, numbers: NDArray[np.int64], file_list: str) -> pa.Table:
    """Lines that can't be read, as `Source.left_out` has them; their origin is the list's where the path has none."""
    of_list = next((source for source in SOURCE_FOLDERS if file_list.endswith(f"_{source}.txt")), "")
    found = [_origin(path)[0] for path in lines.bad_paths]
    origins = [source if source in SOURCE_FOLDERS else of_list for source in found]
    return pa.table(
        {
            "path": pa.array(lines.bad_paths, pa.large_binary()),
            "label": pa.array(np.full(len(numbers), -1, dtype=np.int32)),
            "source": pa.array(origins, pa.string()).dictionary_encode(),
            "detail": pa.array(lines.details, pa.string()),
            "row": pa.array(numbers),
            "reason": pa.repeat(pa.scalar(Reason.BAD_ROW.value), len(numbers)),
        }
    )


def _with_metadata(
    info: InfoFiles, lists: list[str], rows: pa.Table, own: NDArray[np.int64], row_count: int, warnings: list[str]
) -> tuple[pa.Table, tuple[str, ...]]:
    """The rows with each one's record of metadata, from lists that say so line by line, if there are such; and the
    JSON lists that any line names.

    Args:
        own: (rows,) their numbers among all `row_count` rows of the lists.
    """
    names: list[pa.Array] = []
    numbers: list[NDArray[np.int32]] = []
    meta_lists = [file_list.replace("filelist", "meta_list") for file_list in lists]
    for meta_list in filter(info.__contains__, meta_lists):
        for _, lines in _lines(info, meta_list):
            pairs = [_meta(line) for line in lines if line.strip()]
            names.append(pa.array([name for name, _ in pairs], pa.string()))
            numbers.append(np.array([number for _, number in pairs], dtype=np.int32))
    column = pa.chunked_array(names, pa.string()).dictionary_encode().unify_dictionaries().combine_chunks()
    named = tuple(name for name in pc.unique(column.cast(pa.string())).to_pylist() if name)
    if not all(meta_list in info for meta_list in meta_lists):
        return rows, named
    count = len(column)
    if count != row_count:
        warnings.append(
            f"metadata left out: its lists have {count:,} lines, the file lists {row_count:,}; give each row its line "
            f"in {' and '.join(meta_lists)}, 'LIST.json NUMBER' or '-', and build into a new folder"
        )
        return rows, named
    rows = rows.append_column(METADATA_COLUMNS[0], column.take(pa.array(own)))
    return rows.append_column(METADATA_COLUMNS[1], pa.array(np.concatenate(numbers)[own], pa.int32())), named


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
