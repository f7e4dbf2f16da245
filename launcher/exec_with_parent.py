"""Become another program that gets SIGTERM when the process that started it dies.

    python exec_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]

The death signal (prctl(2), PR_SET_PDEATHSIG) survives execve. Setting it here, in a program of its own, and
not in a `preexec_fn` keeps the launcher free of code that runs between fork and exec, which may deadlock once
it has threads. The kernel sends the signal when the starting *thread* ends, so start a server from a
thread that lives as long as the server.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the death signal, make sure that the parent is still there, exec."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the signal was set
        sys.exit("the launcher is gone")
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
