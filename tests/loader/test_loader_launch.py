"""Law 3 in real `torchrun` jobs: the loader finds its rank by itself, and the joined batches are the same."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch.distributed as dist
from wv_loader import Loader

shards, out, state = sys.argv[1:4]
dist.init_process_group("gloo")
loader = Loader(shards, batch_size=16, size_px=8, seed=5, balance=0.4, threads=1)
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


def launch(script: Path, shards: Path, out: Path, ranks: int, state: str = "-") -> tuple[list[list[list[int]]], object]:
    """Joined (ordinals, valid, pixel sums) of each batch, and rank 0's state after three batches."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, script, shards, out, state],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = [json.loads(Path(f"{out}.{k}").read_text()) for k in range(ranks)]
    assert all(part["world"] == ranks for part in parts)
    batches = zip(*[part["rows"] for part in parts], strict=True)
    joined = [[list(chain.from_iterable(columns)) for columns in zip(*batch, strict=True)] for batch in batches]
    return joined, parts[0]["state"]


@pytest.mark.slow
def test_torchrun_on_1_2_and_4_ranks_gives_the_same_batches_and_a_state_moves_between_them(
    small_dataset: Path, tmp_path: Path
) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    alone, _ = launch(script, small_dataset, tmp_path / "one", 1)
    four, state = launch(script, small_dataset, tmp_path / "four", 4)
    assert four == alone
    followed, _ = launch(script, small_dataset, tmp_path / "two", 2, json.dumps(state))
    assert followed == alone[3:]
