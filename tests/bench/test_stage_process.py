"""Processes that are the stages of a benchmark."""

import subprocess
import sys
from pathlib import Path

import pytest

from wv_bench.stage_process import RunError, run_stage


def test_a_stage_is_run_once_and_its_cost_kept(tmp_path: Path) -> None:
    done, log = tmp_path / "stage.json", tmp_path / "stage.log"
    first = run_stage(done, log, "wv_train", ["--version"], threads=1)
    assert first.cpu_s is not None
    said = log.read_text()
    assert said
    assert run_stage(done, log, "wv_train", ["--version"], threads=1) == first
    assert log.read_text() == said


def test_a_process_that_outlived_its_benchmark_is_not_joined_by_another(tmp_path: Path) -> None:
    done, log = tmp_path / "stage.json", tmp_path / "stage.log"
    # A benchmark that starts a stage and is killed before the stage has ended.
    stage = "import time; print('at work', flush=True); time.sleep(60)"
    lines = (
        "import os, subprocess, sys",
        "from pathlib import Path",
        "from wv_bench import stage_process",
        f"start = lambda *_, **words: started([sys.executable, '-c', {stage!r}], **words)",
        "started, stage_process.subprocess.Popen = subprocess.Popen, start",
        "begun = lambda process: (print(process, flush=True), os._exit(1))",
        "from contextlib import nullcontext",
        f"done, log = Path({str(done)!r}), Path({str(log)!r})",
        "stage_process.run_stage(done, log, 'none', [], threads=1, watch=nullcontext(begun))",
    )
    killed = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    orphan = int(killed.stdout)
    try:
        with pytest.raises(RunError, match="benchmark that was killed still writes there"):
            run_stage(done, log, "wv_train", ["--version"], threads=1)
    finally:
        subprocess.run(["kill", str(orphan)], check=True)
        subprocess.run(["tail", "--pid", str(orphan), "-f", "/dev/null"], check=True, timeout=30)
    run_stage(done, log, "wv_train", ["--version"], threads=1)
    assert done.exists()
