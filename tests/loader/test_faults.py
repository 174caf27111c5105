"""Law 7 for every engine and any ranks; what is said of broken images and broken disks; the budget; quarantine."""

import errno
import functools
import json
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wv_loader import (
    ENGINES,
    BadSampleBudgetError,
    Batch,
    Failure,
    Loader,
    LoaderError,
    LoaderStats,
    QuarantineWarning,
    StorageError,
)
from wv_loader import read as read_module
from wv_loader.faults import Faults
from wv_loader.quarantine import Quarantine
from wv_shards import FLAG_BAD, Dataset, OpenFilesError, checksum

OPTIONS = {"batch_size": 24, "size_px": 16, "seed": 3, "threads": 2, "bad_budget": None}
FLIPPED, SCRAMBLED, FLAGGED = (7, 100), (9, 60), (11, 12)
SHARD = 5
"""64 of the 239 samples are in it."""


@pytest.fixture(params=[name for name in ENGINES if name not in ("auto", "dali-gpu")])
def engine(request: pytest.FixtureRequest, small_dataset: Path) -> str:
    """Those that work anywhere: `dali-gpu` needs a GPU; its faults are mended by the code of `dali-cpu`."""
    name = str(request.param)
    if name == "dali-cpu":
        request.getfixturevalue("dali")
    try:
        Loader(small_dataset, batch_size=4, size_px=8, engine=name).close()
    except LoaderError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture
def shards(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(small_dataset, tmp_path / "shards"))


def epoch_of(directory: Path, world_size: int, after: Callable[[], object] = int, **options: object) -> list[Batch]:
    """Global batches of an epoch, joined from those of the ranks; `after` is called behind a rank's first batch."""
    ranks: list[list[Batch]] = []
    for rank in range(world_size):
        loading = {**OPTIONS, "rank": rank, "world_size": world_size, **options}
        with Loader(directory, **loading) as loader:  # type: ignore[arg-type]
            ranks.append([])
            for batch in loader:
                ranks[-1].append(batch)
                if len(ranks[-1]) == 1:
                    after()
    names = ("images", "labels", "ordinals", "valid")
    return [
        Batch(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names}, index=parts[0].index)
        for parts in zip(*ranks, strict=True)
    ]


@functools.cache
def sound_epoch(directory: Path, world_size: int, engine: str, train: bool) -> list[Batch]:
    return epoch_of(directory, world_size, engine=engine, train=train)


def assert_masked(damaged: list[Batch], sound: list[Batch], lost: set[int]) -> None:
    """Exactly these are masked, and black; all else is what it was, bit for bit."""
    masked = set()
    for bad, good in zip(damaged, sound, strict=True):
        assert torch.equal(bad.ordinals, good.ordinals)
        assert torch.equal(bad.labels, good.labels)
        assert not (bad.valid & ~good.valid).any()
        masked |= set(bad.ordinals[good.valid & ~bad.valid].tolist())
        assert torch.equal(bad.images[bad.valid], good.images[bad.valid])
        assert not bad.images[~bad.valid].any()
    assert masked == lost


def samples_of(dataset: Dataset, shard: int) -> set[int]:
    return set(range(int(dataset.shard_starts[shard]), int(dataset.shard_starts[shard + 1])))


def flip_bits(directory: Path, dataset: Dataset) -> set[int]:
    """In the midst of the coded pixels: a decoder might not notice."""
    for ordinal in FLIPPED:
        path = dataset.shard_path(int(dataset.shard_of(ordinal)))
        data = bytearray(path.read_bytes())
        data[int(dataset.index[ordinal]["offset"]) + int(dataset.index[ordinal]["size"]) * 3 // 4] ^= 0x40
        path.write_bytes(data)
    return set(FLIPPED)


def truncate(directory: Path, dataset: Dataset) -> set[int]:
    last = int(dataset.shard_starts[SHARD + 1])
    os.truncate(dataset.shard_path(SHARD), int(dataset.index[last - 3]["offset"]) + 10)
    return {last - 3, last - 2, last - 1}


def delete(directory: Path, dataset: Dataset) -> set[int]:
    dataset.shard_path(SHARD).unlink()
    return samples_of(dataset, SHARD)


def replace(directory: Path, dataset: Dataset) -> set[int]:
    """By another shard, which is shorter."""
    shutil.copy(dataset.shard_path(SHARD - 2), directory / "new")
    (directory / "new").rename(dataset.shard_path(SHARD))
    return samples_of(dataset, SHARD)


def unreadable(directory: Path, dataset: Dataset) -> set[int]:
    """Opens, but every read of it is an error of the system."""
    dataset.shard_path(SHARD).unlink()
    dataset.shard_path(SHARD).mkdir()
    return samples_of(dataset, SHARD)


def pipe(directory: Path, dataset: Dataset) -> set[int]:
    """Nobody writes into it."""
    dataset.shard_path(SHARD).unlink()
    os.mkfifo(dataset.shard_path(SHARD))
    return samples_of(dataset, SHARD)


def scramble(directory: Path, dataset: Dataset) -> set[int]:
    """Bytes that no decoder takes, under a checksum that fits them: as in shards that somebody else wrote."""
    index = np.load(directory / "index.npy")
    for ordinal in SCRAMBLED:
        path = dataset.shard_path(int(dataset.shard_of(ordinal)))
        data = bytearray(path.read_bytes())
        start, size = int(index[ordinal]["offset"]), int(index[ordinal]["size"])
        data[start : start + size] = bytes(size)
        path.write_bytes(data)
        index[ordinal]["checksum"] = checksum(bytes(size))
    np.save(directory / "index.npy", index)
    return set(SCRAMBLED)


def flag(directory: Path, dataset: Dataset) -> set[int]:
    index = np.load(directory / "index.npy")
    index["flags"][list(FLAGGED)] = FLAG_BAD
    np.save(directory / "index.npy", index)
    return set(FLAGGED)


Damage = Callable[[Path, Dataset], set[int]]


@pytest.mark.parametrize(
    ("damage", "reasons"),
    [
        (flip_bits, {"checksum"}),
        (truncate, {"short-read"}),
        (delete, {"io-error"}),
        (unreadable, {"io-error"}),
        (pipe, {"io-error"}),
        (replace, {"checksum", "short-read"}),
        (scramble, {"decode"}),
        (flag, {"known-bad"}),
    ],
)
def test_bad_samples_cost_their_slots_and_nothing_else(
    engine: str,
    small_dataset: Path,
    shards: Path,
    tmp_path: Path,
    damage: Damage,
    reasons: set[str],
    reseal: Callable[[Path], None],
) -> None:
    with Dataset.open(small_dataset) as sound:
        keys = sound.samples_table(["key"]).column("key").to_pylist()
        with Dataset.open(shards) as dataset:
            lost = damage(shards, dataset)
        reseal(shards)
        for world_size, train in ((1, True), (4, True), (3, False)):
            log = tmp_path / f"{world_size}-{train}.jsonl"
            damaged = epoch_of(shards, world_size, engine=engine, train=train, quarantine=log)
            assert_masked(damaged, sound_epoch(small_dataset, world_size, engine, train), lost)
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            assert sorted(row["ordinal"] for row in rows) == sorted(lost)
            assert {row["reason"] for row in rows} == reasons
            for row in rows:
                assert row["key"] == keys[row["ordinal"]]
                assert row["shard"] == sound.shard_path(int(sound.shard_of(row["ordinal"]))).name


@pytest.mark.parametrize(("damage", "reasons"), [(delete, {"io-error"}), (replace, {"checksum", "short-read"})])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_shard_that_goes_while_others_are_read_costs_its_samples_only(
    engine: str, small_dataset: Path, shards: Path, tmp_path: Path, damage: Damage, reasons: set[str], world_size: int
) -> None:
    near = {"engine": engine, "train": False, "prefetch": 1, "read_ahead_batches": 0, "read_ahead_bytes": 1}
    lost: set[int] = set()

    def happen() -> None:
        if not lost:
            with Dataset.open(shards) as dataset:
                lost.update(damage(shards, dataset))

    log = tmp_path / "quarantine.jsonl"
    damaged = epoch_of(shards, world_size, happen, quarantine=log, **near)
    assert_masked(damaged, epoch_of(small_dataset, world_size, **near), lost)
    assert {json.loads(line)["reason"] for line in log.read_text().splitlines()} == reasons


def loading(directory: Path, **options: object) -> Loader:
    return Loader(directory, **{**OPTIONS, **options})  # type: ignore[arg-type]


def no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("wv-")]


# -- broken images, broken disks -----------------------------------------------------------------------------------


def test_a_mount_that_vanishes_stops_a_run_at_once_and_is_not_blamed_on_the_images(shards: Path) -> None:
    """All files are gone, that of the keys too, and the budget would allow 216 of 240 shows to fail."""
    with loading(shards, bad_budget=0.9, quarantine=shards.parent / "log") as loader:
        for path in shards.iterdir():
            path.unlink()
        with pytest.raises(StorageError, match=r"reads in a row failed in epoch 0; b\d\d-\d+.tar: \d+ reads") as raised:
            list(loader)
        assert "failed with ENOENT (No such file or directory) (and those of " in str(raised.value)
        assert "the disk or mount, not the images" in str(raised.value)
        assert "\n" not in str(raised.value)
    rows = [json.loads(line) for line in (shards.parent / "log").read_text().splitlines()]
    assert {row["key"] for row in rows} == {None}  # and the ordinals do
    assert {row["detail"] for row in rows} == {"ENOENT (No such file or directory)"}
    assert no_threads()


@pytest.mark.parametrize("train", [True, False])
def test_one_broken_shard_among_others_stops_nothing_before_the_budget(shards: Path, train: bool) -> None:
    """In evaluation its 64 samples come one after the other."""
    with Dataset.open(shards) as dataset:
        lost = delete(shards, dataset)
    with loading(shards, bad_budget=len(lost), train=train) as loader:
        assert sum(int((batch.ordinals >= 0).sum() - batch.valid.sum()) for batch in loader) == len(lost)
        assert loader.stats.io_errors == {(SHARD, errno.ENOENT): len(lost)}
    with loading(shards, bad_budget=len(lost) - 1, train=train) as loader:
        name = loader.dataset.shard_path(SHARD).name
        with pytest.raises(BadSampleBudgetError) as raised:
            list(loader)
    assert f"64 samples of epoch 0 failed, 63 are allowed (64 io-error); {name}: 64 reads failed" in str(raised.value)
    assert "with ENOENT (No such file or directory): the disk or mount, not the images;" in str(raised.value)
    assert "wv-ingest verify" not in str(raised.value)
    assert no_threads()


def test_a_bad_spot_of_a_disk_is_told_by_its_error(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO can't be had without a broken disk: the system call is made to fail where the spot is."""
    with loading(shards, bad_budget=2) as loader:
        start, stop = int(loader.dataset.shard_starts[SHARD]), int(loader.dataset.shard_starts[SHARD + 1])
        spot = range(int(loader.dataset.index[start + 3]["offset"]), int(loader.dataset.index[start + 6]["offset"]))
        path, preadv = loader.dataset.shard_path(SHARD), os.preadv

        def broken(descriptor: int, buffers: list[memoryview], offset: int) -> int:
            here = os.path.samestat(os.fstat(descriptor), path.stat())
            if here and offset < spot.stop and offset + len(buffers[0]) > spot.start:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return preadv(descriptor, buffers, offset)

        monkeypatch.setattr(read_module.os, "preadv", broken)
        with pytest.raises(BadSampleBudgetError, match=r": 3 reads failed with EIO \(Input/output error\): the disk"):
            list(loader)
        assert loader.stats.failures == {"io-error": 3}
        assert stop - start > 3


def test_broken_images_are_not_blamed_on_the_disk(shards: Path) -> None:
    with Dataset.open(shards) as dataset:
        flip_bits(shards, dataset)
    with loading(shards, bad_budget=1) as loader, pytest.raises(BadSampleBudgetError) as raised:
        list(loader)
    assert "2 samples of epoch 0 failed, 1 are allowed (2 checksum); run `wv-ingest verify" in str(raised.value)
    assert "disk" not in str(raised.value)


def test_worker_processes_tell_of_the_disk_as_threads_do(shards: Path) -> None:
    with Dataset.open(shards) as dataset:
        lost = delete(shards, dataset)
    with loading(shards, processes=2) as loader:
        list(loader)
        assert loader.stats.io_errors == {(SHARD, errno.ENOENT): len(lost)}
        assert loader.stats.threads == {"plan": 1, "read": 2, "decode": 2, "deliver": 1}


# -- too many open files -------------------------------------------------------------------------------------------


@pytest.fixture
def many_shards(draw_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    return draw_dataset(tmp_path / "many", [120], shard_samples=1)


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Lets this process open so many files more than it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def set_limit(more: int) -> None:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, hard))

    yield set_limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_few_files_may_be_open_few_are_kept(many_shards: Path, limit: Callable[[int], None]) -> None:
    limit(40)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    with Dataset.open(many_shards) as dataset:
        before = len(os.listdir("/proc/self/fd"))
        for shard in range(120):
            with dataset.descriptor(shard):
                pass
        assert len(os.listdir("/proc/self/fd")) == before + min(120, most)
    assert most < 120


def test_too_many_open_files_are_not_bad_samples(many_shards: Path, limit: Callable[[int], None]) -> None:
    with loading(many_shards) as loader:
        sound = [batch.valid.sum().item() for batch in loader]
        loader.dataset.close()
        for shard in range(60):
            with loader.dataset.descriptor(shard):
                pass
        limit(0)
        held_open = fill()
        try:  # the other 60 can be opened only where these are closed
            loader.set_epoch(0)
            assert [batch.valid.sum().item() for batch in loader] == sound
            assert not loader.stats.failures
            loader.dataset.close()
            held_open += fill()
            loader.set_epoch(0)
            with pytest.raises(OpenFilesError, match=r"tar: can't be opened, as too many files are open .*ulimit -n"):
                list(loader)
        finally:
            for descriptor in held_open:
                os.close(descriptor)
        assert not loader.stats.failures
        loader.set_epoch(0)
        assert [batch.valid.sum().item() for batch in loader] == sound
    assert no_threads()


def fill() -> list[int]:
    """Open files until no more can be."""
    held: list[int] = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return held


# -- the budget ----------------------------------------------------------------------------------------------------


def faults(dataset: Dataset, budget: int | float | None) -> Faults:
    return Faults(dataset, LoaderStats(), budget=budget, quarantine=None)


def fail(account: Faults, shows: int, failed: int, reason: Failure = Failure.DECODE) -> None:
    account.account(0, 0, np.arange(shows), dict.fromkeys(range(failed), reason))


@pytest.mark.parametrize(("budget", "allowed"), [(0, 0), (3, 3), (0.2, 40), (0.01, 16), (0.0, 16), (1.0, 200)])
def test_a_budget_is_a_count_or_a_fraction_of_the_ranks_shows(
    small_dataset: Path, budget: int | float, allowed: int
) -> None:
    with Dataset.open(small_dataset) as dataset:
        account = faults(dataset, budget)
        account.begin(200, afresh=True)
        fail(account, 200, allowed)
        account.begin(200, afresh=False)  # after a pause in the same epoch: what failed before counts
        with pytest.raises(BadSampleBudgetError, match=f"{allowed + 1} samples of epoch 0 failed, {allowed} are"):
            fail(account, 10, 1)
        account.begin(200, afresh=True)  # another epoch
        fail(account, 200, allowed)


def test_what_was_known_to_be_bad_is_no_news(small_dataset: Path) -> None:
    with Dataset.open(small_dataset) as dataset:
        account = faults(dataset, 0)
        account.begin(200, afresh=True)
        fail(account, 200, 150, Failure.KNOWN_BAD)
        with pytest.raises(BadSampleBudgetError, match="1 samples"):
            fail(account, 10, 1)


def test_without_a_budget_nothing_stops(shards: Path) -> None:
    with loading(shards) as loader:
        for path in shards.glob("*.tar"):
            path.unlink()
        assert not any(batch.valid.any() for batch in loader)
        assert loader.stats.failures == {"io-error": loader.num_samples}


@pytest.mark.parametrize("budget", [-1, -0.1, 1.5])
def test_a_budget_that_cannot_be_is_refused(small_dataset: Path, budget: int | float) -> None:
    with pytest.raises(LoaderError, match=r"bad_budget: expected a count, a fraction from 0.0 to 1.0, or None, got"):
        loading(small_dataset, bad_budget=budget)


# -- quarantine ----------------------------------------------------------------------------------------------------


def test_a_sample_is_named_once_however_often_it_fails(shards: Path, tmp_path: Path) -> None:
    """Over epochs, ranks that share the file, and runs; also behind a line that a kill has cut off."""
    with Dataset.open(shards) as dataset:
        lost = flip_bits(shards, dataset) | truncate(shards, dataset)
    log = tmp_path / "quarantine.jsonl"
    with loading(shards, quarantine=log) as loader:
        assert not log.exists()
        list(loader)
    first = log.read_text()
    assert len(first.splitlines()) == len(lost)
    log.write_text("".join(first.splitlines(keepends=True)[:2]) + '{"key": "c0')
    ranks = [loading(shards, quarantine=log, rank=rank, world_size=2) for rank in range(2)]
    for epoch in range(3):
        for loader in ranks:
            loader.set_epoch(epoch)
            list(loader)
    for loader in ranks:
        loader.close()
    lines = log.read_text().splitlines()
    rows = [json.loads(line) for line in lines if line != '{"key": "c0']
    assert len(lines) == len(rows) + 1
    assert sorted(row["ordinal"] for row in rows) == sorted(lost)


def test_a_quarantine_that_cannot_be_written_is_refused_before_anything_is_read(
    small_dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(LoaderError, match="folder: expected a file for the quarantine log"):
        loading(small_dataset, quarantine=tmp_path / "folder")
    with pytest.raises(LoaderError, match="nowhere: expected a folder that is there"):
        loading(small_dataset, quarantine=tmp_path / "nowhere" / "log")
    with pytest.raises(LoaderError, match="/dev/full: expected a file"):
        loading(small_dataset, quarantine="/dev/full")
    with pytest.raises(LoaderError, match="/proc/log: the quarantine log can't be written: No such file"):
        loading(small_dataset, quarantine="/proc/log")
    Quarantine(tmp_path / "folder" / "new")
    assert not list((tmp_path / "folder").iterdir())
    (tmp_path / "folder" / "log").touch()
    (tmp_path / "folder" / "log").chmod(0o444)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(LoaderError, match="log: the quarantine log can't be written: Permission denied"):
            Quarantine(tmp_path / "folder" / "log")
    finally:
        os.seteuid(uid)


def test_a_full_disk_of_the_quarantine_stops_nothing_and_what_is_not_named_is_named_later(
    shards: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk."""
    with Dataset.open(shards) as dataset:
        lost = flip_bits(shards, dataset) | truncate(shards, dataset)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = tmp_path / "log"
    with loading(shards, quarantine=log) as loader:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            with pytest.warns(QuarantineWarning, match="log: the quarantine log can't be written: File too") as warned:
                list(loader)
            list(loader)  # warnings are errors: there is no second one
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
        assert len(warned) == 1
        assert loader.stats.failures.total() == 2 * len(lost)
        cut_off = len(log.read_bytes().splitlines())
        list(loader)
    rows = [json.loads(line) for line in log.read_text().splitlines()[cut_off:]]
    assert sorted(row["ordinal"] for row in rows) == sorted(lost)
    assert no_threads()


def test_a_folder_of_the_quarantine_that_goes_away_stops_nothing(shards: Path, tmp_path: Path) -> None:
    with Dataset.open(shards) as dataset:
        lost = flip_bits(shards, dataset)
    (tmp_path / "folder").mkdir()
    with loading(shards, quarantine=tmp_path / "folder" / "log", bad_budget=len(lost)) as loader:
        (tmp_path / "folder").rmdir()
        with pytest.warns(QuarantineWarning, match="can't be written: No such file or directory; failed samples"):
            list(loader)
        assert loader.stats.failures.total() == len(lost)
