"""The commit that is served, and the tree of another one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from perf import checkout
from perf.errors import PerfError

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a model, whose engine git does not know: of code that is old, then newer, then changed."""
    directory = tmp_path / "project"
    model = directory / "model_repository" / "target" / "1"
    for made in (model / "engine", directory / "tandem", directory / "model_repository" / "later" / "1" / "engine"):
        made.mkdir(parents=True)
    (model / "model.py").write_text("old")
    (directory / "tandem" / "code.py").write_text("old")
    (directory / ".gitignore").write_text("engine\n")
    (model / "engine" / "weights").write_text("many")
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-a", "-m", "it"]
    for arguments in (["init", "-q"], ["add", "."], commit):
        subprocess.run(["git", "-C", directory, *arguments], check=True)
    (directory / "tandem" / "code.py").write_text("newer")
    subprocess.run(["git", "-C", directory, *commit], check=True)
    (directory / "tandem" / "code.py").write_text("new")
    return directory


@needs_git
def test_the_tree_of_a_commit_has_its_files_and_the_engines_that_are_here(project: Path) -> None:
    with checkout.tree("HEAD~1", project) as tree:
        assert (tree / "tandem" / "code.py").read_text() == "old"
        assert (tree / "model_repository" / "target" / "1" / "engine" / "weights").read_text() == "many"
        assert not (tree / "model_repository" / "later").exists()
    assert not tree.exists()
    assert (project / "model_repository" / "target" / "1" / "engine" / "weights").is_file()


@needs_git
def test_the_name_of_what_is_checked_out_says_whether_files_differ(project: Path) -> None:
    head = checkout.known("HEAD", project)
    assert checkout.current(project) == f"{head}+"
    (project / "tandem" / "code.py").write_text("newer")
    assert checkout.current(project) == head


@needs_git
@pytest.mark.parametrize("commit", ["no-such-commit", "--help", ""])
def test_an_unknown_commit_is_an_error(project: Path, commit: str) -> None:
    with pytest.raises(PerfError, match="git rev-parse"), checkout.tree(commit, project):
        pass


@needs_git
def test_without_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout.current(tmp_path) == ""


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout.current(tmp_path) == ""
    with pytest.raises(PerfError, match="git is needed"):
        checkout.known("HEAD", tmp_path)
