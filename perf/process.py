"""Runs perf_analyzer so that it ends with us, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import launcher
from build_engines import interrupt
from launcher import processes
from perf.errors import PerfError

_WITH_PARENT = Path(launcher.__file__).with_name("exec_with_parent.py")
_GENTLE_S = 2.0


def run(command: Sequence[str], log: Path, timeout_s: float) -> None:
    """Run to the end; what it says goes to `log`. Interrupted or too slow, it is stopped and nothing of it is left.

    Raises:
        PerfError: it fails or takes too long; the message holds the end of what it said.
        KeyboardInterrupt: a signal came meanwhile.
    """
    # In a session of its own, so that Ctrl-C in a terminal reaches only us: perf_analyzer would wait for its requests.
    full = [sys.executable, "-I", "-S", str(_WITH_PARENT), str(os.getpid()), *command]
    with log.open("wb") as file:
        process = subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            interrupt.check()
            if time.monotonic() > deadline:
                raise PerfError(
                    f"perf_analyzer took longer than {timeout_s:g} s (`timeout_s` of the profile)\n{end(log)}"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    finally:
        _stop(process)
    if process.returncode:
        raise PerfError(
            f"perf_analyzer ended with exit code {process.returncode}:\n{end(log)}\nthe command: {' '.join(command)}"
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GENTLE_S)
    processes.signal_all(processes.session_pids(process.pid), signal.SIGKILL)
    process.wait()


def end(log: Path, lines: int = 8) -> str:
    """The last lines of what it said, without its help."""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    helped = next((index for index, line in enumerate(said) if line.startswith("Usage:")), len(said))
    return "\n".join(said[:helped][-lines:])
