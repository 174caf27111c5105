"""Overlays that say where their shards are."""

import json
from pathlib import Path

import pytest

from wv_train.annotate.named_shards import shards_of
from wv_train.errors import TrainError


def test_an_overlay_names_its_shards(tmp_path: Path) -> None:
    facts = {"kind": "features", "info": {"shards": "somewhere/train"}}
    (tmp_path / "features.json").write_text(json.dumps(facts))
    assert shards_of(tmp_path / "features", "features", "the overlay features") == Path("somewhere/train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected the overlay features, found none; wv-annotate features RUN makes it"),
        ('{"kind": "feat', "expected the JSON of an overlay; write the overlay again"),
        ('{"kind": "tiers", "info": {"shards": "there"}}', "an overlay of kind 'tiers', expected 'features'"),
        ('{"kind": "features", "info": {}}', "does not say where its shards are; name them: --shards DIR"),
        ("[1]", "does not say where its shards are"),
    ],
)
def test_what_is_wrong_with_one_is_said(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "features.json").write_text(text)
    with pytest.raises(TrainError, match=message):
        shards_of(tmp_path / "features", "features", "the overlay features")
