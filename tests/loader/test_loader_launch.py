"""Law 3 in real process groups: the loader finds its rank by itself, and the joined batches are the same."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from wv_loader import Loader

OPTIONS = {"batch_size": 16, "size_px": 8, "seed": 5, "balance": 0.4, "threads": 1}
SCRIPT = """
import json, sys
import torch.distributed as dist
from wv_loader import Loader

shards, out, state = sys.argv[1:4]
dist.init_process_group("gloo")
loader = Loader(shards, **json.loads(sys.argv[4]))
if state != "-":
    loader.load_state_dict(json.loads(state))
rows = []
for batch in loader:
    rows.append([batch.ordinals.tolist(), batch.valid.tolist(), batch.images.long().sum((1, 2, 3)).tolist()])
    if state == "-" and len(rows) == 3:
        saved = loader.state_dict()
with open(f"{out}.{loader.rank}", "w") as file:
    json.dump({"rows": rows, "state": saved if state == "-" else None, "world": loader.world_size}, file)
dist.destroy_process_group()
"""


def joined(out: Path, ranks: int) -> tuple[list[list[list[int]]], object]:
    """(ordinals, valid, pixel sums) of each batch, of all ranks, and rank 0's state after three batches."""
    parts = [json.loads(Path(f"{out}.{k}").read_text()) for k in range(ranks)]
    assert all(part["world"] == ranks for part in parts)
    batches = zip(*[part["rows"] for part in parts], strict=True)
    rows = [[list(chain.from_iterable(columns)) for columns in zip(*batch, strict=True)] for batch in batches]
    return rows, parts[0]["state"]


@pytest.mark.slow
def test_4_ranks_and_2_of_torchrun_give_the_batches_of_one_process_and_a_state_moves_between_them(
    small_dataset: Path, tmp_path: Path, start_ranks: Callable[..., list[BaseProcess]]
) -> None:
    with Loader(small_dataset, **OPTIONS) as loader:  # type: ignore[arg-type]
        alone = [[b.ordinals.tolist(), b.valid.tolist(), b.images.long().sum((1, 2, 3)).tolist()] for b in loader]
    options = json.dumps(OPTIONS)
    ranks = start_ranks(4, SCRIPT, small_dataset, tmp_path / "four", "-", options, stderr=tmp_path / "stderr")
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * 4, (tmp_path / "stderr").read_text()
    four, state = joined(tmp_path / "four", 4)
    assert four == alone
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    done = subprocess.run(
        [*command, small_dataset, tmp_path / "two", json.dumps(state), options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    followed, _ = joined(tmp_path / "two", 2)
    assert followed == alone[3:]
