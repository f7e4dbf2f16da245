"""The image files that a command line names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
STANDARD_INPUT = "-"


def find_images(paths: Sequence[str]) -> list[str]:
    """Files as they are named; of folders all image files below them, in order of their names.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image; the message names it.
    """
    found: list[str] = []
    for path in paths:
        if path != STANDARD_INPUT and Path(path).is_dir():
            inside = [str(file) for file in sorted(Path(path).rglob("*")) if _is_image(file)]
            if not inside:
                raise FileNotFoundError(f"{path}: no image files in this folder ({', '.join(SUFFIXES)})")
            found += inside
        elif path == STANDARD_INPUT or Path(path).exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    return found


def read_image(path: str) -> bytes:
    """The bytes of a file, or of standard input."""
    return sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
