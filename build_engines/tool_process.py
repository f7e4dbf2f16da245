"""Tools that are run in a process of their own, because of what they do to the one that imports them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from build_engines.errors import BuildError


def run(command: Sequence[str], name: str, environment: Mapping[str, str] | None = None) -> None:
    """Run `command` without its output.

    Args:
        command: with its arguments.
        name: of the tool, for people.
        environment: variables besides those of this process.

    Raises:
        BuildError: it failed; with the last line that it wrote.
    """
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it gave no reason"]
        raise BuildError(f"{name} failed with status {done.returncode}: {reason[0]}")
