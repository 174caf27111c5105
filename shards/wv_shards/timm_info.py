"""`_info.json`: what timm's WebDataset reader wants to know of a data set (`create_dataset("wds/…", root=DIR)`).

Nobody here reads it: it is made from the manifest alone, and made again when that changes.
"""

import json
from pathlib import Path

from wv_shards.atomic import write_atomic
from wv_shards.manifest import Manifest

TIMM_INFO_FILE = "_info.json"


def timm_info(manifest: Manifest) -> bytes:
    """The file's content, as `timm.data.readers.reader_wds` (1.0) reads it: one split, with each tar's samples."""
    split = {
        "name": manifest.split,
        "num_samples": manifest.samples,
        "num_classes": len(manifest.classes),
        "filenames": [f"{shard.name}.tar" for shard in manifest.shards],
        "shard_lengths": [shard.samples for shard in manifest.shards],
    }
    return (json.dumps({"splits": {manifest.split: split}}, indent=1, sort_keys=True) + "\n").encode()


def write_timm_info(directory: Path, manifest: Manifest) -> None:
    """Write the file into `directory`. Call it before `Manifest.save`."""
    write_atomic(directory / TIMM_INFO_FILE, timm_info(manifest))
