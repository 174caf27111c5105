"""What any stage learned about the samples, without touching a shard: an array with a row per sample.

`NAME.npy` holds the array; `NAME.json`, written last, says what it is, which data set it belongs to and the
array's checksum. A pair that does not fit together is refused, so the two can't be mixed up by a crash.
"""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from wv_shards.atomic import atomic_file, fsync_directory, temporary_path
from wv_shards.errors import CorruptDataError, FormatVersionError, NotADatasetError, OverlayMismatchError
from wv_shards.hashing import file_checksum
from wv_shards.manifest import DuplicatesInfo, Manifest

OVERLAY_VERSION = 1
EXCLUDE_DUPLICATE, EXCLUDE_ASKED = 1, 2
"""Bits of a data set's own `exclude` overlay: why a sample is not shown. A copy of another; asked for by its key."""
EXCLUDE = "exclude"
"""Name and kind of the data set's own overlay of samples that are not to be shown."""
_NEEDED = {"checksum", "info", "kind", "manifest_digest", "overlay_version"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """One overlay in memory."""

    kind: str
    """What the rows mean: `exclude`, `ledger`, `tiers`, …"""
    array: NDArray[Any]
    """(N, …): row i speaks of ordinal i."""
    manifest_digest: str
    """`Manifest.digest` of the data set that it belongs to."""
    info: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, JSON-able."""
    neutral: Any = None
    """What a row says of a sample that nobody has looked at yet: a value, or for records values by field; what is not
    named is 0. With it the array is extended when the data set has grown."""
    checksum: str | None = None
    """xxh3_128 of the `.npy` file that the array was read from; None: it was not read."""

    def save(self, base: Path) -> None:
        """Write `base`.npy, then `base`.json; killed at any moment, a reader finds the old overlay or the new one."""
        array = np.ascontiguousarray(self.array)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        # The file as `np.save` writes it, without a second array's worth of memory, and without holding Python up.
        parts: list[bytes | memoryview] = [header.getvalue(), array.reshape(-1).view(np.uint8).data]
        digest = xxhash.xxh3_128()
        for part in parts:
            digest.update(part)
        document = describe(self, rows=len(self.array), checksum=digest.hexdigest())
        with exchanged(base, document), atomic_file(_with(base, ".npy")) as file:
            for part in parts:
                file.write(part)

    @classmethod
    def load(cls, base: Path | str, *, manifest_digest: str, kind: str | None = None, mapped: bool = False) -> Self:
        """Read `base`.json and `base`.npy (a `base` that ends in either suffix is understood).

        Args:
            base: path without suffix.
            manifest_digest: of the data set that the overlay is wanted for, and was made for.
            kind: expected kind, or None for any.
            mapped: map the array, read-only, instead of loading it: for one that is larger than the memory. Its
                checksum is verified by reading it through once. Whoever shrinks the file later on kills the process.

        Raises:
            NotADatasetError: there is no such overlay.
            OverlayMismatchError: it belongs to another data set, or is of another kind.
            FormatVersionError: it was written by a newer version.
            CorruptDataError: the array is not the one that the JSON file speaks of.
        """
        return cls._read(without_suffix(base), {manifest_digest}, manifest_digest, kind, mapped=mapped)

    @classmethod
    def load_onto(cls, base: Path | str, manifest: Manifest, *, kind: str | None = None) -> Self:
        """Read an overlay for a data set that may have grown since: with a row per sample of today.

        One that was made for an earlier state is extended by neutral rows; what is on disk stays as it is.

        Args:
            base: as in `load`.
            manifest: of the data set.
            kind: as in `load`.

        Raises:
            ShardsError: as `load`; also an OverlayMismatchError where it has not a row per sample of its state.
        """
        base = without_suffix(base)
        digests = {manifest.digest, *(state.digest for state in manifest.earlier)}
        found = cls._read(base, digests, manifest.digest, kind)
        array, expected = found.array, manifest.samples_at(found.manifest_digest)
        assert expected is not None
        if not array.ndim or len(array) != expected:
            raise OverlayMismatchError(f"{base}.npy: shape {array.shape}, expected ({expected}, …): a row per sample")
        if expected < manifest.samples:
            more = np.zeros((manifest.samples - expected, *array.shape[1:]), dtype=array.dtype)
            try:
                if isinstance(found.neutral, dict):
                    for name, value in found.neutral.items():
                        more[name] = value
                elif found.neutral is not None:
                    more[...] = found.neutral
            except (ValueError, TypeError, IndexError, OverflowError) as error:
                raise CorruptDataError(f"{base}.json: its neutral row does not fit its array ({error})") from error
            array = np.concatenate([array, more])
        return replace(found, array=array, manifest_digest=manifest.digest)

    @classmethod
    def _read(cls, base: Path, digests: set[str], wanted: str, kind: str | None, *, mapped: bool = False) -> Self:
        """The pair as it is on disk, if it was made for one of `digests`."""
        path, array_path = _with(base, ".json"), _with(base, ".npy")
        try:
            document = json.loads(path.read_bytes())
            data = b"" if mapped else array_path.read_bytes()
            found = file_checksum(array_path) if mapped else xxhash.xxh3_128_hexdigest(data)
        except (FileNotFoundError, NotADirectoryError):
            raise NotADatasetError(f"{base}: expected an overlay, {base.name}.json and {base.name}.npy") from None
        except ValueError as error:
            raise CorruptDataError(f"{base}.json: not JSON; write the overlay again") from error
        if not isinstance(document, dict) or not document.keys() >= _NEEDED:
            raise CorruptDataError(f"{base}.json: does not describe an overlay; write the overlay again")
        if document.get("checksum") != found:
            document = _fitting(temporary_path(path), found) or document
        if document.get("overlay_version") != OVERLAY_VERSION:
            raise FormatVersionError(
                f"{base}.json: overlay version {document.get('overlay_version')}, "
                f"this wv-toolkit reads {OVERLAY_VERSION}; upgrade wv-toolkit"
            )
        digest = document["manifest_digest"]
        if digest not in digests:
            raise OverlayMismatchError(
                f"{base}: made for data set {digest[:12]}…, this is {wanted[:12]}…; make it again for these shards"
            )
        if kind is not None and document["kind"] != kind:
            raise OverlayMismatchError(f"{base}: an overlay of kind {document['kind']!r}, expected {kind!r}")
        if found != document["checksum"]:
            raise CorruptDataError(f"{base}.npy: checksum differs from {base.name}.json; write the overlay again")
        return cls(
            kind=document["kind"],
            array=np.load(
                array_path if mapped else io.BytesIO(data), mmap_mode="r" if mapped else None, allow_pickle=False
            ),
            manifest_digest=digest,
            info=document["info"],
            neutral=document.get("neutral"),
            checksum=found,
        )


def describe(overlay: Overlay, *, rows: int, checksum: str) -> dict[str, Any]:
    """What `NAME.json` says of an overlay whose array file has this checksum."""
    return {
        "overlay_version": OVERLAY_VERSION,
        "kind": overlay.kind,
        "manifest_digest": overlay.manifest_digest,
        "rows": rows,
        "checksum": checksum,
        "info": overlay.info,
        **({} if overlay.neutral is None else {"neutral": overlay.neutral}),
    }


@contextmanager
def exchanged(base: Path, document: dict[str, Any]) -> Iterator[None]:
    """Within the context `base`.npy gets its new array, by a rename; `base`.json gets `document` afterwards.

    Killed at any moment, a reader finds the old pair or the new one.
    """
    path = _with(base, ".json")
    with open(temporary_path(path), "wb") as file:  # ready before the array, see `_fitting`
        file.write((json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    yield
    os.replace(temporary_path(path), path)
    fsync_directory(path.parent)


def lost_exclude(directory: Path, manifest: Manifest) -> str | None:
    """What to tell where duplicates were excluded and the overlay that says which is gone; None: all is well.

    A data set without an overlay is whole where nothing was ever excluded.
    """
    if manifest.duplicates is None or not manifest.duplicates.excluded or (directory / f"{EXCLUDE}.json").exists():
        return None
    return (
        f"{directory / EXCLUDE}.json: is missing, and {manifest.duplicates.excluded} duplicates were excluded; "
        + exclude_remedy(manifest)
    )


def exclude_remedy(manifest: Manifest) -> str:
    """What a person can do about a lost or damaged exclude overlay."""
    keys = "exclusions by key stood in that file alone: `wv-ingest exclude --keys` makes them again"
    rule = manifest.duplicates
    if rule is None:
        return f"restore it from a copy, or remove {EXCLUDE}.npy and {EXCLUDE}.json; {keys}"
    left = f"{EXCLUDE}.npy and {EXCLUDE}.json"
    return f"restore it from a copy, or remove what is left of {left} and run {search_command(rule)}; {keys}"


def search_command(rule: DuplicatesInfo) -> str:
    """The command that looks for duplicates again by the same rule, in backquotes."""
    near = "off" if rule.near_distance is None else rule.near_distance
    return f"`wv-ingest duplicates SHARDS --conflict {rule.conflict} --near-distance {near}`"


def _fitting(path: Path, checksum: str) -> dict[str, Any] | None:
    """What a writer that was killed between its two renames has left beside the new array; None if there is no such."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("checksum") == checksum else None


def without_suffix(base: Path | str) -> Path:
    """An overlay's path, whichever of its two files was named."""
    base = Path(base)
    return base.with_suffix("") if base.suffix in (".npy", ".json") else base


def _with(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)
