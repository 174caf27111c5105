"""Reading a source for shards that exist already: with their options, their codecs and their class ids.

`append` and `repair` share it. What the shards were made with stands in their manifest; nothing else decides.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wv_ingest.build_options import BuildOptions
from wv_ingest.build_state import APPENDED, MERGED, Identity, difference
from wv_ingest.check import CheckOptions, codecs
from wv_ingest.duplicates import DuplicateOptions
from wv_ingest.errors import BuildMismatchError, SourceError
from wv_ingest.pool import WorkerLimits
from wv_ingest.progress import Progress
from wv_ingest.sources import Source, SourceOptions, read_source
from wv_ingest.webdataset_tars import scanned, streams_of, tars_of_source
from wv_shards import Manifest

_OF_THE_SOURCE = ("source_rows", "source_streams", "classes", APPENDED, MERGED, *DuplicateOptions().deciding())
"""Options that say which rows there were, or which samples are shown, not what was packed."""


def options_of(
    directory: Path, manifest: Manifest, *, path_column: str, label_column: str, **given: Any
) -> BuildOptions:
    """The options that the shards were built with; the columns of a list and `given` are those that decide no byte.

    Raises:
        BuildMismatchError: the manifest does not name them all, or the codecs here are others.
    """
    said = manifest.options
    if manifest.codecs != codecs():
        ours, theirs = (", ".join(sorted(c.values())) for c in (codecs(), manifest.codecs))
        raise BuildMismatchError(
            f"{directory}: was packed with {theirs or 'no codecs that are named'}, here are {ours}; the same images "
            "would become other bytes: install those versions, or build anew"
        )
    try:
        return BuildOptions(
            check=CheckOptions(
                size_px=said["size"],
                quality=said["quality"],
                subsampling=said["subsampling"],
                keep_metadata=said["keep_metadata"],
                decode=said["check"],
                max_bytes=said["max_bytes"],
                max_pixels=said["max_pixels"],
                max_side_px=said["max_side"],
                min_side_px=said["min_side"],
                max_aspect=said["max_aspect"],
            ),
            source=SourceOptions(
                split=manifest.split,  # type: ignore[arg-type]  # was one of them when it was built
                source_format=said["source_format"],
                path_column=path_column,
                label_column=label_column,
                only=said.get("only", "all"),
                label_key=said.get("label_key"),
            ),
            limits=WorkerLimits(max_cpu_s=said["max_cpu_s"], max_memory_mb=said["max_memory_mb"]),
            seed=manifest.seed,
            shard_mb=said["shard_mb"],
            duplicates=DuplicateOptions.of(said),
            **given,
        )
    except KeyError as error:
        raise BuildMismatchError(
            f"{directory}: its manifest names no option {error.args[0]}: it was not packed by `build-shards` of this "
            "wv-toolkit with one set of options; build new images into a folder of their own"
        ) from None


def read_again(
    directory: Path,
    manifest: Manifest,
    source_path: Path,
    options: BuildOptions,
    progress: Progress,
    classes_from: Path | None = None,
) -> Source:
    """Read a source with the class ids of the shards in `directory`; classes that they do not have come after theirs.

    Args:
        classes_from: shards whose classes the source has to use, as `build-shards` has it; they may have more
            classes than `directory`, but not others.

    Raises:
        SourceError: as `read_source`; also where a class would get another id.
        BuildMismatchError: the source would not be read as the first one was.
    """
    progress.note(f"reading {source_path}")
    part = any(c.original_id is not None for c in manifest.classes)
    used = directory if part and classes_from is None else classes_from
    source_options = replace(options.source, classes_from=used)
    tars, given = None, tars_of_source(source_path, source_options)
    if streams_of(given) is not None:
        raise SourceError(f"{source_path}: these tars are streams; fetch them, then give the folder that they are in")
    if given:
        tars = scanned(
            source_path, given, source_options, spool_dir=directory, workers=options.workers, progress=progress
        )
    source = _aligned(read_source(source_path, source_options, tars), directory, manifest)
    for text in source.warnings:
        progress.warn(text)
    was = Identity.of(manifest)
    was, now = (replace(was, options=_without(said)) for said in (was.options, options.deciding(source)))
    if other := difference(was, now):
        raise BuildMismatchError(
            f"{directory}: was built with {other}; build the new images into a folder of their own"
        )
    return source


def _without(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OF_THE_SOURCE}


def _aligned(source: Source, directory: Path, manifest: Manifest) -> Source:
    """The source with the ids of the shards' classes: by name where names make the ids, else ids as they are."""
    known = tuple(c.name for c in manifest.classes)
    names = source.class_names
    if names == known:
        return source
    numbered = names == tuple(str(class_id) for class_id in range(len(names)))
    by_name = source.source_format != "webvision" and not numbered
    if by_name:
        id_of = {name: class_id for class_id, name in enumerate(known)}
        more = [name for name in names if name not in id_of]
        id_of |= {name: class_id for class_id, name in enumerate(more, len(known))}
        lookup = np.array([id_of[name] for name in names], dtype=np.int32)
        return _relabelled(source, lookup, (*known, *more))
    ids_only = numbered and source.source_format != "webvision"
    if len(names) <= len(known) and (ids_only or names == known[: len(names)]):
        return replace(source, class_names=known)
    if names[: len(known)] != known:
        differing = next(i for i in range(len(names)) if i >= len(known) or names[i] != known[i])
        was = known[differing] if differing < len(known) else "none"
        raise SourceError(
            f"{source.root}: class {differing} is '{names[differing]}', in {directory} it is '{was}'; ids must stay: "
            "give a source with the same classes, new ones after them"
        )
    return source


def _relabelled(source: Source, lookup: np.ndarray[Any, np.dtype[np.int32]], names: tuple[str, ...]) -> Source:
    column = source.rows.schema.get_field_index("label")
    labels = pa.array(lookup[source.labels], pa.int32())
    return replace(
        source, rows=source.rows.set_column(column, source.rows.schema.field(column), labels), class_names=names
    )
