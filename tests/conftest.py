"""Fixtures for all tests: starting real servers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from launcher.server import Options, TritonServer

StartServer = Callable[..., TritonServer]


def pytest_configure() -> None:
    """A job in the background of a script ignores interrupts, and so would every command that is started here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """`start_server(env={...}, models=[...], ...)` starts a server of its own; all stop after the test.

    Keyword arguments are those of `launcher.server.Options`.
    """
    with ExitStack() as stack:

        def start(**options: Any) -> TritonServer:
            options.setdefault("log", tmp_path / f"server-{len(list(tmp_path.glob('server-*.log')))}.log")
            return stack.enter_context(TritonServer(Options(**options)))

        yield start
