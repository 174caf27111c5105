"""What any stage learned about the samples, without touching a shard: an array with a row per sample.

`NAME.npy` holds the array; `NAME.json`, written last, says what it is, which data set it belongs to and the
array's checksum. A pair that does not fit together is refused, so the two can't be mixed up by a crash.
"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from wv_shards.atomic import write_atomic
from wv_shards.errors import CorruptDataError, FormatVersionError, NotADatasetError, OverlayMismatchError

OVERLAY_VERSION = 1


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

    def save(self, base: Path) -> None:
        """Write `base`.npy, then `base`.json; each whole or not at all."""
        buffer = io.BytesIO()
        np.save(buffer, self.array, allow_pickle=False)
        data = buffer.getvalue()
        document = {
            "overlay_version": OVERLAY_VERSION,
            "kind": self.kind,
            "manifest_digest": self.manifest_digest,
            "rows": len(self.array),
            "checksum": xxhash.xxh3_128_hexdigest(data),
            "info": self.info,
        }
        write_atomic(_with(base, ".npy"), data)
        write_atomic(_with(base, ".json"), (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())

    @classmethod
    def load(cls, base: Path | str, *, manifest_digest: str, kind: str | None = None) -> Self:
        """Read `base`.json and `base`.npy (a `base` that ends in either suffix is understood).

        Args:
            base: path without suffix.
            manifest_digest: of the data set that the overlay is wanted for.
            kind: expected kind, or None for any.

        Raises:
            NotADatasetError: there is no such overlay.
            OverlayMismatchError: it belongs to another data set, or is of another kind.
            FormatVersionError: it was written by a newer version.
            CorruptDataError: the array is not the one that the JSON file speaks of.
        """
        base = Path(base)
        if base.suffix in (".npy", ".json"):
            base = base.with_suffix("")
        try:
            document = json.loads(_with(base, ".json").read_bytes())
            data = _with(base, ".npy").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotADatasetError(f"{base}: expected an overlay, {base.name}.json and {base.name}.npy") from None
        except ValueError as error:
            raise CorruptDataError(f"{base}.json: not JSON; write the overlay again") from error
        if document.get("overlay_version") != OVERLAY_VERSION:
            raise FormatVersionError(
                f"{base}.json: overlay version {document.get('overlay_version')}, "
                f"this wv-toolkit reads {OVERLAY_VERSION}; upgrade wv-toolkit"
            )
        if document["manifest_digest"] != manifest_digest:
            raise OverlayMismatchError(
                f"{base}: made for data set {document['manifest_digest'][:12]}…, "
                f"this is {manifest_digest[:12]}…; make it again for these shards"
            )
        if kind is not None and document["kind"] != kind:
            raise OverlayMismatchError(f"{base}: an overlay of kind {document['kind']!r}, expected {kind!r}")
        if xxhash.xxh3_128_hexdigest(data) != document["checksum"]:
            raise CorruptDataError(f"{base}.npy: checksum differs from {base.name}.json; write the overlay again")
        array = np.load(io.BytesIO(data), allow_pickle=False)
        return cls(kind=document["kind"], array=array, manifest_digest=manifest_digest, info=document["info"])


def _with(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)
