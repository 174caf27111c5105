"""Weighted ensembles against the best of their members, by `wv-eval`: of a method's seeds, and of three methods.

The weights are fitted on one half of the test set, chosen by a hash of the keys, and everything is judged on the other
half (docs/evaluation.md): no image is used for both.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wv_bench.methods_data import DataSet, is_skewed
from wv_bench.methods_plan import Run
from wv_bench.stage_process import last_line
from wv_shards import write_atomic

MEMBERS = 3
"""Runs of an ensemble."""
MIXED = {False: ("sce_then_gate", "sce", "mixup_then_gate"), True: ("balanced", "balanced_gate", "adjusted_gate")}
"""Methods of which one run each makes an ensemble too, on balanced sets and on skewed ones."""
_WEIGHTS = ("model", "ema")


def ensembles_of(runs: Sequence[Run], best_gate: str) -> list[list[Run]]:
    """For each set and regime the first seeds of plain training and of the best gate, and a run of each of MIXED."""
    seeds: dict[tuple[str, str, str], list[Run]] = {}
    mixed: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        if not run.result_file.exists():
            continue
        skewed = is_skewed(run.data)
        if run.label in ("ce", best_gate, *(("balanced_gate",) if skewed else ())):
            seeds.setdefault((run.data, run.regime.name, run.label), []).append(run)
        if run.label in MIXED[skewed]:
            mixed.setdefault((run.data, run.regime.name, run.seed), []).append(run)
    first = {group[:2]: members for group, members in reversed(mixed.items()) if len(members) == MEMBERS}
    return [members[:MEMBERS] for members in seeds.values() if len(members) >= MEMBERS] + list(first.values())


def read_ensembles(out: Path, groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """Those that were judged."""
    files = [_file(out, members, weights) for members in groups for weights in _WEIGHTS]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def ensemble_line(one: Mapping[str, Any]) -> str:
    """What came of one, for a person."""
    weights = ", ".join(f"{weight:.2f}" for weight in one["fitted_weights"])
    name = f"{one['set']} {one['regime']} {one['label']}, {one['weights']}"
    others = f"equal weights {one['equal']:.1%}, best member {max(one['members']):.1%}"
    return (
        f"{name}: ensemble of {len(one['members'])}, weights {weights}: top-1 {one['fitted']:.1%} ({others}), on "
        f"{one['samples']:,} images that nothing was fitted on"
    )


def judge_ensembles(
    out: Path,
    groups: Sequence[Sequence[Run]],
    sets: Mapping[tuple[str, str], DataSet],
    say: Callable[[str], None],
) -> None:
    """Judge those that were not yet; one that fails is named and stops no other."""
    for members in groups:
        for weights in _WEIGHTS:
            file = _file(out, members, weights)
            if file.exists():
                continue
            first = members[0]
            figures = file.with_suffix(".eval.json")
            file.parent.mkdir(parents=True, exist_ok=True)
            words = [word for run in members for word in ("--ensemble", str(run.folder / "train"))]
            words += ["--fit-weights", "--weights", weights, "--json", str(figures), "--device", first.setting.device]
            words += ["--shards", str(sets[first.data, first.regime.name].test), "--loader-threads", "1"]
            done = subprocess.run(  # noqa: S603 - our own command
                [sys.executable, "-m", "wv_train.cli_eval", *words], capture_output=True, text=True, check=False
            )
            if done.returncode:
                told = last_line(done.stderr, f"ended with {done.returncode}")
                say(f"ensemble of {first.data} {first.regime.name} {_label(members)}: FAILED: {told}")
                continue
            found = json.loads(figures.read_text())
            document = {
                "set": first.data,
                "regime": first.regime.name,
                "label": _label(members),
                "weights": weights,
                "seeds": [run.seed for run in members],
                "fitted": found["top1"],
                "fitted_weights": [one["weight"] for one in found["members"]],
                "equal": next(one["top1"] for one in found["mixtures"] if one["weights_from"] == "equal"),
                "members": [one["top1"] for one in found["members"]],
                "samples": found["samples"],
            }
            write_atomic(file, (json.dumps(document, indent=1) + "\n").encode())


def _label(members: Sequence[Run]) -> str:
    return ", ".join(dict.fromkeys(run.label for run in members))


def _file(out: Path, members: Sequence[Run], weights: str) -> Path:
    first, key = members[0], ",".join(run.digest for run in members)
    label = _label(members).replace(", ", "+")
    name = f"{first.data}.{first.regime.name}.{label}.{weights}.{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return out / "ensembles" / f"{name.replace(' ', '+')}.json"
