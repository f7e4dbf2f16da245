"""Data out of Debian packages: downloaded and unpacked, never installed, so that no root is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from build_engines.errors import BuildError


def unpack(package: str, directory: Path) -> None:
    """Unpack the newest version of `package` that this system's sources have into `directory`.

    Raises:
        BuildError: the tools of Debian are missing, or the package cannot be had.
    """
    try:
        _run(["apt-get", "download", package], directory)
        archive = next(directory.glob("*.deb")).name
        _run(["dpkg-deb", "-x", archive, "."], directory)
    except FileNotFoundError as error:
        raise BuildError(f"{error.filename} is not there: {package} is a Debian package") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise BuildError(f"{' '.join(error.cmd)} failed: {reason[0]} (try apt-get update)") from None


def _run(command: list[str], directory: Path) -> None:
    subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
