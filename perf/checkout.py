"""Commits of this project: which one is served, and the tree of another one, to be served beside it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher.runtime import PROJECT
from perf.errors import PerfError

CHANGED = "+"  # behind a commit: files differ from it


def current(project: Path = PROJECT) -> str:
    """The commit that is checked out, with a plus where files differ from it; empty without git."""
    try:
        head = _git(project, "rev-parse", "--short", "HEAD")
        return head + (CHANGED if _git(project, "status", "--porcelain", "-uno") else "")
    except PerfError:
        return ""


def known(commit: str, project: Path = PROJECT) -> str:
    """The short name of a commit, whichever way it is named.

    Raises:
        PerfError: git does not know it.
    """
    return _git(project, "rev-parse", "--short", "--verify", "--end-of-options", f"{commit}^{{commit}}")


@contextlib.contextmanager
def tree(commit: str, project: Path = PROJECT) -> Iterator[Path]:
    """The files of a commit in a directory that goes when the context ends, with the engines that are built here.

    Raises:
        PerfError: git does not know it.
    """
    found = known(commit, project)
    with tempfile.TemporaryDirectory(prefix="tandem-commit-") as name:
        directory = Path(name)
        archive = directory / ".archive.tar"
        _git(project, "archive", "--format=tar", f"--output={archive}", found)
        subprocess.run(["tar", "-x", "-f", archive, "-C", directory], check=True)
        archive.unlink()
        for kind in ("engine*", "drafter*"):
            for built in (project / "model_repository").glob(f"*/1/{kind}"):
                link = directory / built.relative_to(project)
                if link.parent.is_dir() and not link.exists():
                    link.symlink_to(built.resolve())
        yield directory


def _git(project: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", project, *arguments], capture_output=True, text=True, check=True)
    except OSError as error:
        raise PerfError(f"git is needed for this: {error}") from None
    except subprocess.CalledProcessError as error:
        raise PerfError(f"git {' '.join(arguments)}: {error.stderr.strip()}") from None
    return done.stdout.strip()
