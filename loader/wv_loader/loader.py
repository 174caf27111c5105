"""The loader: an iterable over this rank's batches whose order nothing can change.

It holds (epoch, batches done) and nothing else that a checkpoint needs. What an epoch shows is plan.py's affair, how
it gets here pipeline.py's.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from wv_loader.augment import CENTRE, Augment, eval_crops, train_crops, train_effects
from wv_loader.batch import Batch
from wv_loader.checks import one_path, refuse, whole
from wv_loader.dali_options import DaliOptions
from wv_loader.deliver import Delivery, Transform, batch_seed, find_device
from wv_loader.engine import is_dali, make_engine
from wv_loader.errors import LoaderError, StateMismatchError
from wv_loader.faults import Faults
from wv_loader.layout import digest_of, layout_of
from wv_loader.one_loop import OneLoop
from wv_loader.options import Exclusion, LoaderOptions, balance_of, exclusions
from wv_loader.parts import Parts
from wv_loader.pipeline import Order, Pipeline
from wv_loader.plan import PLAN_VERSION, EpochPlan, Plan, PlanOptions, SequentialPlan
from wv_loader.share import Share, find_rank
from wv_loader.stage import Failures, Job
from wv_loader.state import make_state, position_of
from wv_loader.stats import LoaderStats
from wv_loader.supply import Supply
from wv_shards import INDEX_FILE, Dataset, check_index


class Loader:
    """Batches of a data set, rebalanced and shuffled by plan, the same on any number of ranks.

    Iterating yields the batches of the current epoch from the current position; leaving the loop keeps the position.
    When the epoch is through, the next one follows unless `set_epoch` says otherwise.

    There is one loop at a time, which the position belongs to: a new loop ends one that has not been left, as
    `set_epoch`, `load_state_dict` and `close` do. The ended one's next step raises a LoaderError if batches are left.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        batch_size: int,
        size_px: int,
        seed: int = 0,
        balance: float | Sequence[float] = 1.0,
        engine: str = "auto",
        train: bool = True,
        exclude: Sequence[Exclusion] | Exclusion = (),
        max_repeat: float = 16.0,
        streams: int | None = None,
        window: int = 1024,
        run_length: int | None = None,
        augment: Augment | None = None,
        crop_position: tuple[float, float] = CENTRE,
        transform: Transform | None = None,
        device: torch.device | str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        threads: int | None = None,
        processes: int = 0,
        prefetch: int = 3,
        read_ahead_batches: int = 8,
        read_ahead_bytes: int | None = None,
        bad_budget: int | float | None = 0.01,
        quarantine: Path | str | None = None,
        dali: DaliOptions | None = None,
    ) -> None:
        """Open a data set and plan its epochs.

        Args:
            directory: output of `wv-ingest build-shards`.
            batch_size: B, global: over all ranks.
            size_px: S, side of the square images of a batch.
            seed: of order, rebalancing and crops.
            balance: τ, or one per epoch (the last goes on): 1 shows classes as collected, 0 every class alike.
            engine: what decodes: `turbo` or `pillow` on threads, `dali-cpu` or `dali-gpu` by DALI, or `auto`:
                `dali-gpu` where `device` is a GPU and DALI works there, else `turbo` where it is built, else `pillow`.
            train: random crops in planned order; False: every sample once by ordinal, centre crop.
            exclude: overlays of kind `exclude` (paths), or masks, (N,) bool; beside the data set's own `exclude`, which
                always holds.
            max_repeat: no class is repeated more often than this per epoch.
            streams: V; a state can move to any number of ranks that divides it. None: B's largest divisor up to 64.
            window: samples of a stream that are shuffled together.
            run_length: consecutive samples that are read together. None: by the data set's size.
            augment: ranges of the crops, and effects such as colour jitter.
            crop_position: x, y in [0, 1] of evaluation's crop in the room that the resized image leaves it: (0.5, 0.5)
                is the centre, (0, 0) the upper left corner. Training draws its own.
            transform: gets every `Batch` and gives what the loop sees in its place. It runs in a thread of its own, one
                batch after the other in order, at most two ahead of the loop. It should keep nothing from batch to
                batch, and draw random numbers from `batch.seed`: a resumed run then sees the same.
            device: batches are brought there, by a stream of their own on CUDA, before `transform` sees them.
            rank, world_size: of torch.distributed, else of torchrun's environment, unless given.
            threads: decode threads; None: the cores that this process may use, divided by the local ranks.
            processes: worker processes that share the work and the threads, where there are more cores than one
                process can feed; at most as many as this rank has streams. 0: none. They live until `close`.
            prefetch: batches that are decoded ahead, at most.
            read_ahead_batches: batches beyond these whose files are read ahead, at least. A storage that stands still
                is not noticed for (prefetch + read_ahead_batches) times the time per batch.
            read_ahead_bytes: memory for files that are read and not decoded yet. Where the windows of all streams fit
                into it they are read as a whole, in file order; else in parts. Less than those batches need is
                exceeded. None: an eighth of the machine's memory, at most 2 GiB, divided by the local ranks.
            bad_budget: failed shows of an epoch on this rank after which iteration stops with an error: a count (int)
                or a fraction of the epoch's shows on this rank (float, at least 16 shows); None: never. Samples that
                were known to be bad when the data set was indexed do not count. Unless it is None, iteration also stops
                as soon as nothing can be read any more.
            quarantine: file that gets a JSON line for every sample that failed, once per reason; it goes on where it is
                there, and all ranks may share it. Where it can't be written later on, as on a full disk, there is a
                QuarantineWarning and the run goes on.
            dali: how DALI works, where it decodes.

        Raises:
            ShardsError: no finished data set of this format, or one whose index is damaged.
            OptionError: an option that can't be; the message says which.
            LoaderError: what this data set or machine does not have.
        """
        options = LoaderOptions(
            size_px=size_px,
            train=train,
            augment=augment,
            crop_position=crop_position,
            transform=transform,
            rank=rank,
            world_size=world_size,
            threads=threads,
            processes=processes,
            prefetch=prefetch,
            read_ahead_batches=read_ahead_batches,
            read_ahead_bytes=read_ahead_bytes,
            bad_budget=bad_budget,
            dali=dali,
        )
        self.options = PlanOptions(
            batch_size=batch_size,
            seed=seed,
            balance=balance_of(balance),
            max_repeat=max_repeat,
            streams=streams,
            window=window,
            run_length=run_length,
        )
        excluded = exclusions(exclude)
        self.train = options.train
        self.size_px = options.size_px
        self.augment = options.augment or Augment()
        self.crop_position = options.crop_position
        self.transform = options.transform
        self.device = find_device(device)
        has_effects = self.train and self.augment.has_effects
        self.engine = make_engine(
            engine, self.device, has_effects=has_effects, processes=options.processes, dali=options.dali
        )
        if is_dali(self.engine):
            self.device = self.engine.device or self.device
        self.dataset = Dataset.open(one_path("directory", directory))
        check_index(self.dataset.directory / INDEX_FILE, self.dataset.manifest.index_checksum)
        self.rank, self.world_size = find_rank(options.rank, options.world_size)
        layout = layout_of(self.dataset, excluded)
        try:
            self.plan = Plan(layout, self.options)
        except ValueError as error:
            raise LoaderError(f"{directory}: {error}") from error
        resolved = self.options.resolved_streams if self.train else None
        self._share = share = Share.of(
            self.rank,
            self.world_size,
            batch_size=self.options.batch_size,
            streams=resolved,
            processes=options.processes,
        )
        self._sequential = None if self.train else SequentialPlan(layout, self.options.batch_size)
        self._exclusions = digest_of(layout.excluded)
        self.stats = LoaderStats()
        self._prefetch = options.prefetch
        self._supply = Supply(
            self.dataset,
            self.engine,
            self.stats,
            share,
            sample_bytes=float(layout.sizes.mean()),
            size_px=self.size_px,
            threads=options.threads,
            processes=options.processes,
            prefetch=self._prefetch,
            read_ahead_batches=options.read_ahead_batches,
            read_ahead_bytes=options.read_ahead_bytes,
            window=self.options.window,
            streams=resolved or len(share.rows),
        )
        log = None if quarantine is None else one_path("quarantine", quarantine)
        self._faults = Faults(self.dataset, self.stats, budget=options.bad_budget, quarantine=log)
        self._epoch = 0
        self._skip: NDArray[np.bool_] | None = None  # of this epoch
        self._position = 0
        self._keep_position = False
        self._through = False
        self._loops = OneLoop()
        self._planned: EpochPlan | None = None

    # -- what the data set holds ------------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """N, samples in the shards, excluded ones included."""
        return self.dataset.manifest.samples

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dataset.manifest.classes)

    @property
    def class_names(self) -> list[str]:
        """K names, by class id."""
        return [c.name for c in self.dataset.manifest.classes]

    @property
    def class_bands(self) -> list[int | None]:
        """K bands, by class id."""
        return [c.band for c in self.dataset.manifest.classes]

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """(K,) samples that are not excluded."""
        return self.plan.class_counts

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) class id of each ordinal."""
        return self.plan.layout.labels

    @property
    def manifest_digest(self) -> str:
        """Identity of the data set."""
        return self.dataset.manifest.digest

    def expected_exposure(self, epoch: int = 0) -> NDArray[np.float64]:
        """(K,) shows of each class in an epoch, on average, after rebalancing."""
        return self.plan.expected_exposure(epoch) if self.train else self.class_counts.astype(np.float64)

    # -- position ---------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int, *, skip: NDArray[np.bool_] | None = None) -> None:
        """Go to the start of an epoch; right after `load_state_dict` of that very epoch, stay at its position.

        Args:
            epoch: from 0.
            skip: (N,) samples that this epoch leaves out, alike on all ranks: they are neither read nor decoded, and
                what is left is shown as often, and in later epochs as, it would have been. So other exclusions can hold
                in every epoch, without opening the data set anew; it is the caller who keeps them for a resume.

        Raises:
            OptionError: no such epoch; not a mask; not for training.
            StateMismatchError: another `skip` than the loaded state's.
        """
        epoch = whole("epoch", epoch, 0, self.options.last_epoch)
        skip = self._skippable(skip)
        self._loops.end()
        if not (self._keep_position and epoch == self._epoch):
            self._epoch, self._position, self._skip = epoch, 0, skip
        elif digest_of(skip) != digest_of(self._skip):
            raise StateMismatchError(
                f"set_epoch({epoch}): expected the skip that load_state_dict was given, found another; give both the "
                "mask that the state was saved with"
            )
        self._keep_position = self._through = False

    def __len__(self) -> int:
        """Global batches of the current epoch; alike on all ranks, and known before the epoch starts."""
        return self._current_plan().batches

    @property
    def epoch_samples(self) -> int:
        """L, shows of the current epoch on all ranks."""
        return self._current_plan().samples

    def left_out(self) -> NDArray[np.int64]:
        """(n,) ordinals of the current epoch's shows that `skip` takes away, on all ranks: one as often as it would
        have been shown."""
        plan = self._current_plan()
        return plan.left_out() if isinstance(plan, EpochPlan) else np.zeros(0, dtype=np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Position and everything that decides the plan; small and JSON-able.

        Within a loop over the loader, the batch in hand counts as done.
        """
        return make_state(self._identity(self._skip), self._epoch, self._position)

    def load_state_dict(self, state: dict[str, Any], *, skip: NDArray[np.bool_] | None = None) -> None:
        """Go to a saved position; the same batches follow, on any number of ranks that divides the streams.

        Args:
            state: from `state_dict`.
            skip: what `set_epoch` was given for the state's epoch; the state holds its digest.

        Raises:
            OptionError: `skip` is not a mask.
            StateMismatchError: the state belongs to another plan; the message names what differs.
        """
        skip = self._skippable(skip)
        epoch, done = position_of(state, self._identity(skip), last_epoch=self.options.last_epoch)
        batches = self._plan_of(epoch, skip).batches
        if done > batches:
            raise StateMismatchError(f"not a state of this loader: batch {done} of epoch {epoch}, which has {batches}")
        self._loops.end()
        self._epoch, self._position, self._skip = epoch, done, skip
        self._keep_position, self._through = True, False

    def _skippable(self, skip: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """A copy of a mask; None where it leaves nothing out."""
        if skip is None:
            return None
        if not self.train or skip.dtype != np.bool_ or skip.shape != (self.num_samples,):
            found = f"{skip.dtype} of shape {skip.shape}" if self.train else "one with train=False"
            raise refuse("skip", f"with train=True an array of bool, ({self.num_samples},)", found)
        return skip.copy() if skip.any() else None

    def _identity(self, skip: NDArray[np.bool_] | None) -> dict[str, Any]:
        """Everything that decides which samples come in which order; nothing that a change of ranks changes."""
        of_epoch = {} if skip is None else {"skip": digest_of(skip)}  # states without it are as they always were
        return of_epoch | {
            "plan_version": PLAN_VERSION,
            "manifest_digest": self.manifest_digest,
            "exclusions": self._exclusions,
            "train": self.train,
            "batch_size": self.options.batch_size,
            "seed": self.options.seed,
            "balance": list(self.options.balance),
            "max_repeat": self.options.max_repeat,
            "streams": self.options.resolved_streams,
            "window": self.options.window,
            "run_length": self.plan.runs.length,
        }

    def _current_plan(self) -> EpochPlan | SequentialPlan:
        return self._plan_of(self._epoch, self._skip)

    def _plan_of(self, epoch: int, skip: NDArray[np.bool_] | None) -> EpochPlan | SequentialPlan:
        if self._sequential is not None:
            return self._sequential
        if self._planned is None or self._planned.epoch != epoch or self._planned.skip is not skip:
            self._planned = self.plan.epoch(epoch, skip)
        return self._planned

    # -- iteration --------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        """This rank's batches of the current epoch, from the current position, or what `transform` made of them.

        Raises:
            BadSampleBudgetError: too many samples failed.
            StorageError: nothing can be read any more.
            LoaderError: the loop was ended by another one, `set_epoch`, `load_state_dict` or `close`.
        """
        asked = self.stats.clock()
        self._loops.end()
        self._close_epoch()  # a loop that takes as many batches as `len` says, and asks for no more, has not
        plan = self._current_plan()
        self.stats.add_plan(self.stats.clock() - asked)
        self._keep_position = False
        self._faults.begin(plan.batches * len(self._share.slots), afresh=self._position == 0)
        epoch, numbers = self._epoch, range(self._position, plan.batches)
        with self._loops.begin() as loop:
            loop.push(self._end_workers)
            delivery = self._start(loop, plan, epoch, numbers)
            for number in numbers:
                self._loops.check(loop)
                try:
                    delivered, batch, failures = delivery.take()
                except BaseException:
                    self._loops.check(loop)  # ended in another thread
                    raise
                self._faults.account(epoch, number, batch.ordinals.numpy(), failures)
                self._position += 1
                self._through = self._position == plan.batches
                handed = self.stats.clock()
                self.stats.add_wait(handed - asked, first=number == numbers.start)
                del batch  # its memory may be wanted
                yield delivered
                del delivered
                asked = self.stats.clock()
                self.stats.add_work(asked - handed)
            if self._loops.runs(loop):
                self._through = True  # also where there was nothing to show
                self._close_epoch()

    def _start(self, loop: ExitStack, plan: EpochPlan | SequentialPlan, epoch: int, numbers: range) -> Delivery:
        """Threads that bring the batches; leaving `loop` ends them."""
        parts = self._parts(plan, numbers.start)
        stage = self._supply.begin()
        pipeline = Pipeline(
            lambda number: self._order(plan, parts, epoch, number),
            numbers,
            stage=stage,
            stats=self.stats,
            prefetch=self._prefetch,
            lead=self._supply.read_ahead.lead,
        )

        def take() -> tuple[Batch, Failures]:
            batch, failures = pipeline.take()
            masked = len(batch.valid) - int(batch.valid.sum())
            return replace(batch, seed=batch_seed(self.options.seed, epoch, batch.index), masked=masked), failures

        # The pipeline is left first: a thread of the delivery may wait in `take`.
        ahead = Delivery(take, len(numbers), transform=self.transform, device=self.device, stats=self.stats)
        delivery = loop.enter_context(ahead)
        loop.enter_context(pipeline)
        return delivery

    def _end_workers(self, kind: type[BaseException] | None, *_: object) -> None:
        """They do not outlive an error, whose traceback may keep the loader alive; the next loop starts new ones."""
        if kind is not None and kind is not GeneratorExit:
            self._supply.close()

    def _close_epoch(self) -> None:
        """The next epoch follows where all batches of this one were taken."""
        if self._through:
            self._epoch, self._position, self._skip, self._through = self._epoch + 1, 0, None, False

    def close(self) -> None:
        """Close the shards' files and end the worker processes. Both are opened anew when they are needed."""
        self._loops.end()
        self._supply.close()
        self.dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parts(self, plan: EpochPlan | SequentialPlan, first_batch: int) -> Parts:
        if isinstance(plan, EpochPlan):
            streams, epoch_plan = self._share.parts, plan

            def window_of(row: int, position: int) -> tuple[NDArray[np.int64], int]:
                ordinals, first, _ = epoch_plan.window_of(streams[row], position)
                return ordinals, first
        else:
            rows, sequential, count = self._share.rows, plan, self.options.window

            def window_of(row: int, position: int) -> tuple[NDArray[np.int64], int]:
                first = position // count * count
                return sequential.following(rows[row], first, count), first

        part = self._supply.read_ahead.part
        return Parts(window_of, self._share.row_slots, first_batch=first_batch, part=part)

    def _order(self, plan: EpochPlan | SequentialPlan, parts: Parts, epoch: int, number: int) -> Order:
        """Everything about a batch that can be known without reading it."""
        ordinals = plan.batch(number, self._share.parts)
        records = self.dataset.index[np.maximum(ordinals, 0)]
        present = ordinals >= 0
        # At least 1: a sample that is known not to decode has no size.
        widths = np.where(present, np.maximum(records["width"], 1), 1).astype(np.int64)
        heights = np.where(present, np.maximum(records["height"], 1), 1).astype(np.int64)
        if self.train:
            slots = number * self.options.batch_size + np.array(self._share.slots)
            crops = train_crops(self.augment, widths, heights, seed=self.options.seed, epoch=epoch, slots=slots)
            effects = train_effects(self.augment, self.size_px, seed=self.options.seed, epoch=epoch, slots=slots)
        else:
            effects = None
            crops = eval_crops(self.augment, widths, heights, self.size_px, self.crop_position)
        return Order(
            parts=parts.of(number, ordinals),
            job=Job(number=number, ordinals=ordinals, widths=widths, heights=heights, crops=crops, effects=effects),
            labels=np.where(present, records["label"], 0).astype(np.int64),
        )
