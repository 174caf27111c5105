"""The shards of a plan as jobs: cut by a trial, packed by workers, counted against the limit of rejects.

It decides no order and no plan; `build` and `append` bring them.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wv_ingest.build_options import BuildOptions
from wv_ingest.build_state import BuildState
from wv_ingest.check import Reason
from wv_ingest.errors import BuildError, NothingReadableError
from wv_ingest.lookup import Lookup
from wv_ingest.outcomes import ShardSummary, read_summary
from wv_ingest.pack import Packer, TrialJob, outcomes_path
from wv_ingest.plan import PlannedShard, RowOrder, cut_shards
from wv_ingest.progress import Progress
from wv_ingest.ray_pool import AnyPool, RayPool
from wv_ingest.sources import Source
from wv_shards import PART_FILE, ShardInfo

_TRIAL_CHUNK = 8


def packer(source: Source, build_dir: Path, options: BuildOptions) -> Packer:
    """What the workers do with the source's files."""
    return Packer(source.root.resolve(), build_dir, options.check, tuple(tar.resolve() for tar in source.tars))


def cut(
    source: Source,
    order: RowOrder,
    lookup: Lookup,
    options: BuildOptions,
    pool: AnyPool,
    before: Sequence[ShardInfo] = (),
) -> tuple[list[PlannedShard], int]:
    """Shards and the mean bytes of a row, learnt by packing some rows in trial; `before` as in `cut_shards`."""
    paths = source.rows.column("path").take(order.trial).to_pylist()
    found = [(-1, 0, 0)] * len(paths) if lookup.places is None else lookup.places[order.trial].tolist()
    places = [None if place[0] < 0 else place for place in found]
    starts = range(0, len(paths), _TRIAL_CHUNK)
    jobs = [
        TrialJob(paths=tuple(paths[i : i + _TRIAL_CHUNK]), places=tuple(places[i : i + _TRIAL_CHUNK])) for i in starts
    ]
    weights = [weight for weights in pool.run(jobs) for weight in weights]
    bytes_per_row = max(1, sum(weights) // max(1, len(weights)))
    return cut_shards(order.bands, bytes_per_row, options.shard_mb * 1_000_000, before), bytes_per_row


def own_shards(state: BuildState, options: BuildOptions) -> list[PlannedShard]:
    """The shards to pack here."""
    return state.shards if options.part is None else options.part.share(state.shards)


def pack_shards(
    out: Path,
    build_dir: Path,
    state: BuildState,
    options: BuildOptions,
    pool: AnyPool,
    progress: Progress,
    *,
    before: Counter[str] | None = None,
    rows_before: int = 0,
) -> tuple[int, Counter[str]]:
    """Have all shards packed that are not; returns how many rows that were, and all rejects by reason.

    Args:
        before: rejects that count for the limit too, of `rows_before` rows that are done.
    """
    before = before or Counter()
    whole = options.part is None
    shards = own_shards(state, options)
    rejects = Counter({Reason.REPEATED_ROW.value: state.repeated, **state.unlabelled} if whole else {})
    wanted = sum(shard.stop - shard.start for shard in shards) + rejects.total()
    todo, done_rows = [], rejects.total()
    for shard in shards:
        summary = finished(out, build_dir, shard)
        if summary is None:
            todo.append(shard)
        else:
            rejects.update(summary.rejects)
            done_rows += summary.rows
    if todo:
        (build_dir / PART_FILE).unlink(missing_ok=True)
    done_rejects = rejects.total()
    check_rejects(rejects + before, wanted + rows_before, options.max_reject_fraction, whole=whole)
    progress.start(total_rows=wanted, done_rows=done_rows, done_rejects=done_rejects, counters=pool.counters)
    # The largest first: the last ones to finish are then small. The order of work decides no byte.
    for summary in pool.run(sorted(todo, key=lambda s: s.start - s.stop), progress.tick):
        rejects.update(summary.rejects)
        check_rejects(rejects + before, wanted + rows_before, options.max_reject_fraction, whole=whole)
    progress.stop()
    if isinstance(pool, RayPool) and pool.lost:
        progress.warn(f"{pool.lost} actors of the Ray cluster died; others did their shards")
    return wanted - done_rows, rejects


def finished(out: Path, build_dir: Path, shard: PlannedShard) -> ShardSummary | None:
    """The shard's summary, if its outcomes are noted and its tar is whole, here or already in its place."""
    try:
        summary = read_summary(outcomes_path(build_dir, shard))
    except (OSError, ValueError):
        return None
    if summary.info is None:
        return summary
    for folder in (build_dir, out):
        tar = folder / f"{shard.name}.tar"
        if tar.is_file() and tar.stat().st_size == summary.info.bytes and tar.with_suffix(".idx").is_file():
            return summary
    return None


def check_rejects(rejects: Counter[str], rows: int, max_reject_fraction: float, *, whole: bool) -> None:
    """Stop a build that rejects too much.

    Raises:
        BuildError: more than the fraction of the rows are rejected.
        NothingReadableError: all are, and they are the `whole` source.
    """
    count = rejects.total()
    counts = ", ".join(f"{reason} {n}" for reason, n in sorted(rejects.items()) if n)
    if count > max_reject_fraction * rows:
        raise BuildError(
            f"{count} of {rows} rows rejected so far, more than --max-reject-fraction {max_reject_fraction:g} "
            f"({counts}); repair the source and build into a new folder, or run again with a higher fraction"
        )
    if whole and count == rows:
        raise NothingReadableError(f"no readable image in {rows} rows ({counts}); is this the right folder?")
