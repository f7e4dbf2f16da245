"""Ctrl-C and a plain kill that no library can swallow: some lose the exception while they are being imported."""

from __future__ import annotations

import signal
from types import FrameType

_seen = False


def install() -> None:
    """From now on both signals raise `KeyboardInterrupt`, at once and again at the next `check`."""
    global _seen
    _seen = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise)


def requested() -> bool:
    """Whether a signal came."""
    return _seen


def check() -> None:
    """Raise `KeyboardInterrupt` if a signal came."""
    if _seen:
        raise KeyboardInterrupt


def _raise(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = True
    raise KeyboardInterrupt
