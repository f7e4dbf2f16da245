"""A real HAProxy before two servers, with the configuration that is shipped: scale_out/haproxy.cfg."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.ports import choose_ports
from launcher.runtime import PROJECT
from launcher.server import TritonServer

CONFIG = PROJECT / "scale_out" / "haproxy.cfg"
_START_S = 30.0


class HaproxyMissingError(RuntimeError):
    """There is no HAProxy on this machine; the message says how to get it."""


def program() -> str:
    """Its path. Raises `HaproxyMissingError` if it is not installed."""
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise HaproxyMissingError("haproxy is missing: apt-get install haproxy")
    return found


@contextlib.contextmanager
def haproxy(servers: Sequence[TritonServer], log: Path) -> Iterator[str]:
    """Its address, host:port of gRPC, once it answers; stopped at the end.

    Args:
        servers: two.
        log: file for what it prints.

    Raises:
        HaproxyMissingError: it is not installed.
        RuntimeError: it ends, or does not answer.
    """
    command = [program(), "-db", "-f", str(CONFIG)]
    port = choose_ports("127.0.0.1", {"HAProxy": 0})["HAProxy"]
    address = f"127.0.0.1:{port}"
    env = {**os.environ, "TANDEM_LISTEN": address}
    for name, server in zip("AB", servers, strict=True):
        env |= {f"TANDEM_{name}": server.grpc_url, f"TANDEM_{name}_HTTP": server.http_url.rpartition(":")[2]}
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"HAProxy does not answer at {address}: {log.read_text(encoding='utf-8')}")
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
