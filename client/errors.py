"""Errors of the client. Each carries the gRPC status that the server gave."""

from __future__ import annotations

import re

import grpc

# What grpc says where a stream ends without a status, as behind a load balancer whose server died.
_BROKEN_OFF = ("stream removed", "end_stream", "rst_stream")
_NO_CONNECTION = ("failed to connect", "connection refused", "name resolution", "dns resolution")


class ServerError(Exception):
    """The server refused or failed a request; the more precise errors derive from it.

    Attributes:
        status: name of the gRPC status code, such as "INTERNAL"; "UNKNOWN" where the server named none.
        message: what the server said.
    """

    def __init__(self, message: str, status: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class InvalidRequest(ServerError):
    """A field of the request is wrong; the message names it."""


class Unsupported(ServerError):
    """The request asks for something this server does not have."""


class Unavailable(ServerError):
    """The server is full or shutting down, the request timed out in it, or the model is not loaded."""


class Unreachable(Unavailable):
    """Nothing answers at the server's address."""


class Restricted(Unavailable):
    """The server answers this only to those who send its administration key."""


class Cancelled(ServerError):
    """The request was cancelled, by this client or by the server."""


class TimedOut(ServerError):
    """The client's own deadline passed before the last response."""


_MARKED = re.compile(r"\[([A-Z_]+)\] (.*)", re.DOTALL)
_TRITON_CODES = {"INVALID_ARG": "INVALID_ARGUMENT", "UNSUPPORTED": "UNIMPLEMENTED"}

_BY_STATUS: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "UNIMPLEMENTED": Unsupported,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Cancelled,
    "DEADLINE_EXCEEDED": TimedOut,
}


def error_from_status(status: str, message: str) -> ServerError:
    """The typed error for the name of a gRPC status code."""
    if status == "UNAVAILABLE" and any(sign in message.lower() for sign in _NO_CONNECTION):
        return Unreachable(message, status)
    if "protocol is restricted" in message:
        return Restricted(f"{message}: set TANDEM_ADMIN_KEY to the server's key", status)
    return _BY_STATUS.get(status, ServerError)(message, status)


def error_from_rpc(error: grpc.RpcError) -> ServerError:
    """The typed error for a failed call of grpc or grpc.aio. What Triton writes in front of a model's message goes."""
    status, details = error.code().name, error.details() or "no details"
    if status in ("UNKNOWN", "INTERNAL") and any(sign in details.lower() for sign in _BROKEN_OFF):
        return Unavailable(f"the stream broke off, the server is probably gone: {details}", "UNAVAILABLE")
    marked = _MARKED.search(details)
    return error_from_status(status, marked.group(2) if marked else details)


def error_from_message(message: str) -> ServerError:
    """The typed error for an error response inside a stream, which has no status of its own.

    The model's messages begin with Triton's name of the code in brackets. Triton's own, about requests that never
    reach the model, do not.
    """
    marked = _MARKED.match(message)
    if marked:
        code, text = marked.groups()
        return error_from_status(_TRITON_CODES.get(code, code), text)
    status = "UNAVAILABLE" if message.startswith("Request for unknown model") else "UNKNOWN"
    return error_from_status(status, message)
