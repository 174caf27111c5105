"""Which code runs: a commit where the toolkit is a checkout, said in the first lines and recorded with the run."""

import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from wv_train import cli
from wv_train.source_version import source_commit, source_line


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., str]:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git("add", "code.py")
    git("commit", "-qm", "first")
    git("tag", "-am", "a release", "v1")
    return git


def test_a_checkout_is_named_by_its_commit_and_dirty_where_it_differs(
    checkout: Callable[..., str], tmp_path: Path
) -> None:
    commit = checkout("rev-parse", "HEAD")[:12]
    assert source_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("2\n")
    source_commit.cache_clear()
    assert source_commit(tmp_path) == f"{commit}-dirty"


def test_a_folder_inside_a_checkout_and_one_that_git_cannot_read_have_no_commit(
    checkout: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site-packages").mkdir()
    assert source_commit(tmp_path / "site-packages") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(tmp_path) is None


@pytest.mark.parametrize("commit", ["0123456789ab-dirty", None])
def test_the_first_lines_name_the_version_and_the_commit(
    commit: str | None,
    write_recipe: Callable[..., Path],
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("wv_train.source_version.source_commit", lambda: commit)
    expected = f"wv-toolkit {version('wv-toolkit')}" + (f", commit {commit}" if commit else "")
    assert source_line() == expected
    recipe = write_recipe(tmp_path / "tiny.toml")
    options = ["--shards", small_dataset, "--recipe", recipe, "--device", "cpu", "--dry-run"]
    monkeypatch.setattr("sys.argv", ["wv-train", *map(str, options)])
    cli.main()
    assert expected in capsys.readouterr().out.splitlines()[:6]
