"""Client library and command line."""

from client.asynchronous import AsyncClient, AsyncStream
from client.classification import Label
from client.errors import (
    Cancelled,
    InvalidRequest,
    Restricted,
    ServerError,
    TimedOut,
    Unavailable,
    Unreachable,
    Unsupported,
)
from client.request import Message, Parameters
from client.response import Chunk, Result, Timing
from client.sync import Client, Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Chunk",
    "Client",
    "InvalidRequest",
    "Label",
    "Message",
    "Parameters",
    "Restricted",
    "Result",
    "ServerError",
    "Stream",
    "TimedOut",
    "Timing",
    "Unavailable",
    "Unreachable",
    "Unsupported",
]
