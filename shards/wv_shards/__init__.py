"""The on-disk format of wv-toolkit: manifest, index, overlay, writer, reader, verify. See FORMAT.md.

No torch, no DALI, no decoding in here.
"""

from wv_shards.atomic import atomic_file, fsync_directory, write_atomic
from wv_shards.errors import (
    CorruptDataError,
    FormatVersionError,
    NotADatasetError,
    OutputExistsError,
    OverlayMismatchError,
    ShardsError,
    UnfinishedBuildError,
)
from wv_shards.hashing import checksum, combine, file_checksum, key_hash, splitmix64
from wv_shards.index import FLAG_BAD, INDEX_DTYPE, INDEX_FILE, IndexArray, open_index, write_index
from wv_shards.manifest import (
    APPEND_DIR,
    BUILD_DIR,
    FORMAT_VERSION,
    IN_PLACE,
    MANIFEST_FILE,
    MERGE_DIR,
    PART_FILE,
    UNFINISHED,
    ClassInfo,
    DuplicatesInfo,
    EarlierInfo,
    Manifest,
    OriginInfo,
    ShardInfo,
    UnlistedInfo,
    band_of,
    band_range,
)
from wv_shards.overlay import EXCLUDE_ASKED, EXCLUDE_DUPLICATE, Overlay
from wv_shards.reader import Dataset
from wv_shards.tables import (
    DUPLICATES_FILE,
    DUPLICATES_SCHEMA,
    METADATA_SCHEMA,
    REJECTS_FILE,
    REJECTS_SCHEMA,
    SAMPLES_FILE,
    SAMPLES_SCHEMA,
)
from wv_shards.timm_info import TIMM_INFO_FILE, timm_info, write_timm_info
from wv_shards.verify import Problem, ProblemKind, dali_index, member_lines, verify
from wv_shards.writer import MAX_KEY_BYTES, FinishedShard, ShardWriter, temporary_files

__all__ = [
    "APPEND_DIR",
    "BUILD_DIR",
    "DUPLICATES_FILE",
    "DUPLICATES_SCHEMA",
    "EXCLUDE_ASKED",
    "EXCLUDE_DUPLICATE",
    "FLAG_BAD",
    "FORMAT_VERSION",
    "INDEX_DTYPE",
    "INDEX_FILE",
    "IN_PLACE",
    "MANIFEST_FILE",
    "MAX_KEY_BYTES",
    "MERGE_DIR",
    "METADATA_SCHEMA",
    "PART_FILE",
    "REJECTS_FILE",
    "REJECTS_SCHEMA",
    "SAMPLES_FILE",
    "SAMPLES_SCHEMA",
    "TIMM_INFO_FILE",
    "UNFINISHED",
    "ClassInfo",
    "CorruptDataError",
    "Dataset",
    "DuplicatesInfo",
    "EarlierInfo",
    "FinishedShard",
    "FormatVersionError",
    "IndexArray",
    "Manifest",
    "NotADatasetError",
    "OriginInfo",
    "OutputExistsError",
    "Overlay",
    "OverlayMismatchError",
    "Problem",
    "ProblemKind",
    "ShardInfo",
    "ShardWriter",
    "ShardsError",
    "UnfinishedBuildError",
    "UnlistedInfo",
    "atomic_file",
    "band_of",
    "band_range",
    "checksum",
    "combine",
    "dali_index",
    "file_checksum",
    "fsync_directory",
    "key_hash",
    "member_lines",
    "open_index",
    "splitmix64",
    "temporary_files",
    "timm_info",
    "verify",
    "write_atomic",
    "write_index",
    "write_timm_info",
]
