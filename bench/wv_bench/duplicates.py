"""`wv-bench duplicates`: what the search for duplicates costs at full size, and whether it misses any.

Hashes are drawn, classes skewed as the web's, with exact copies, near copies and crowds of lookalikes among them. A
subsample is searched by comparing each with each, which is the peer: its time, extended to all pairs, is the ratio's
other side.
"""

import json
import resource
import time
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from wv_bench.measure import machine
from wv_ingest.duplicates import NEAR_DISTANCE, Bools, DuplicateOptions, Hashes, Ints, find_duplicates
from wv_ingest.near_search import near_pairs

_EXACT, _NEAR, _CONFLICT = 0.03, 0.05, 0.01
"""Shares of the samples that are copies: of the same class twice, of another class."""
_CROWDS, _CROWD = 20, 2_000
"""So many crowds of so many lookalikes each, as placeholder pictures and charts are."""
_BLOCK = 2_000


@click.command("duplicates")
@click.option("--samples", type=click.IntRange(1000), default=1_000_000, show_default=True, help="How many.")
@click.option("--classes", type=click.IntRange(1), default=5000, show_default=True, help="Of them.")
@click.option("--near-distance", type=click.IntRange(0, 12), default=NEAR_DISTANCE, show_default=True)
@click.option("--check", type=click.IntRange(100), default=40_000, show_default=True, help="Hashes searched both ways.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of a table.")
def command(samples: int, classes: int, near_distance: int, check: int, seed: int, as_json: bool) -> None:
    """Find the duplicates among drawn hashes: time, peak memory, copies found, recall against comparing all pairs.

    \b
    Example:
      wv-bench duplicates --samples 16000000
    """
    rng = np.random.default_rng(seed)
    hashes, planted, crowded = _draw(rng, samples, classes, near_distance)
    drawn_mb = _peak_mb()
    started = time.perf_counter()
    found = find_duplicates(
        hashes, lambda asked: asked.argsort().argsort(), DuplicateOptions(near_distance=near_distance)
    )
    seconds = time.perf_counter() - started
    copies = np.zeros(samples, dtype=bool)
    copies[found.ordinal] = True
    copies[found.first] = True
    result: dict[str, Any] = {
        "machine": machine(("numpy",)),
        "samples": samples,
        "seconds": round(seconds, 2),
        "peak_mb": round(_peak_mb()),
        "peak_mb_before_the_search": round(drawn_mb),
        "exact": int((found.exact & found.same_class).sum()),
        "near": int((~found.exact & found.same_class).sum()),
        "conflicts": int((~found.same_class).sum()),
        "cut_short": found.cut_short,
        "planted_found": {name: round(float(copies[where].mean()), 6) for name, where in planted.items()},
        **_against_all_pairs(hashes, crowded, rng, check, near_distance, seconds),
    }
    if as_json:
        print(json.dumps(result))
    else:
        _print(result)


def _draw(rng: np.random.Generator, samples: int, classes: int, distance: int) -> tuple[Hashes, dict[str, Ints], Bools]:
    """Hashes, the ordinals of the copies that were planted, by kind, and (samples,) who is in a crowd."""
    weights = 1 / np.arange(1, classes + 1) ** 0.5
    labels = rng.choice(classes, samples, p=weights / weights.sum()).astype(np.int32)
    content, coarse, fine = (rng.integers(0, 2**64, samples, dtype=np.uint64) for _ in range(3))
    order = rng.permutation(samples)
    originals, order = order[: samples // 2], order[samples // 2 :]
    planted, at = {}, 0
    for name, share, bits in (
        ("exact", _EXACT, 0),
        ("near", _NEAR, distance),
        ("in conflict", _CONFLICT, distance // 2),
    ):
        copies = order[at : at + int(share * samples)]
        at += len(copies)
        of = rng.choice(originals, len(copies), replace=False)
        coarse[copies] = coarse[of] ^ _flips(rng, len(copies), bits)
        fine[copies] = fine[of] ^ _flips(rng, len(copies), 2 * bits)
        if name == "exact":
            content[copies] = content[of]
        if name != "in conflict":
            labels[copies] = labels[of]
        planted[name] = copies
    crowded = np.zeros(samples, dtype=bool)
    for _ in range(_CROWDS if samples >= 20 * _CROWDS * _CROWD else 0):
        crowd = order[at : at + _CROWD]
        at += _CROWD
        crowded[crowd] = True
        labels[crowd] = labels[crowd[0]]
        coarse[crowd] = coarse[crowd[0]] ^ _flips(rng, _CROWD, distance // 2)
        fine[crowd] = fine[crowd[0]] ^ _flips(rng, _CROWD, distance)
    hashed = rng.random(samples) < 0.999
    return Hashes(labels=labels, content=content, coarse=coarse, fine=fine, hashed=hashed), planted, crowded


def _flips(rng: np.random.Generator, count: int, bits: int) -> np.ndarray:
    """(count,) integers with at most so many bits set."""
    flips = np.zeros(count, dtype=np.uint64)
    for _ in range(bits):
        flips ^= np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
    return flips


def _against_all_pairs(
    hashes: Hashes, crowded: Bools, rng: np.random.Generator, check: int, distance: int, seconds: float
) -> dict[str, Any]:
    """Some hashes of whole classes, compared each with each: what the search misses of it, and what it would cost."""
    samples = len(hashes.labels)
    label_order = np.argsort(hashes.labels, kind="stable")
    label_order = label_order[~crowded[label_order]]  # what the bounds leave out there is counted elsewhere
    start = int(rng.integers(0, max(1, len(label_order) - check)))
    some = np.sort(label_order[start : start + check])
    coarse, fine = hashes.coarse[some], hashes.fine[some]
    started = time.perf_counter()
    expected = []
    for at in range(0, len(some), _BLOCK):
        block = slice(at, at + _BLOCK)
        near = np.bitwise_count(coarse[block, None] ^ coarse[None, at:]) <= distance  # (block, rest)
        rows, columns = np.nonzero(near)
        apart = np.bitwise_count(fine[at + rows] ^ fine[at + columns])
        real = (apart <= 2 * distance) & (columns > rows)
        expected.append(np.stack([at + rows[real], at + columns[real]], axis=1))
    pairwise_s = time.perf_counter() - started
    wanted = {tuple(pair) for pair in np.concatenate(expected).tolist()}
    found = {tuple(pair) for pair in near_pairs(coarse, fine, distance).pairs.tolist()}
    all_pairs_s = pairwise_s * (samples / len(some)) ** 2
    return {
        "checked": len(some),
        "pairs_there": len(wanted),
        "recall": round(len(wanted & found) / max(1, len(wanted)), 6),
        "wrong": len(found - wanted),
        "all_pairs_s": round(all_pairs_s),
        "ratio_to_all_pairs": round(all_pairs_s / seconds, 1),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _print(result: dict[str, Any]) -> None:
    table = Table(title=f"duplicates among {result['samples']:,} hashes", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    planted = ", ".join(f"{name} {share:.2%}" for name, share in result["planted_found"].items())
    for name, value in (
        ("seconds", f"{result['seconds']:,.1f}"),
        ("peak memory", f"{result['peak_mb']:,} MB, {result['peak_mb_before_the_search']:,} of it to draw"),
        ("copies within a class: same file / same picture", f"{result['exact']:,} / {result['near']:,}"),
        ("also in another class", f"{result['conflicts']:,}"),
        ("of the planted copies found", planted),
        ("cut short in crowds", f"{result['cut_short']:,}"),
        (f"pairs among {result['checked']:,} hashes, by comparing all", f"{result['pairs_there']:,}"),
        ("of them found / wrong ones", f"{result['recall']:.4%} / {result['wrong']:,}"),
        (
            "comparing all pairs would take",
            f"{result['all_pairs_s']:,} s, {result['ratio_to_all_pairs']:,} times as long",
        ),
    ):
        table.add_row(name, value)
    console = Console()
    console.print(table)
    about = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    console.print(
        f"{about['processor']}, {about['cores']} cores, Python {about['python']}, {versions}", highlight=False
    )
    console.print(about["command"], highlight=False)
