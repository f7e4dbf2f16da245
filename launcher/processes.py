"""What a server leaves in the system: the processes of its session, its Python stubs, its shared memory."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


def session_pids(session: int) -> list[int]:
    """Live (not zombie) processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue  # gone meanwhile, or not ours
    return found


def stub_pids(session: int, model: str) -> list[int]:
    """Live Python backend stubs of `model` in a session."""
    found = []
    for pid in session_pids(session):
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.Error:
            continue
        if is_stub_of(model, command):
            found.append(pid)
    return found


def is_stub_of(model: str, command: Sequence[str]) -> bool:
    """Whether a command line is that of a stub of `model`: it holds the name `<model>_<group>_<instance>`."""
    if not command or Path(command[0]).name != "triton_python_backend_stub":
        return False
    return any(re.fullmatch(rf"{re.escape(model)}_\d+_\d+", argument) for argument in command)


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each of `pids` that still exists."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def wait_for_session_end(session: int, seconds: float) -> list[int]:
    """Wait until a session has no process; returns those that are left after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := session_pids(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def shared_memory_segments(prefix: str) -> list[Path]:
    """Shared memory files whose name starts with `prefix`."""
    return sorted(SHARED_MEMORY.glob(f"{prefix}*"))
