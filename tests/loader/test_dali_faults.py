"""Files that DALI does not take: they cost their slots, or nothing where another decoder takes them; never a batch."""

import io
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wv_loader import BadSampleBudgetError, Batch, DaliOptions, Failure, Loader, LoaderError, dali_flight
from wv_shards import Dataset, checksum

pytestmark = pytest.mark.usefixtures("dali")
BATCHES, BATCH = 10, 24
TORN, ODD = (5, 70, 71, 130, 200), (9, 72, 180)


@pytest.fixture
def shards(small_dataset: Path, tmp_path: Path) -> Path:
    """A copy whose files may be replaced."""
    return Path(shutil.copytree(small_dataset, tmp_path / "shards"))


@pytest.fixture
def mends(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Ordinals of the batches that DALI failed on."""
    found: list[list[int]] = []
    mend = dali_flight.Flight._mend

    def noted(flight: Any, ticket: Any, error: Exception) -> torch.Tensor | None:
        found.append(ticket.job.ordinals.tolist())
        return mend(flight, ticket, error)

    monkeypatch.setattr(dali_flight.Flight, "_mend", noted)
    return found


def loading(directory: Path, **options: object) -> Loader:
    asked = {"batch_size": BATCH, "size_px": 16, "seed": 3, "threads": 2, "bad_budget": None, "engine": "dali-cpu"}
    return Loader(directory, **{**asked, **options})  # type: ignore[arg-type]


def torn(file: bytes) -> bytes:
    """Its header is that of a plain JPEG, but no decoder takes it: its Huffman tables are nonsense."""
    start = file.index(b"\xff\xc4") + 5
    return file[:start] + b"\xff" * 16 + file[start + 16 :]


def claims(file: bytes, width: int, height: int) -> bytes:
    """Its header claims another size."""
    start = file.index(b"\xff\xc0") + 5
    return file[:start] + struct.pack(">HH", height, width) + file[start + 4 :]


def drawn(file_format: str, _: bytes = b"") -> bytes:
    """A picture of another format, in a few bytes; what follows in its slot is not looked at."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), (200, 30, 60)).save(buffer, file_format)
    return buffer.getvalue()


def replace_files(directory: Path, changes: Mapping[int, Callable[[bytes], bytes]]) -> None:
    """As in shards that somebody else wrote: the index fits the bytes, and knows of nothing bad."""
    index = np.load(directory / "index.npy")
    with Dataset.open(directory) as dataset:
        for ordinal, change in changes.items():
            path = dataset.shard_path(int(dataset.shard_of(ordinal)))
            data = bytearray(path.read_bytes())
            start, size = int(index[ordinal]["offset"]), int(index[ordinal]["size"])
            file = change(bytes(data[start : start + size]))
            assert len(file) <= size
            data[start : start + size] = file.ljust(size, b"\0")
            path.write_bytes(data)
            index[ordinal]["checksum"] = checksum(bytes(data[start : start + size]))
    np.save(directory / "index.npy", index)


def joined(directory: Path, ranks: int, epochs: int = 2, **options: object) -> list[Batch]:
    """Global batches of some epochs."""
    parts = []
    for rank in range(ranks):
        with loading(directory, rank=rank, world_size=ranks, **options) as loader:
            parts.append([batch for _ in range(epochs) for batch in loader])
    names = ("images", "labels", "ordinals", "valid")
    return [
        Batch(**{n: torch.cat([getattr(part, n) for part in each]) for n in names}, index=each[0].index)
        for each in zip(*parts, strict=True)
    ]


def assert_masked(damaged: list[Batch], sound: list[Batch], lost: set[int], other: set[int]) -> None:
    """Exactly these are masked, and black; others than `other` are what they were, bit for bit."""
    masked = set()
    for bad, good in zip(damaged, sound, strict=True):
        assert torch.equal(bad.ordinals, good.ordinals)
        assert torch.equal(bad.labels, good.labels)
        masked |= set(bad.ordinals[good.valid & ~bad.valid].tolist())
        gone = torch.isin(bad.ordinals, torch.tensor(sorted(lost), dtype=torch.int64))
        assert torch.equal(bad.valid, good.valid & ~gone)
        assert not bad.images[~bad.valid].any()
        as_before = bad.valid & ~torch.isin(bad.ordinals, torch.tensor(sorted(other), dtype=torch.int64))
        assert torch.equal(bad.images[as_before], good.images[as_before])
        assert not (bad.images[bad.valid & ~as_before] - torch.tensor([200, 30, 60]).view(3, 1, 1)).any()
    assert masked == lost


@pytest.mark.parametrize(("prefetch", "ranks"), [(1, 1), (2, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("balance", [1.0, 0.0])
def test_what_no_decoder_takes_costs_its_slots_and_one_mend_each(
    small_dataset: Path,
    shards: Path,
    tmp_path: Path,
    reseal: Callable[[Path], None],
    mends: list[list[int]],
    prefetch: int,
    ranks: int,
    balance: float,
) -> None:
    """With balance 0 a culprit may be in several batches that are under way at once."""
    replace_files(shards, dict.fromkeys(TORN, torn))
    reseal(shards)
    log = tmp_path / "log"
    options = {"dali": DaliOptions(prefetch=prefetch), "prefetch": 4, "balance": balance}
    sound = joined(small_dataset, ranks, **options)
    assert not mends
    lost = set(TORN) & {ordinal for batch in sound for ordinal in batch.ordinals.tolist()}
    damaged = joined(shards, ranks, quarantine=log, **options)
    assert_masked(damaged, sound, lost, set())
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(row["ordinal"], row["reason"]) for row in rows} == {(o, "decode") for o in lost}
    assert len(lost) > 2
    if ranks == 1:
        blamed = [set(ordinals) & lost for ordinals in mends]
        assert all(blamed)
        assert sum(map(len, blamed)) == len(lost)  # none twice


@pytest.mark.parametrize("prefetch", [1, 3])
def test_what_dali_refuses_and_another_decoder_takes_costs_nothing(
    small_dataset: Path,
    shards: Path,
    reseal: Callable[[Path], None],
    mends: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    prefetch: int,
) -> None:
    """No JPEG with a plain header was found that is so; files of another format are, if they are taken for plain."""
    replace_files(shards, {ordinal: lambda _: drawn("PCX") for ordinal in ODD})
    reseal(shards)
    options = {"dali": DaliOptions(prefetch=prefetch), "prefetch": 4}
    sound = joined(small_dataset, 1, **options)
    monkeypatch.setattr(dali_flight, "plain_jpeg", lambda _: (24, 20))
    damaged = joined(shards, 1, bad_budget=0, **options)
    assert_masked(damaged, sound, set(), set(ODD))
    assert 1 <= len(mends) <= len(ODD)
    assert {o for ordinals in mends for o in ordinals} >= set(ODD)


@pytest.mark.parametrize("file_format", ["GIF", "PNG"])
def test_batches_without_any_jpeg(
    small_dataset: Path, shards: Path, reseal: Callable[[Path], None], mends: list[list[int]], file_format: str
) -> None:
    others = range(BATCH // 2, 3 * BATCH + 5)  # in evaluation a part of a batch, two whole ones, and a part
    replace_files(shards, {ordinal: lambda _: drawn(file_format) for ordinal in others})
    reseal(shards)
    sound = joined(small_dataset, 1, epochs=1, train=False)
    damaged = joined(shards, 1, epochs=1, train=False, bad_budget=0)
    assert_masked(damaged, sound, set(), set(others))
    assert not mends


def test_batches_without_any_image(
    small_dataset: Path, shards: Path, reseal: Callable[[Path], None], mends: list[list[int]]
) -> None:
    """Whole batches of files that only look like JPEGs, one behind the other, and of zeros."""
    bad = range(BATCH, 5 * BATCH)
    replace_files(shards, {o: torn if o < 4 * BATCH else lambda _: b"" for o in bad})
    reseal(shards)
    sound = joined(small_dataset, 1, epochs=2, train=False)
    assert_masked(joined(shards, 1, epochs=2, train=False), sound, set(bad), set())
    assert len(mends) == 3


def test_the_budget_counts_what_dali_does_not_take(shards: Path, reseal: Callable[[Path], None]) -> None:
    replace_files(shards, dict.fromkeys(TORN, torn))
    reseal(shards)
    with loading(shards, bad_budget=len(TORN)) as loader:
        list(loader)
        assert loader.stats.failures == {Failure.DECODE: len(TORN)}
    with loading(shards, bad_budget=len(TORN) - 1) as loader:
        with pytest.raises(BadSampleBudgetError, match="5 samples of epoch 0 failed, 4 are allowed"):
            list(loader)
        loader.set_epoch(1)
        assert next(iter(loader)).index == 0  # another loop finds the pipeline in order


# -- DALI itself does not go on ----------------------------------------------------------------------------------------


class Broken:
    """A pipeline that takes batches and gives none."""

    def submit(self, *_: object) -> None:
        pass

    def collect(self) -> torch.Tensor:
        raise RuntimeError(
            "Critical error in pipeline:\nthe operator is on fire\nCurrent pipeline object is no longer valid."
        )


def test_dali_that_fails_without_a_culprit_is_an_error_of_one_line(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, mends: list[list[int]]
) -> None:
    from wv_loader import decode_dali

    open_pipeline, broken = decode_dali.open_pipeline, [True]
    monkeypatch.setattr(
        decode_dali, "open_pipeline", lambda *args, **options: Broken() if broken else open_pipeline(*args, **options)
    )
    with loading(small_dataset) as loader:
        with pytest.raises(LoaderError, match=r"failed on 3 batches in a row.* take engine .*on fire") as raised:
            list(loader)
        assert "\n" not in str(raised.value)
        assert raised.value.__notes__ == ["in batch 2 of the loader"]
        assert len(mends) == 3
        broken.clear()
        assert [batch.index for batch in loader] == list(range(2, BATCHES))


class Stumbling:
    """A pipeline that fails on every third batch."""

    collected = 0

    def __init__(self, pipeline: Any) -> None:
        self.submit = pipeline.submit
        self._pipeline = pipeline

    def collect(self) -> torch.Tensor:
        Stumbling.collected += 1
        if Stumbling.collected % 3 == 0:
            raise RuntimeError("stumbled")
        return torch.as_tensor(self._pipeline.collect())


def test_failures_without_a_culprit_that_are_not_in_a_row_cost_nothing(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, mends: list[list[int]]
) -> None:
    from wv_loader import decode_dali

    with loading(small_dataset, train=False) as loader:
        sound = list(loader)
    open_pipeline = decode_dali.open_pipeline
    monkeypatch.setattr(
        decode_dali, "open_pipeline", lambda *args, **options: Stumbling(open_pipeline(*args, **options))
    )
    with loading(small_dataset, train=False, dali=DaliOptions(prefetch=3)) as loader:
        got = [batch for _ in range(2) for batch in loader]
    assert len(mends) > 3
    failed = {tuple(ordinals) for ordinals in mends}
    for batch, good in zip(got, [*sound, *sound], strict=True):
        assert torch.equal(batch.valid, good.valid)
        if tuple(batch.ordinals.tolist()) in failed:  # by the engine for the CPU
            assert (batch.images.float() - good.images.float()).abs().mean() < 5
        else:
            assert torch.equal(batch.images, good.images)


@pytest.mark.parametrize("when", [1, 2])
def test_a_pipeline_that_cannot_be_built_is_an_error_of_one_line(
    shards: Path, monkeypatch: pytest.MonkeyPatch, reseal: Callable[[Path], None], when: int
) -> None:
    """The first, or that which is built after a file has broken the first."""
    from wv_loader import decode_dali

    replace_files(shards, {30: torn})
    reseal(shards)
    real, built = decode_dali.DaliPipeline, []

    def build(*arguments: Any, **options: Any) -> Any:
        built.append(1)
        if len(built) == when:
            raise RuntimeError("Traceback of a graph\nno memory left")
        return real(*arguments, **options)

    monkeypatch.setattr(decode_dali, "DaliPipeline", build)
    with loading(shards, train=False, dali=DaliOptions(prefetch=3)) as loader:
        with pytest.raises(
            LoaderError, match="engine dali-cpu: DALI builds no pipeline here: no memory left"
        ) as raised:
            list(loader)
        assert "\n" not in str(raised.value)
        assert raised.value.__notes__ == [f"in batch {when - 1} of the loader"]
        assert [batch.index for batch in loader] == list(range(when - 1, BATCHES))
        assert len(built) == 3  # of which one failed, and one was broken by the file


def test_an_error_in_the_midst_of_feeding_leaves_no_half_a_batch(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loading(small_dataset) as loader:
        sound = list(loader)
        loader.set_epoch(0)
        with monkeypatch.context() as patch:
            patch.setattr(dali_flight, "windows_of", lambda *_, **__: object())
            with pytest.raises(AttributeError):
                list(loader)
        got = list(loader)
    assert all(torch.equal(batch.images, good.images) for batch, good in zip(got, sound, strict=True))


# -- bombs -------------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from wv_loader import Loader

masked, refused = [], []
with Loader(sys.argv[1], batch_size=24, size_px=16, train=False, threads=2, bad_budget=None, engine="dali-cpu",
            read_ahead_bytes=1 << 20) as loader:
    for batch in loader:
        masked += batch.ordinals[~batch.valid & (batch.ordinals >= 0)].tolist()
    refused = sorted(loader._supply._dali.refused)
print(masked, refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
PIXELS_BYTES = 30_000 * 30_000


def test_bombs_are_masked_and_take_no_memory(shards: Path, small_dataset: Path, reseal: Callable[[Path], None]) -> None:
    """The index knows the size that one of them claims: the engine for the CPU may decode a part of it."""
    sizes = {7: (65_000, 65_000), 40: (30_000, 30_000), 41: (65_000, 65_000), 100: (30_000, 30_000)}
    replace_files(shards, {o: lambda file, size=size: claims(file, *size) for o, size in sizes.items()})
    index = np.load(shards / "index.npy")
    index[40]["width"], index[40]["height"] = sizes[40]
    np.save(shards / "index.npy", index)
    reseal(shards)
    peaks = []
    for directory, lost in ((small_dataset, []), (shards, [7, 41, 100])):
        command = [sys.executable, "-c", LIMITED, str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        said, _, peak = done.stdout.strip().rpartition(" ")
        masked, refused = json.loads(f"[{said.replace('] [', '], [')}]")
        assert set(lost) <= set(masked) <= set(sizes)
        assert not refused
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 50_000_000 < PIXELS_BYTES
