"""What the sync and the asyncio client share about the gRPC connection."""

from __future__ import annotations

import hashlib
from typing import Any

from grpc.experimental import ChannelOptions
from tritonclient.grpc import service_pb2

DEFAULT_URL = "127.0.0.1:8001"

# Sends one request and closes its side, which needs no thread to feed it: on the wire a bidirectional stream
# with one message from the client. Triton answers with all responses and ends the stream; so every request
# has a status of its own.
STREAM_METHOD: dict[str, Any] = {
    "method": "/inference.GRPCInferenceService/ModelStreamInfer",
    "request_serializer": service_pb2.ModelInferRequest.SerializeToString,
    "response_deserializer": service_pb2.ModelStreamInferResponse.FromString,
}

# The header `triton_grpc_error`, which would give each error its gRPC status, is not sent: with it Triton 2.51
# crashes (segmentation fault) after some hundreds of errors on one connection.

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
# Reads on the caller's thread: a fifth less CPU time for each response than through grpc's own thread.
SYNC_CHANNEL_OPTIONS = (*CHANNEL_OPTIONS, (ChannelOptions.SingleThreadedUnaryStream, 1))

# The header that opens a server's administration: see launcher/admin.py.
ADMIN_KEY_VARIABLE = "TANDEM_ADMIN_KEY"
ADMIN_HEADER = "triton-grpc-protocol-tandem-admin-key"

# With a timeout the server answers first, with a reason; the client's deadline covers a silent server.
DEADLINE_GRACE_S = 1.0


def deadline(timeout: float | None) -> float | None:
    """The client's deadline in seconds for a request with this timeout."""
    return None if timeout is None else timeout + DEADLINE_GRACE_S


AFFINITY_HEADER = "x-tandem-affinity"


def metadata(affinity: str | None) -> tuple[tuple[str, str], ...] | None:
    """The header by which a load balancer keeps requests together (scale_out/haproxy.cfg); servers ignore it.

    A hash, because a header holds no arbitrary text, and what names a conversation may be nobody else's business.
    """
    if affinity is None:
        return None
    return ((AFFINITY_HEADER, hashlib.sha256(affinity.encode()).hexdigest()[:32]),)
