"""webdataset over the tars, in torch's workers by its own WebLoader, as its documentation has it."""

import sys
from collections.abc import Iterator
from typing import Any

import webdataset

from wv_bench.peers.crops import pil_crops
from wv_bench.peers.protocol import Epoch, Setup, serve

_SHUFFLE = 1000


def open_loader(setup: Setup) -> Epoch:
    """Batches are made in the workers: what the documentation advises for speed. Mixing them again behind the workers
    (`unbatched().shuffle().batched()`) would collate everything twice."""
    crops = pil_crops(setup)
    # A worker needs a shard at least.
    workers = min(setup.workers, len(setup.tars))
    images = (
        webdataset.WebDataset(list(setup.tars), shardshuffle=len(setup.tars), detshuffle=True, empty_check=False)
        .shuffle(_SHUFFLE)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(crops, _same)
        .batched(setup.batch_size, partial=False)
    )
    # Shards are shared out among the workers unevenly, so that batches at the end are left over: their images come in
    # the next round of the same epoch.
    images = images.repeat().with_epoch(-(-setup.batches // workers))
    loader = webdataset.WebLoader(images, batch_size=None, shuffle=False, num_workers=workers, persistent_workers=True)

    def epoch(_number: int) -> Iterator[int]:
        for batch in loader:
            yield len(batch[0])

    return epoch


def _same(value: Any) -> Any:
    return value


if __name__ == "__main__":
    given = Setup.parse(sys.argv[1])
    serve(given, ("webdataset", "torch", "torchvision", "pillow"), lambda _data: open_loader(given))
