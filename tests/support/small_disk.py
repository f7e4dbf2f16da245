"""A file system that is full soon: a real one in memory, mounted for a test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def can_mount(directory: Path) -> bool:
    """Whether this process may mount a file system; only root may, and not in every container."""
    try:
        with small_disk(directory, 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """Mount an empty file system of that size on `directory`, which is made.

    Raises:
        OSError: there is no `mount`.
        subprocess.CalledProcessError: it is not allowed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(directory)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        # Lazily: a file may be open still.
        subprocess.run(["umount", "--lazy", str(directory)], check=True, capture_output=True)
