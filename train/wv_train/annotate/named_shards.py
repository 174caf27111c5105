"""Where the shards of an overlay lie, as it says itself: so a command needs its name alone."""

import json
from pathlib import Path

from wv_shards import without_suffix
from wv_train.errors import TrainError


def shards_of(base: Path, kind: str, wanted: str) -> Path:
    """The folder that the overlay `base` of `wv-annotate KIND` names; `wanted`: what a person is told it should be.

    Raises TrainError: there is no such overlay, or it names none.
    """
    path = without_suffix(base)
    path = path.with_name(path.name + ".json")
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise TrainError(f"{base}: expected {wanted}, found none; wv-annotate {kind} RUN makes it") from error
    except (OSError, ValueError) as error:
        raise TrainError(f"{path}: expected the JSON of an overlay; write the overlay again ({error})") from error
    try:
        if facts["kind"] != kind:
            raise TrainError(f"{base}: an overlay of kind {facts['kind']!r}, expected {kind!r}")
        return Path(facts["info"]["shards"])
    except (KeyError, TypeError) as error:
        raise TrainError(f"{path}: does not say where its shards are; name them: --shards DIR") from error
