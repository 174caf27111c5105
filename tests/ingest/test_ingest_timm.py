"""timm's own reader finds everything that it needs in `_info.json`."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import timm.data
import torch

from wv_shards import Dataset, Manifest, ProblemKind, verify, write_timm_info

pytestmark = [  # webdataset leaves the tars that it reads to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_timm_reads_every_sample_with_its_label(reference: Path) -> None:
    with Dataset.open(reference) as dataset:
        expected = Counter(dataset.index["label"].tolist())
        samples, shards = dataset.manifest.samples, len(dataset.manifest.shards)
    data = timm.data.create_dataset("wds/anything", root=str(reference), split="train", is_training=False)
    assert len(data) == samples
    assert len(data.reader.split_info.filenames) == shards
    assert Counter(label for _, label in data) == expected


def test_timm_feeds_training_batches(reference: Path) -> None:
    data = timm.data.create_dataset(
        "wds/anything", root=str(reference), split="train", is_training=True, batch_size=16, num_samples=None
    )
    loader = timm.data.create_loader(
        data, (3, 16, 16), 16, is_training=True, num_workers=0, device=torch.device("cpu"), use_prefetcher=False
    )
    images, labels = next(iter(loader))
    assert images.shape == (16, 3, 16, 16)
    assert 0 <= int(labels.min()) <= int(labels.max()) < 6


def test_a_validation_set_is_found_by_its_split(
    webvision: Path, reference: Path, tmp_path: Path, build_small: Callable[..., object]
) -> None:
    build_small(webvision, tmp_path / "val", split="val", classes_from=reference)
    data = timm.data.create_dataset("wds/anything", root=str(tmp_path / "val"), split="val")
    assert len(data) == 12
    assert Counter(label for _, label in data) == dict.fromkeys(range(6), 2)
    with pytest.raises(RuntimeError, match="split train not found"):
        timm.data.create_dataset("wds/anything", root=str(tmp_path / "val"), split="train")


def test_verify_names_an_info_file_of_another_data_set(reference: Path, small_dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in reference.iterdir():
        (copy / file.name).symlink_to(file)
    assert verify(copy) == []
    (copy / "_info.json").unlink()
    assert [(p.path.name, p.kind) for p in verify(copy)] == [("_info.json", ProblemKind.MISSING)]
    write_timm_info(copy, Manifest.load(small_dataset))
    assert [(p.path.name, str(p.message)) for p in verify(copy)] == [("_info.json", "is not what the manifest says")]
