"""Two nodes on one machine: network namespaces joined by a veth pair, and in each a rank, or a torchrun with a rank.

Needs root, iproute2 and a kernel with namespaces; skips with its reason elsewhere.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from wv_train.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
OPTIONS = ("--device", "cpu", "--loader-threads", "1")
PORT = 29400
SHORT = ("phases.gated.steps=4", "phases.finetune.steps=2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A network namespace with one interface beside its loopback."""

    namespace: str
    interface: str
    address: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def popen(self, *command: object, **environment: str) -> subprocess.Popen[str]:
        """Start a command in it; `ip netns exec` becomes the command."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *(str(word) for word in command)],
            env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": self.interface, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that see each other and nothing else; with them end all processes that were started in them."""
    if shutil.which("ip") is None:
        pytest.skip("no iproute2: nodes on one machine are network namespaces, made with `ip netns`")
    if os.geteuid() != 0:
        pytest.skip("not root: network namespaces can't be made")
    pair = tuple(
        Node(namespace=f"wv{os.getpid()}{side}", interface=f"wv{os.getpid()}{side}", address=f"10.213.77.{host}")
        for host, side in ((1, "a"), (2, "b"))
    )
    try:
        try:
            for node in pair:
                _ip("netns", "add", node.namespace)
            first, second = pair
            _ip("-n", first.namespace, "link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
            _ip("-n", first.namespace, "link", "set", second.interface, "netns", second.namespace)
            for node in pair:
                _ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", node.interface)
                _ip("-n", node.namespace, "link", "set", node.interface, "up")
                _ip("-n", node.namespace, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield first, second
    finally:
        for node in pair:
            with suppress(subprocess.CalledProcessError):  # it was not made
                for process in _ip("netns", "pids", node.namespace).split():
                    with suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                _ip("netns", "delete", node.namespace)
            for started in node.started:
                started.communicate()


def _launch(nodes: tuple[Node, Node], *arguments: object) -> list[subprocess.Popen[str]]:
    """A rank on each node, started by a torchrun on each."""
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{nodes[0].address}:{PORT}", "--rdzv-id", "two-nodes")
    started = []
    for index, node in enumerate(nodes):
        here = ("--rdzv-conf", f"is_host={int(index == 0)}", "--local-addr", node.address)
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1)
        started.append(node.popen(*torchrun, *rendezvous, *here, "-m", "wv_train", *arguments, *OPTIONS))
    return started


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    """Without batch statistics, which each rank has of its own."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "nodes.toml", "model=wv_resnet_16_32_64_gn", *SHORT)


def test_two_nodes_learn_bit_for_bit_what_two_ranks_of_one_node_learn(
    nodes: tuple[Node, Node],
    recipe: Path,
    small_dataset: Path,
    tmp_path: Path,
    start_ranks: Callable[..., list[BaseProcess]],
) -> None:
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out")
    main = "from wv_train.cli import main\nmain()\n"
    ranks = start_ranks(2, main, *arguments, tmp_path / "one", *OPTIONS, stderr=tmp_path / "stderr")
    for rank in ranks:
        rank.join(240)
    assert [rank.exitcode for rank in ranks] == [0, 0], (tmp_path / "stderr").read_text()
    for process in _launch(nodes, *arguments, tmp_path / "two"):
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
    one, two = (Checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("one", "two"))
    assert one.position == two.position
    assert all(torch.equal(value, two.model[name]) for name, value in one.model.items())
    ledgers = [np.load(tmp_path / name / "ledger.npy") for name in ("one", "two")]
    assert (ledgers[0] == ledgers[1]).all()


def test_a_rank_killed_on_one_node_ends_the_job_on_the_other_within_a_minute(
    nodes: tuple[Node, Node], recipe: Path, small_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    endless = ("--set", "phases.gated.steps=100000")
    arguments = ("--shards", small_dataset, "--recipe", recipe, "--out", out, *endless)
    master = {"MASTER_ADDR": nodes[0].address, "MASTER_PORT": str(PORT), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    command = (sys.executable, "-m", "wv_train", *arguments, *OPTIONS)
    here, there = (node.popen(*command, RANK=str(rank), **master) for rank, node in enumerate(nodes))
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.pt").exists():
        assert here.poll() is None, here.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    there.kill()
    killed = time.monotonic()
    _, stderr = here.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert here.returncode == 1
    assert "lost another rank at step" in stderr
    assert Checkpoint.load(out / "checkpoints" / "last.pt").position["step"] > 0
