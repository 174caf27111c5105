"""DALI's own reader on our tars and indexes (extra `[dali]`), on the CPU."""

from pathlib import Path

import pytest

from wv_shards import Dataset

pytestmark = pytest.mark.usefixtures("dali")


def test_dali_reads_the_shards_by_their_idx(small_dataset: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    with Dataset.open(small_dataset) as dataset:
        tars = [str(dataset.shard_path(s)) for s in range(len(dataset.manifest.shards))]
        images = [dataset.read(i) for i in range(dataset.manifest.samples)]
        labels = dataset.index["label"].tolist()

    @pipeline_def(batch_size=len(images), num_threads=1, device_id=None)
    def read() -> object:
        indexes = [tar.removesuffix("tar") + "idx" for tar in tars]
        read = fn.readers.webdataset(
            paths=tars, index_paths=indexes, ext=["jpg", "cls"], missing_component_behavior="error"
        )
        return tuple(read)  # DALI refuses a list of outputs

    pipeline = read()
    pipeline.build()
    jpgs, classes = pipeline.run()
    assert [bytes(bytearray(jpg)) for jpg in jpgs] == images
    assert [int(bytes(bytearray(c))) for c in classes] == labels
