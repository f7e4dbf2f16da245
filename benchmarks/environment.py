"""The environment that measurements of the bare engine need to be like the server's."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from launcher.server import REPOSITORY

ENGINE = REPOSITORY / "target" / "1" / "engine"
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def use_huge_pages(module: str) -> None:
    """Start this process again with the allocator setting that the launcher gives the server."""
    if os.environ.get("GLIBC_TUNABLES") != HUGE_PAGES:
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "GLIBC_TUNABLES": HUGE_PAGES})


def machine() -> str:
    """Cores and processor, for reports."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
