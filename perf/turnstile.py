"""Give two groups of processes the machine in turns: the one is stopped while the other runs.

    python turnstile.py SECONDS LOG PID,PID,… PID,PID,…

It is a process of its own, and ends when its standard input does: whoever wanted this may be killed at any time, and
no process stays stopped. Each line of the log is a time in nanoseconds since 1970 and which group runs from then on,
0 or 1, or -1 for both.
"""

import contextlib
import os
import select
import signal
import sys
import time


def main() -> None:
    """See the top of this file."""
    seconds, path = float(sys.argv[1]), sys.argv[2]
    groups = [[int(pid) for pid in text.split(",")] for text in sys.argv[3:]]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    turn = 0
    with open(path, "w", encoding="ascii", buffering=1) as log:
        try:
            while True:
                send(groups[1 - turn], signal.SIGSTOP)
                log.write(f"{time.time_ns()} {turn}\n")
                send(groups[turn], signal.SIGCONT)
                if select.select([sys.stdin], [], [], seconds)[0]:
                    break
                turn = 1 - turn
        finally:
            for group in groups:
                send(group, signal.SIGCONT)
            log.write(f"{time.time_ns()} -1\n")


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal those that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    main()
