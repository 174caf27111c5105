"""A `Loader` for training loops made for timm's `create_loader`: pairs of normalised images and labels.

Such loops know no masks, so masked slots show other samples of the same batch. It learns its interface from timm and
imports nothing of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from wv_loader.batch import Batch
from wv_loader.errors import LoaderError
from wv_loader.loader import Loader
from wv_shards import Dataset

Mixup = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class TimmLoader:
    """Iterates over (images, labels) of this rank: (n, 3, S, S) float, normalised, on the device; (n,) int64.

    As with timm's own loaders the last batch of a training epoch is dropped where it is not full, and evaluation
    repeats a sample, which then counts twice, only where a rank has none left: of this rank, or, where it had none at
    all, the first of the data set that can be shown. Evaluation gives fewer than B/W images where slots are masked.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        img_dtype: torch.dtype = torch.float32,
        mixup: Mixup | None = None,
    ) -> None:
        """Wrap a loader, which must have no `transform`.

        Args:
            loader: of training or evaluation.
            mean, std: per channel, on the scale 0 … 1.
            device: of the images and labels. The copy overlaps if `loader` was made with the same device.
            img_dtype: of the images.
            mixup: called on images and labels of training while `mixup_enabled`, such as a `timm.data.Mixup`.

        Raises:
            LoaderError: the loader has a `transform`, or too few samples for one full batch of training.
        """
        if loader.transform is not None:
            raise LoaderError("TimmLoader needs batches: expected a Loader without transform")
        self.loader = loader
        self.mean, self.std = tuple(mean), tuple(std)
        self.device = torch.device(device)
        self.img_dtype = img_dtype
        self.mixup_enabled = mixup is not None
        """timm's loops set this to False for their last epochs."""
        self._mixup = mixup
        if not len(self):
            samples, batch_size = loader.epoch_samples, loader.options.batch_size
            raise LoaderError(
                f"{loader.dataset.directory}: {samples} samples an epoch make no full batch of {batch_size}, and loops "
                f"made for timm get full batches only: choose a batch_size of at most {samples}"
            )

    @property
    def dataset(self) -> Dataset:
        """The shards."""
        return self.loader.dataset

    @property
    def sampler(self) -> Loader:
        """What has `set_epoch`."""
        return self.loader

    batch_sampler = sampler

    def __len__(self) -> int:
        """Batches of the current epoch; alike on all ranks."""
        full = self.loader.epoch_samples // self.loader.options.batch_size
        return full if self.loader.train else len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of the current epoch.

        Raises:
            LoaderError: no sample of the data set can be shown.
        """
        count = len(self)
        spare: Batch | None = None
        for batch in self.loader:
            if batch.index >= count:
                continue  # to the loader's own end, where its next epoch begins
            if batch.masked < len(batch.valid):
                spare = batch
                yield self._pair(batch)
            else:
                spare = spare or self._stand_in(batch)
                yield self._pair(spare, most=None if self.loader.train else 1)

    def _stand_in(self, batch: Batch) -> Batch:
        """A batch of the first sample that can be shown, in the place of this one, of which no slot can be."""
        loader = self.loader
        excluded = loader.plan.layout.excluded
        with Loader(
            loader.dataset.directory,
            batch_size=1,
            size_px=loader.size_px,
            engine=loader.engine.name,
            augment=loader.augment,
            train=False,
            rank=0,
            world_size=1,
            threads=1,
            bad_budget=None,
        ) as one_by_one:
            for one in one_by_one:
                if one.masked or (excluded is not None and excluded[one.ordinals].item()):
                    continue
                size = len(batch.valid)
                return replace(
                    batch,
                    images=one.images.repeat(size, 1, 1, 1).contiguous(memory_format=torch.channels_last),
                    labels=one.labels.repeat(size),
                    ordinals=one.ordinals.repeat(size),
                    valid=torch.ones(size, dtype=torch.bool),
                    masked=0,
                )
        raise LoaderError(
            f"{loader.dataset.directory}: no sample can be shown; run `wv-ingest verify {loader.dataset.directory}`"
        )

    def _pair(self, batch: Batch, *, most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        moved = batch.to(self.device)
        images, labels = moved.normalized(self.mean, self.std).to(self.img_dtype), moved.labels
        if batch.masked or most is not None:
            shown = _shown(moved.valid, same_size=self.loader.train)[:most]
            images, labels = images[shown], labels[shown]
        if self.loader.train and self.mixup_enabled and self._mixup is not None:
            images, labels = self._mixup(images, labels)
        return images, labels


def _shown(valid: torch.Tensor, *, same_size: bool) -> torch.Tensor:
    """Slots to show: the valid ones; masked ones are left out, or filled by the valid ones in turn."""
    slots = torch.arange(len(valid), device=valid.device)
    good = slots[valid]
    if not same_size:
        return good
    slots[~valid] = good[torch.arange(len(valid) - len(good), device=valid.device) % len(good)]
    return slots
