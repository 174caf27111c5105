"""The README's loops around the loader, each run as it stands on small shards, and what they claim."""

import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text()
SNIPPETS = {
    name: block
    for block in re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for name in [
        next((n for n in ("lightning", "TimmLoader", "transform=", "optimizer", "state_dict") if n in block), "other")
    ]
}
CLAIMS = {
    "state_dict": "assert state['epoch'] == 1 and 2 * state['batches'] == loader.stats.batches",
    "transform=": "assert images.shape[1:] == (3, 32, 32) and targets.shape[1] == loader.num_classes",
    "optimizer": "assert loader.state_dict()['epoch'] == 2 and loss.isfinite()",
    "TimmLoader": "assert logits.shape == (128, shards.num_classes) and shards.state_dict()['epoch'] == 1",
    "lightning": "assert trainer.global_step == 2 * len(loader) > 2",
}


@pytest.fixture(scope="module")
def folder(draw_dataset: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("loops")
    draw_dataset(made / "shards" / "train", [200, 90, 40])
    return made


@pytest.mark.parametrize("name", CLAIMS)
def test_the_readmes_loops_run_as_they_stand(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported torch: a Python for each would cost more than all they do."""
    if name == "lightning" and find_spec("lightning") is None:
        pytest.skip("PyTorch Lightning is not installed: pip install lightning")
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a Python of one's own, where none is an error
        exec(f"{SNIPPETS[name]}\n{CLAIMS[name]}\n", {"__name__": "__main__"})


def test_every_python_block_of_the_readme_is_among_them() -> None:
    assert set(SNIPPETS) == set(CLAIMS)
    assert len(SNIPPETS) == README.count("```python\n")
