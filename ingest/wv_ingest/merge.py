"""`merge`: finished data sets become one, in the order given. Their tars are linked, or copied to another file system.

Ordinals are those of the first set, then of the second, and so on: overlays of the first set hold for all. Shards keep
their bands; a class whose band was another in another set keeps that of the first set that has rows of it.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from wv_ingest.build_state import MERGED, remove_build_dir
from wv_ingest.check import Reason
from wv_ingest.concatenate import join_indexes, join_rejects, join_samples, refuse_damaged_tables, row_groups
from wv_ingest.duplicates import DuplicateOptions
from wv_ingest.errors import MergeError
from wv_ingest.exclude import excluded_rows, refuse_lost
from wv_ingest.locks import folder_exists, folder_lock
from wv_ingest.mark_duplicates import MARK_FILES, mark_duplicates
from wv_ingest.plan import next_number
from wv_ingest.progress import Progress
from wv_ingest.superseded import rejects_that_stay
from wv_ingest.transfer import bring
from wv_shards import (
    EXCLUDE,
    INDEX_FILE,
    MANIFEST_FILE,
    MERGE_DIR,
    REJECTS_FILE,
    SAMPLES_FILE,
    ClassInfo,
    CorruptDataError,
    Dataset,
    EarlierInfo,
    Manifest,
    OriginInfo,
    OutputExistsError,
    Overlay,
    ShardInfo,
    UnlistedInfo,
    file_checksum,
    fsync_directory,
    table_checksums,
    write_atomic,
    write_timm_info,
)

_SETS_FILE = "sets.json"
"""In OUT/.merge: digests of the sets that are being merged."""
_OF_IMAGES = (
    *("size", "quality", "subsampling", "keep_metadata", "check"),
    *("max_bytes", "max_pixels", "max_side", "min_side", "max_aspect"),
    *DuplicateOptions().deciding(),
)
"""Options that say which images are packed and shown, and how."""
_EXAMPLES = 3
_UNLISTED_NAMES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _Set:
    folder: Path
    manifest: Manifest


def merge(out: Path, folders: Sequence[Path], progress: Progress) -> Manifest:
    """Make one data set of several in `out`, or finish a merge of the same that was stopped.

    Raises:
        MergeError: the sets do not fit together: other splits, other classes at an id, a key in two of them.
        OutputExistsError: `out` holds something else, or another merge is at work there.
        ShardsError: a set is missing, unfinished or damaged.
        OSError, Stopped: the same command goes on.
    """
    if len(folders) < 2:
        raise MergeError("a merge needs two data sets or more")
    sets = [_Set(folder=folder, manifest=Manifest.load(folder)) for folder in folders]
    digests = [one.manifest.digest for one in sets]
    if _complete(out, digests):
        progress.note(f"{out}: already complete, nothing to do")
        return Manifest.load(out)
    _check(sets, progress)
    with folder_lock(out / MERGE_DIR) as merge_dir:
        note = merge_dir / _SETS_FILE
        if note.is_file() and json.loads(note.read_bytes()) != digests:
            raise OutputExistsError(f"{out}: holds an unfinished merge of other sets; finish it, or remove the folder")
        write_atomic(note, json.dumps(digests).encode())
        shards = _bring_shards(out, sets, progress)
        manifest = _write_tables(merge_dir, sets, shards, progress)
        manifest = _mark(merge_dir, sets, manifest, progress)
        for name in (INDEX_FILE, SAMPLES_FILE, REJECTS_FILE, *MARK_FILES):
            if (merge_dir / name).exists():
                os.replace(merge_dir / name, out / name)
        fsync_directory(out)
        write_timm_info(out, manifest)
        manifest.save(out)
        remove_build_dir(merge_dir)
    return manifest


def _complete(out: Path, digests: list[str]) -> bool:
    """Whether `out` is the finished merge of these sets; else it is empty, or an unfinished merge."""
    if not folder_exists(out):
        return False
    if (out / MANIFEST_FILE).is_file():
        merged = Manifest.load(out).options.get(MERGED, [])
        if [part["digest"] for part in merged] != digests:
            raise OutputExistsError(f"{out}: holds another data set; choose an empty or a new folder")
        if (out / MERGE_DIR).is_dir():  # killed after the manifest
            remove_build_dir(out / MERGE_DIR)
        return True
    if any(out.iterdir()) and not (out / MERGE_DIR).is_dir():
        raise OutputExistsError(f"{out}: holds something else than a merge; choose an empty or a new folder")
    return False


def _check(sets: Sequence[_Set], progress: Progress) -> None:
    first = sets[0]
    widest = max(sets, key=lambda one: len(one.manifest.classes))
    for one in sets:
        refuse_lost(one.folder, one.manifest)
        if one.manifest.split != first.manifest.split:
            raise MergeError(
                f"{one.folder}: is a {one.manifest.split} set, {first.folder} a {first.manifest.split} set; merge alike"
            )
        for ours, theirs in zip(one.manifest.classes, widest.manifest.classes, strict=False):
            if ours.name != theirs.name or ours.original_id != theirs.original_id:
                raise MergeError(
                    f"{one.folder}: class {ours.class_id} is {_called(ours)}, in {widest.folder} it is "
                    f"{_called(theirs)}; labels stand in the tars, so ids must agree: build one of them with "
                    "--classes-from the other"
                )
        found = file_checksum(one.folder / INDEX_FILE)
        if found != one.manifest.index_checksum:
            raise CorruptDataError(f"{one.folder / INDEX_FILE}: is damaged; run `wv-ingest verify` on its directory")
        refuse_damaged_tables(one.folder, one.manifest)
    bands = [{m.classes[c].band for m in _with_rows(sets, c)} for c in range(len(widest.manifest.classes))]
    if several := sum(len(of_class) > 1 for of_class in bands):
        progress.warn(
            f"{several} classes are in other bands in other sets; shards keep their bands, so that readers skip more "
            "samples of large classes among small ones. To have one band a class, build anew from all sources"
        )
    _warn_of_options(sets, progress)
    progress.note("comparing keys")
    _check_keys(sets)


def _warn_of_options(sets: Sequence[_Set], progress: Progress) -> None:
    for name in _OF_IMAGES:
        values = [one.manifest.options.get(name) for one in sets]
        if other := next((i for i, value in enumerate(values) if value != values[0]), None):
            here, there = ("unknown" if value is None else value for value in (values[0], values[other]))
            progress.warn(
                f"{name} differs: {sets[0].folder} was built with {here}, {sets[other].folder} with {there}; images "
                "stay as they are: to have all alike, build one of them anew"
            )


def _called(info: ClassInfo) -> str:
    return f"'{info.name}'" + ("" if info.original_id is None else f" (class {info.original_id} of its source)")


def _with_rows(sets: Sequence[_Set], class_id: int) -> list[Manifest]:
    """The manifests of sets that have rows of a class."""
    return [
        one.manifest for one in sets if class_id < len(one.manifest.classes) and one.manifest.classes[class_id].rows
    ]


def _check_keys(sets: Sequence[_Set]) -> None:
    """No key may stand in two sets: equal hashes of 128 bits say so, the keys themselves are for the message."""
    digests = bytearray()
    for one in sets:
        for group in row_groups(one.folder / SAMPLES_FILE, ["key"]):
            digests += b"".join(xxhash.xxh3_128_digest(key.encode()) for key in group.column("key").to_pylist())
    both: NDArray[np.uint64] = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)  # (samples, 2)
    samples = [one.manifest.samples for one in sets]
    if len(both) != sum(samples):
        raise CorruptDataError(f"the sets' tables have {len(both)} keys, the manifests say {sum(samples)}")
    order = np.lexsort((both[:, 1], both[:, 0]))
    alike = (both[order[1:]] == both[order[:-1]]).all(axis=1)
    if not alike.any():
        return
    starts = np.cumsum([0, *samples])
    shown = []
    for ordinal in np.sort(order[1:][alike])[:_EXAMPLES].tolist():
        number = int(np.searchsorted(starts, ordinal, side="right")) - 1
        with Dataset.open(sets[number].folder) as dataset:
            shown += dataset.keys([ordinal - int(starts[number])])
    count = int(np.count_nonzero(alike))
    raise MergeError(
        f"{count:,} keys stand in more than one of the sets: {', '.join(shown)}{', …' if count > len(shown) else ''}; "
        "a key is one image: build the sets from sources that share no paths"
    )


def _bring_shards(out: Path, sets: Sequence[_Set], progress: Progress) -> tuple[ShardInfo, ...]:
    """Link or copy all tars with their indexes; a name that is taken gets the next number of its band."""
    progress.note(f"bringing {sum(len(one.manifest.shards) for one in sets):,} shards")
    infos: dict[str, ShardInfo] = {}
    for one in sets:
        for info in one.manifest.shards:
            name = info.name
            if name in infos:
                prefix = name.rpartition("-")[0] or name
                name = f"{prefix}-{next_number(prefix, infos):06d}"
            infos[name] = replace(info, name=name)
            for suffix, checksum in ((".idx", None), (".tar", info.checksum)):
                target = out / f"{name}{suffix}"
                if not target.is_file():  # whole or not there
                    bring(one.folder / f"{info.name}{suffix}", target, lambda: None, checksum)
    fsync_directory(out)
    return tuple(infos.values())


def _write_tables(merge_dir: Path, sets: Sequence[_Set], shards: tuple[ShardInfo, ...], progress: Progress) -> Manifest:
    progress.note("writing index and tables")
    folders, manifests = [one.folder for one in sets], [one.manifest for one in sets]
    join_indexes(merge_dir / INDEX_FILE, [(one.folder / INDEX_FILE, one.manifest.samples) for one in sets])
    samples = join_samples(merge_dir / SAMPLES_FILE, [folder / SAMPLES_FILE for folder in folders])
    stay = rejects_that_stay([(one.folder, one.manifest) for one in sets])
    parts = [(folder / REJECTS_FILE, mask) for folder, mask in zip(folders, stay, strict=True)]
    rejects = join_rejects(merge_dir / REJECTS_FILE, parts)
    expected = sum((Counter(m.rejects) for m in manifests), Counter[str]())
    expected[Reason.FILTERED.value] -= sum(int(np.count_nonzero(~mask)) for mask in stay if mask is not None)
    if rejects != dict(sorted((+expected).items())):
        raise CorruptDataError("the sets' tables of rejects are not what their manifests say; run `wv-ingest verify`")
    first = manifests[0]
    was = EarlierInfo(digest=first.digest, samples=first.samples)
    return Manifest(
        seed=first.seed,
        split=first.split,
        classes=_classes(sets),
        shards=shards,
        samples=samples,
        rows=samples + sum(rejects.values()),
        rejects=rejects,
        sources=_sources(manifests),
        unlisted=_unlisted(manifests),
        metadata_gaps=dict(sorted(sum((Counter(m.metadata_gaps) for m in manifests), Counter[str]()).items())),
        index_checksum=file_checksum(merge_dir / INDEX_FILE),
        tables=table_checksums(merge_dir),
        options=_options(manifests),
        codecs=_codecs(manifests),
        earlier=(*first.earlier, was),
    )


def _classes(sets: Sequence[_Set]) -> tuple[ClassInfo, ...]:
    widest = max((one.manifest for one in sets), key=lambda manifest: len(manifest.classes))
    classes = []
    for info in widest.classes:
        having = [m.classes[info.class_id] for m in _with_rows(sets, info.class_id)]
        classes.append(
            replace(
                info,
                rows=sum(c.rows for c in having),
                samples=sum(c.samples for c in having),
                band=having[0].band if having else None,
            )
        )
    return tuple(classes)


def _sources(manifests: Sequence[Manifest]) -> dict[str, OriginInfo]:
    total: dict[str, OriginInfo] = {}
    for manifest in manifests:
        for name, info in manifest.sources.items():
            was = total.get(name, OriginInfo(rows=0, samples=0))
            total[name] = OriginInfo(rows=was.rows + info.rows, samples=was.samples + info.samples)
    return dict(sorted(total.items()))


def _unlisted(manifests: Sequence[Manifest]) -> UnlistedInfo | None:
    """The sum, if all sets know it."""
    found = [m.unlisted for m in manifests if m.unlisted is not None]
    if len(found) < len(manifests):
        return None
    names = sorted({name for info in found for name in info.first})[:_UNLISTED_NAMES]
    return UnlistedInfo(files=sum(info.files for info in found), first=tuple(names))


def _options(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What all sets agree on, and under `merged` of each its digest and what is its own."""
    own = [{"seed": m.seed, **m.options} for m in manifests]
    names = sorted({name for options in own for name in options})
    absent = object()
    common = {name for name in names if all(o.get(name, absent) == own[0].get(name, absent) for o in own)}
    merged = [
        {"digest": m.digest, **{name: value for name, value in sorted(options.items()) if name not in common}}
        for m, options in zip(manifests, own, strict=True)
    ]
    return {**{name: own[0][name] for name in names if name in common and name != "seed"}, MERGED: merged}


def _codecs(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Of each codec all that were used."""
    names = sorted({name for m in manifests for name in m.codecs})
    return {name: " + ".join(dict.fromkeys(m.codecs.get(name, "none") for m in manifests)) for name in names}


def _mark(merge_dir: Path, sets: Sequence[_Set], manifest: Manifest, progress: Progress) -> Manifest:
    """Write the exclude overlay. Where all sets were searched for duplicates by one rule, all together are searched."""
    found = [excluded_rows(one.folder, one.manifest) for one in sets]
    rows = np.concatenate(
        [
            np.zeros(one.manifest.samples, dtype=np.uint8) if rows is None else rows
            for one, rows in zip(sets, found, strict=True)
        ]
    )
    rule = DuplicateOptions.of(manifest.options)
    if all(one.manifest.duplicates is not None for one in sets) and rule.deciding().keys() <= manifest.options.keys():
        return mark_duplicates(merge_dir, manifest, rule, progress, rows)
    if any(part is not None for part in found):
        Overlay(kind=EXCLUDE, array=rows, manifest_digest=manifest.digest).save(merge_dir / EXCLUDE)
    return manifest
