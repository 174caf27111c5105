"""Writes a small raw data set in the layout of WebVision 1.0 whose truth is known, for demonstrations and tests.

Like the web it has classes from a handful to a thousand images, labels that name another class, images of nothing that
was searched for, copies, near copies, broken files and files that are not what their name says. `truth.csv` tells them
apart. `sample_drawing` draws; this file decides what is drawn, how it is encoded and where it lies. It downloads
nothing, and nothing else in the toolkit depends on it.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from wv_ingest.errors import IngestError
from wv_ingest.sample_drawing import MAX_CLASSES, class_look, draw_object, draw_outlier
from wv_shards import write_atomic

KINDS = ("clean", "swapped", "outlier", "duplicate", "near_duplicate", "broken")
MARKER = "sample_data.json"
TRUTH = "truth.csv"
TRAIN_LISTS = {"flickr": "train_filelist_flickr.txt", "google": "train_filelist_google.txt"}

_FOLDERS = ("info", "google", "flickr", "val_images_256")
_SWAPPED_SHARE = 0.65  # of the wrong labels; the others are images of no class
_LOOKALIKE_SHARE = 0.5  # of the swapped: the next classes in line, which look alike
_COPY_SHARE, _BROKEN_SHARE = 0.01, 0.006  # of a class of at least _RICH_CLASS rows
_RICH_CLASS = 50
_FLICKR_SHARE = 0.6
_ODD_EVERY = 60  # one sound file in so many is not a plain JPEG
_NAME_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))
_LATIN = {
    "plain": "planus", "striped": "striatus", "dotted": "punctatus", "chequered": "tessellatus",
    "disc": "Discus", "ring": "Anulus", "crescent": "Luna", "heart": "Cor",
    "drop": "Gutta", "flower": "Flos", "gear": "Rota", "star": "Stella",
    "cross": "Crux", "square": "Quadrum", "hexagon": "Hexagonum", "triangle": "Triangulum",
    "arrow": "Sagitta", "bolt": "Fulmen", "hourglass": "Clepsydra", "key": "Clavis",
}  # fmt: skip
_NO_CLASS = -1
_PLAN, _TRAIN, _VAL, _COPY, _CROP = range(5)  # streams of randomness


class SampleDataError(IngestError):
    """The sample data can't be written as asked; one line for the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleDataOptions:
    """What the sample data holds. The same options and versions of NumPy and Pillow give the same bytes."""

    classes: int = 16
    images: int = 3000
    """Rows of the training lists, nearly: class sizes are rounded."""
    largest_class: int = 1000
    smallest_class: int = 10
    val_per_class: int = 25
    """Validation images of every class; all of them sound and rightly labelled."""
    noise_fraction: float = 0.35
    """Share of every class's rows whose image shows another class or none."""
    shortest_px: int = 64
    longest_px: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= MAX_CLASSES:
            raise ValueError(f"expected 2 to {MAX_CLASSES} classes, got {self.classes}")
        if not 1 <= self.smallest_class <= self.largest_class:
            raise ValueError(
                f"expected 1 <= smallest class <= largest, got {self.smallest_class} and {self.largest_class}"
            )
        least = self.largest_class + (self.classes - 1) * self.smallest_class
        most = (self.classes - 1) * self.largest_class + self.smallest_class
        if not least <= self.images <= most:
            raise ValueError(
                f"{self.classes} classes of {self.smallest_class} to {self.largest_class} images hold "
                f"{least} to {most} in total, got {self.images}; "
                "change their number, or the largest or smallest class"
            )
        if self.val_per_class < 1:
            raise ValueError(f"expected at least one validation image per class, got {self.val_per_class}")
        if not 0.0 <= self.noise_fraction <= 0.9:
            raise ValueError(f"expected a noise fraction of 0 to 0.9, got {self.noise_fraction}")
        if not 16 <= self.shortest_px <= self.longest_px <= 1024:
            raise ValueError(f"expected sides of 16 to 1024 pixels, got {self.shortest_px} to {self.longest_px}")
        if self.seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleDataSummary:
    """What was written."""

    directory: Path
    class_rows: tuple[int, ...]
    """Training rows of each class, by label."""
    kinds: dict[str, int]
    """Training rows of each of `KINDS`."""
    val_images: int
    image_bytes: int

    @property
    def train_images(self) -> int:
        return sum(self.class_rows)

    @property
    def noise_fraction(self) -> float:
        """Share of the training rows that are swapped or outliers."""
        return (self.kinds["swapped"] + self.kinds["outlier"]) / self.train_images


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One line of a training list. `drawn` numbers the drawing: a copy has its original's."""

    drawn: int
    source: str
    query: int
    name: str
    label: int
    true_label: int
    kind: str

    @property
    def path(self) -> str:
        return f"{self.source}/q{self.query:04d}/{self.name}.jpg"


def write_sample_data(
    directory: Path, options: SampleDataOptions, progress: Callable[[int, int], None] | None = None
) -> SampleDataSummary:
    """Draw the data set into `directory`, which is new, empty, or an earlier sample data set (which is replaced).

    `progress` is told (images written, images in total). `truth.csv` (path, label, true_label, kind; true_label −1: no
    class) is written last: a directory without it is unfinished. Raises SampleDataError if the directory holds
    something else, OSError if it can't be written.
    """
    _claim(directory, options)
    rows = _plan_rows(options)
    total = len(rows) + options.classes * options.val_per_class
    image_bytes = 0
    for done, row in enumerate(rows, start=1):
        image_bytes += _write(directory / row.path, _row_bytes(row, options))
        if progress is not None:
            progress(done, total)
    val_lines = []
    for position, label in enumerate(
        _rng(options, _PLAN, 1).permutation(np.arange(total - len(rows)) % options.classes)
    ):
        name = f"val{position + 1:06d}.jpg"
        image_bytes += _write(directory / "val_images_256" / name, _encode(*_draw(int(label), options, _VAL, position)))
        val_lines.append(f"{name} {label}")
        if progress is not None:
            progress(len(rows) + position + 1, total)
    _write_info(directory / "info", options, rows, val_lines)
    _write_truth(directory, rows)
    class_rows = Counter(row.label for row in rows)
    kinds = Counter(row.kind for row in rows)
    return SampleDataSummary(
        directory=directory,
        class_rows=tuple(class_rows[label] for label in range(options.classes)),
        kinds={kind: kinds[kind] for kind in KINDS},
        val_images=len(val_lines),
        image_bytes=image_bytes,
    )


# The directory


def _claim(directory: Path, options: SampleDataOptions) -> None:
    """Make the directory ours: empty but for the marker."""
    if directory.exists() and not directory.is_dir():
        raise SampleDataError(f"{directory}: expected a directory, found a file: name another place")
    directory.mkdir(parents=True, exist_ok=True)
    found = sorted(entry.name for entry in directory.iterdir())
    strangers = [name for name in found if name not in {*_FOLDERS, MARKER, TRUTH}]
    if found and (MARKER not in found or strangers):
        raise SampleDataError(
            f"{directory}: expected an empty directory or an earlier sample data set, "
            f'found "{(strangers or found)[0]}": name another place'
        )
    (directory / TRUTH).unlink(missing_ok=True)
    write_atomic(directory / MARKER, (json.dumps(asdict(options), indent=2, sort_keys=True) + "\n").encode())
    for folder in _FOLDERS:
        if (directory / folder).exists():
            shutil.rmtree(directory / folder)


def _write(path: Path, data: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return len(data)


def _write_info(info: Path, options: SampleDataOptions, rows: list[_Row], val_lines: list[str]) -> None:
    blocks = {
        source: [f"{row.path} {row.label}" for row in sorted(rows, key=lambda row: row.query) if row.source == source]
        for source in TRAIN_LISTS
    }
    query_class = {row.query: row.label for row in rows}
    lists = {name: blocks[source] for source, name in TRAIN_LISTS.items()}
    lists["train_filelist_all.txt"] = blocks["flickr"] + blocks["google"]
    lists["val_filelist.txt"] = val_lines
    lists["synsets.txt"] = [_synset(label) for label in range(options.classes)]
    lists["queries_synsets_map.txt"] = [f"{query} {query_class[query] + 1}" for query in sorted(query_class)]
    info.mkdir()
    for name, lines in lists.items():
        (info / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _synset(label: int) -> str:
    """An invented WordNet id and name, such as `n90000002 striped ring, Anulus striatus`."""
    outline, pattern, _ = class_look(label)
    return f"n{90000001 + label} {pattern} {outline}, {_LATIN[outline]} {_LATIN[pattern]}"


def _write_truth(directory: Path, rows: list[_Row]) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "label", "true_label", "kind"])
    table.writerows([row.path, row.label, row.true_label, row.kind] for row in rows)
    write_atomic(directory / TRUTH, text.getvalue().encode())


# The plan: which rows there are


def _rng(options: SampleDataOptions, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng((options.seed, stream, number))


def _class_sizes(options: SampleDataOptions) -> list[int]:
    """Rows of each class: geometric from the largest to the smallest, bent so that the total fits, in random order."""
    ratio = options.smallest_class / options.largest_class
    place = np.linspace(0, 1, options.classes)
    low, high = 1e-3, 1e3
    for _ in range(60):  # the larger the bend, the longer the classes stay large
        bend = (low * high) ** 0.5
        if (options.largest_class * ratio ** (place**bend)).sum() > options.images:
            high = bend
        else:
            low = bend
    sizes = np.rint(options.largest_class * ratio ** (place**bend)).astype(int)
    return [int(size) for size in _rng(options, _PLAN, 0).permutation(sizes)]


def _plan_rows(options: SampleDataOptions) -> list[_Row]:
    rows: list[_Row] = []
    first_query = 1
    for label, size in enumerate(_class_sizes(options)):
        rng = _rng(options, _PLAN, 10 + label)
        queries = np.arange(first_query, first_query + 1 + min(2, size // 60))
        first_query = int(queries[-1]) + 1
        # A class's first query is its best: most of the clean rows, few of the wrong ones.
        weights = np.linspace(1.0, 0.35, len(queries))
        for kind in rng.permutation(_kinds(size, options)):
            odds = weights[::-1] if kind in ("swapped", "outlier") else weights
            rows.append(
                _Row(
                    drawn=len(rows),
                    source="flickr" if rng.random() < _FLICKR_SHARE else "google",
                    query=int(rng.choice(queries, p=odds / odds.sum())),
                    name="",
                    label=label,
                    true_label=_true_label(rng, label, str(kind), options),
                    kind=str(kind),
                )
            )
    return _with_copies_and_names(rows, options)


def _kinds(size: int, options: SampleDataOptions) -> list[str]:
    """The kinds of one class's rows, `size` of them."""
    copies, broken = (
        max(1, round(share * size)) if size >= _RICH_CLASS else 0 for share in (_COPY_SHARE, _BROKEN_SHARE)
    )
    wrong = min(round(options.noise_fraction * size), size - 2 * copies - broken)
    swapped = round(_SWAPPED_SHARE * wrong)
    counts = {
        "swapped": swapped,
        "outlier": wrong - swapped,
        "duplicate": copies,
        "near_duplicate": copies,
        "broken": broken,
    }
    counts["clean"] = size - sum(counts.values())
    return [kind for kind in KINDS for _ in range(counts[kind])]


def _true_label(rng: np.random.Generator, label: int, kind: str, options: SampleDataOptions) -> int:
    if kind in ("outlier", "broken"):
        return _NO_CLASS
    if kind != "swapped":
        return label
    step = (
        rng.integers(1, min(3, options.classes))
        if rng.random() < _LOOKALIKE_SHARE
        else rng.integers(1, options.classes)
    )
    return int(label + step) % options.classes


def _with_copies_and_names(rows: list[_Row], options: SampleDataOptions) -> list[_Row]:
    """Give every row a name and every copy an original: mostly of its class, sometimes of another."""
    rng = _rng(options, _PLAN, 2)
    rows = [replace(row, name=_new_name(rng, row.source)) for row in rows]
    clean = [row for row in rows if row.kind == "clean"]
    taken = {row.path for row in rows}
    for place, row in enumerate(rows):
        if row.kind not in ("duplicate", "near_duplicate"):
            continue
        own = [other for other in clean if other.label == row.label]
        originals = own if own and rng.random() < 0.75 else clean
        original = originals[rng.integers(len(originals))]
        copy = replace(row, drawn=original.drawn, true_label=original.true_label)
        # One file found by two queries has the same name in both folders.
        namesake = replace(copy, source=original.source, name=original.name)
        if row.kind == "duplicate" and namesake.path not in taken:
            taken.add(namesake.path)
            copy = namesake
        rows[place] = copy
    return rows


def _new_name(rng: np.random.Generator, source: str) -> str:
    """Google: 14 letters of base64url, the last an M, some with a dash in front. Flickr: a decimal number."""
    if source == "flickr":
        return str(rng.integers(10**8, 10**10))
    return "".join(rng.choice(_NAME_LETTERS, 13)) + "M"


# The files


def _draw(
    true_label: int, options: SampleDataOptions, stream: int, number: int
) -> tuple[Image.Image, np.random.Generator]:
    """A picture, and the generator that goes on to encode it."""
    rng = _rng(options, stream, number)
    width, height = (int(side) for side in rng.integers(options.shortest_px, options.longest_px + 1, size=2))
    if true_label == _NO_CLASS:
        return draw_outlier(rng, width, height), rng
    return draw_object(rng, true_label, width, height), rng


def _row_bytes(row: _Row, options: SampleDataOptions) -> bytes:
    image, rng = _draw(row.true_label, options, _TRAIN, row.drawn)
    if row.kind == "broken":
        return _broken(_encode(image, rng), row.drawn)
    if row.kind == "near_duplicate":
        return _encode(_cropped(image, options, row), _rng(options, _COPY, row.drawn))
    if row.drawn % _ODD_EVERY == _ODD_EVERY - 1:
        return _encode_oddly(image, rng)
    return _encode(image, rng)


def _encode(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A plain JPEG of the quality that the web has."""
    return _saved(image, "JPEG", quality=int(rng.integers(40, 96)), subsampling=int(rng.integers(3)))


def _encode_oddly(image: Image.Image, rng: np.random.Generator) -> bytes:
    """A sound file that a careless reader gets wrong."""
    kind = rng.integers(4)
    if kind == 0:
        return _saved(image, "PNG")
    if kind == 1:
        return _saved(image.convert("L"), "JPEG", quality=85)
    if kind == 2:
        return _saved(image.convert("CMYK"), "JPEG", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left: to be shown turned right
    return _saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=85, exif=exif)


def _saved(image: Image.Image, file_format: str, **parameters: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **parameters)
    return file.getvalue()


def _cropped(image: Image.Image, options: SampleDataOptions, row: _Row) -> Image.Image:
    """The image without a few of its outer pixels, as another site shows it."""
    left, top, right, bottom = (int(cut) for cut in _rng(options, _CROP, row.drawn).integers(0, 4, size=4))
    return image.crop((left, top, image.width - right, image.height - bottom))


def _broken(image: bytes, number: int) -> bytes:
    """What a crawler keeps when a download goes wrong; none of it decodes."""
    return (image[: len(image) // 2], b"<!DOCTYPE html><title>404 Not Found</title>\n", b"", bytes(2048))[number % 4]
