"""TCP ports for a server: free ones, and a clear error for taken ones."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping


class PortInUseError(RuntimeError):
    """A port that was asked for cannot be bound."""


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT counts as free
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def choose_ports(host: str, wanted: Mapping[str, int]) -> dict[str, int]:
    """A port for every name: the wanted number if it can be bound on `host`, a free one where 0 is wanted.

    All are held together while choosing, so that they differ.

    Raises:
        PortInUseError: a wanted port is taken, wanted twice or not ours to bind; the message names it.
    """
    held: list[socket.socket] = []
    try:
        chosen: dict[str, int] = {}
        for name, port in sorted(wanted.items(), key=lambda item: item[1] == 0):  # fixed ones first
            if port and port in chosen.values():
                raise PortInUseError(f"the {name} port {port} is asked for twice")
            try:
                held.append(_bind(host, port))
            except OSError as error:
                raise PortInUseError(_reason(name, host, port, error)) from error
            chosen[name] = held[-1].getsockname()[1]
        return {name: chosen[name] for name in wanted}
    finally:
        for sock in held:
            sock.close()


def _reason(name: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the {name} port {port} on {host} is taken: choose another one, or stop what listens there"
    return f"cannot listen on {host}:{port} ({name}): {error.strerror or error}"
