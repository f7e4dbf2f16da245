"""An engine's directory is replaced as a whole: it holds the old engine or the new one, whatever happens."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.progress import stage
from tandem.manifest import FILE_NAME


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock of `output`, so that two builds of one engine take turns; tidy up after killed ones.

    Raises:
        BuildError: `output` holds something else than an engine.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with _locked(output.parent):
        _remove_leftovers(output)
        _require_ours(output)
        yield


@contextlib.contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `output` if the block succeeds; call it within `locked`.

    Raises:
        BuildError: the disk is full.
    """
    temporary = output.with_name(f".{output.name}.build-{os.getpid()}")
    temporary.mkdir()
    try:
        with _disk_errors(output.parent):
            yield temporary
        _replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _require_ours(output: Path) -> None:
    empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not empty and not (output / FILE_NAME).is_file():
        raise BuildError(f"{output} exists and holds no engine; choose another --output or remove it")


def _replace(new: Path, output: Path) -> None:
    """Put the finished directory in place; on failure the old one is put back."""
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    if output.exists():
        os.rename(output, old)
    try:
        os.rename(new, output)
    except BaseException:
        if old.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(output: Path) -> None:
    """Remove what a killed build left behind; the lock says that nobody is building here now."""
    for leftover in output.parent.glob(f".{output.name}.build-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in output.parent.glob(f".{output.name}.old-*"):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, output)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stage("waiting for another build to finish"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Name a full disk as what it is: the runtime's own writer only says that it failed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(directory).free
        if getattr(error, "errno", None) == errno.ENOSPC or free < 16 << 20:
            raise BuildError(f"the disk that holds {directory} is full: {free / 1e6:.0f} MB free") from error
        raise
