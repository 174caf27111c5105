"""What keeps ranks from beginning, told as one line, and which launch a run belongs to."""

from pathlib import Path

import pytest
import torch

from wv_train.distributed import launch_id, open_world
from wv_train.errors import TrainError
from wv_train.job import should_resume
from wv_train.run_directory import RunDirectory


def test_a_gpu_that_cannot_be_used_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is too old still has its GPUs counted."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainError, match=r"^--device cuda: [^\n]+\), or use --device cpu$"), open_world("cuda"):
        pass


def test_more_ranks_than_gpus_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(TrainError, match="local rank 1 needs a GPU of its own, found 1"), open_world("cuda"):
        pass


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "one"}, r"RANK: expected a whole number, found 'one'; .*torchrun"),
        ({"WORLD_SIZE": "-2"}, r"WORLD_SIZE: expected a whole number, found '-2'"),
        ({"LOCAL_RANK": ""}, r"LOCAL_RANK: expected a whole number, found ''"),
        ({"WORLD_SIZE": "0"}, r"RANK: expected less than WORLD_SIZE=0, found 0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK: expected less than WORLD_SIZE=2, found 2"),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE is 2, but MASTER_ADDR is not set; .*torchrun"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, r"MASTER_PORT: .* found 'http'"),
    ],
)
def test_a_garbled_environment_of_ranks_is_one_line(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainError, match=f"^{said}[^\\n]*$"), open_world("cpu"):
        pass


def test_a_run_belongs_to_the_launch_that_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers that torchrun starts again go on with it; a launch after it needs --resume."""
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    run = RunDirectory(tmp_path / "run")
    assert launch_id() is None
    run.write_info({"launch": launch_id()})
    assert not should_resume(run, None)  # not under torchrun: nobody knows

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    assert not run.begun_by(launch_id())
    run.write_info({"launch": launch_id()})
    assert should_resume(run, None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-18")
    assert not should_resume(run, None)

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun was given no id
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert launch_id() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch_id() == launch_id() is not None  # one node: its agent is the launch
