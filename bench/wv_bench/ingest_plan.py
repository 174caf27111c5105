"""`wv-bench ingest-plan`: what planning costs at WebVision's size, with a synthetic file list of its skew.

No image is opened: it is the code of `build-shards` from the lists to plan.json, then the bytes of index per sample.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from wv_bench.measure import machine
from wv_ingest.build_options import BuildOptions
from wv_ingest.build_state import Identity, save_state
from wv_ingest.check import codecs
from wv_ingest.keys import key_of
from wv_ingest.lookup import Lookup
from wv_ingest.pack import PLAN_ROWS_FILE
from wv_ingest.plan import cut_shards, order_rows
from wv_ingest.sources import read_source
from wv_shards import INDEX_DTYPE, SAMPLES_SCHEMA

_SKEW = 1.1
"""Standard deviation of the logarithm of a class's size: from some ten images to some ten thousand."""
_QUERIES_PER_CLASS = 2.52
"""WebVision 2.0: 12,597 queries of 5,000 classes."""
_BYTES_PER_ROW = 30_000
_SAMPLE_ROWS = 1 << 17
"""Rows of the trial file from which the size of samples.parquet is estimated: one row group."""


@click.command("ingest-plan", epilog="Example: wv-bench ingest-plan --rows 16000000 --classes 5000")
@click.option("--rows", type=click.IntRange(1), default=16_000_000, show_default=True, help="Of the file lists.")
@click.option("--classes", type=click.IntRange(1), default=5000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(rows: int, classes: int, as_json: bool) -> None:
    """Time and peak memory of each stage of planning, and bytes of index per sample."""
    stages: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="wv-bench-") as folder:
        root, build_dir = Path(folder) / "raw", Path(folder) / "build"
        build_dir.mkdir()
        _draw_lists(root, rows, classes)
        options = BuildOptions()
        with _measured(stages, "read the lists"):
            source = read_source(root, options.source)
        with _measured(stages, "digest of the rows"):
            deciding = options.deciding(source)
        with _measured(stages, "order the rows"):
            order = order_rows(source, options.seed)
        with _measured(stages, "cut the shards"):
            shards = cut_shards(order.bands, _BYTES_PER_ROW, options.shard_mb * 1_000_000)
        identity = Identity(seed=options.seed, split="train", options=deciding, codecs=codecs())
        with _measured(stages, "write the plan"):
            save_state(build_dir, identity, None, source, order, shards, _BYTES_PER_ROW, Lookup())
        sizes = source.class_rows()
        result = {
            "machine": machine(),
            "rows": source.rows.num_rows,
            "classes": {"count": classes, "min": int(sizes.min()), "max": int(sizes.max())},
            "shards": len(shards),
            "stages": {name: {"seconds": s, "peak_mb": mb} for name, (s, mb) in stages.items()},
            "seconds": sum(s for s, _ in stages.values()),
            "peak_mb": max(mb for _, mb in stages.values()),
            "plan_bytes_per_row": (build_dir / PLAN_ROWS_FILE).stat().st_size / rows,
            "index_bytes_per_sample": INDEX_DTYPE.itemsize,
            "samples_parquet_bytes_per_sample": _parquet_bytes(build_dir, Path(folder) / "samples.parquet"),
        }
    if as_json:
        print(json.dumps(result))
    else:
        _print(result)


def _draw_lists(root: Path, rows: int, classes: int) -> None:
    """info/ of a WebVision 2.0 root: two file lists by query, and the classes' names."""
    random = np.random.default_rng(0)
    weights = np.exp(random.normal(0, _SKEW, classes))
    labels = np.repeat(np.arange(classes), random.multinomial(rows, weights / weights.sum()))  # (rows,)
    query = (labels * _QUERIES_PER_CLASS).astype(np.int64) + random.integers(0, 2, rows) + 1  # (rows,)
    names = random.integers(0, 2**63, rows, dtype=np.int64)
    info = root / "info"
    info.mkdir(parents=True)
    (info / "synsets.txt").write_text("".join(f"n{i:08d} thing {i}\n" for i in range(classes)))
    for number, origin in enumerate(("google", "flickr")):
        triples = zip(query[number::2].tolist(), names[number::2].tolist(), labels[number::2].tolist(), strict=True)
        with open(info / f"train_filelist_{origin}.txt", "w", encoding="ascii") as file:
            while lines := [f"{origin}/q{q:05d}/{n:016x}.jpg {c}\n" for q, n, c in islice(triples, 1 << 16)]:
                file.writelines(lines)


@contextmanager
def _measured(stages: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    """Note the seconds of a stage and the peak of this process's memory within it, in million bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    stages[name] = (seconds, int(status["VmHWM"].split()[0]) * 1024 / 1e6)


def _parquet_bytes(build_dir: Path, path: Path) -> float:
    """Bytes of samples.parquet per sample without metadata: the plan's first rows with drawn sizes and hashes."""
    with pa.memory_map(str(build_dir / PLAN_ROWS_FILE)) as file:
        rows = pa.ipc.open_file(file).read_all().slice(0, _SAMPLE_ROWS)
        paths = rows.column("path").to_pylist()
        columns = {
            name: rows.column(name).cast(SAMPLES_SCHEMA.field(name).type) for name in ("source", "query", "label")
        }
        random = np.random.default_rng(0)
        drawn = {
            field.name: random.integers(256, 500, len(paths))
            if field.name in ("width", "height")
            else random.integers(5_000, 60_000, len(paths))
            if field.name == "bytes"
            else random.integers(0, 2**63, len(paths))
            for field in SAMPLES_SCHEMA
            if field.name not in ("key", "path", *columns)
        }
        columns |= {"key": [key_of(path) for path in paths], "path": [path.decode() for path in paths], **drawn}
        table = pa.table({name: columns[name] for name in SAMPLES_SCHEMA.names}, schema=SAMPLES_SCHEMA)
        pq.write_table(table, path, compression="zstd")
    return path.stat().st_size / len(paths)


def _print(result: dict[str, object]) -> None:
    stages = result["stages"]
    assert isinstance(stages, dict)
    table = Table(title=f"planning {result['rows']:,} rows, {result['shards']:,} shards; classes {result['classes']}")
    for heading in ("stage", "seconds", "peak memory, MB"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, stage in stages.items():
        table.add_row(name, f"{stage['seconds']:.1f}", f"{stage['peak_mb']:,.0f}")
    table.add_row("all", f"{result['seconds']:.1f}", f"{result['peak_mb']:,.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"bytes a sample: index.npy {result['index_bytes_per_sample']}, samples.parquet about "
        f"{result['samples_parquet_bytes_per_sample']:.0f} without metadata; the plan's rows "
        f"{result['plan_bytes_per_row']:.0f} while building",
        highlight=False,
    )
    about = result["machine"]
    assert isinstance(about, dict)
    console.print(f"{about['processor']}, {about['cores']} cores, Python {about['python']}", highlight=False)
    console.print(about["command"], highlight=False)
