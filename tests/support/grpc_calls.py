"""Prepared gRPC calls, for tests of the client without a server."""

import asyncio
import struct

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2


def string(text):
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def response(**outputs):
    message = service_pb2.ModelStreamInferResponse()
    for name, raw in outputs.items():
        message.infer_response.outputs.add(name=name)
        message.infer_response.raw_output_contents.append(raw)
    return message


LAST = {
    "finish_reason": string("stop"),
    "prompt_tokens": struct.pack("<i", 5),
    "generated_tokens": struct.pack("<i", 3),
}


class Refused(grpc.RpcError):
    """What grpc raises from a call."""

    def __init__(self, code, details):
        super().__init__()
        self._code, self._details = code, details

    def code(self):
        return self._code

    def details(self):
        return self._details


class Call:
    """A call with prepared events, sync and async: responses, or exceptions to raise."""

    def __init__(self, *events):
        self.events = list(events)
        self.cancelled = False

    def __iter__(self):
        return self

    def __next__(self):
        if self.cancelled:
            raise Refused(grpc.StatusCode.CANCELLED, "cancelled")
        if not self.events:
            raise StopIteration
        event = self.events.pop(0)
        if isinstance(event, BaseException):
            raise event
        return event

    async def read(self):
        if self.cancelled:
            raise asyncio.CancelledError
        try:
            return next(self)
        except StopIteration:
            return grpc.aio.EOF

    def cancel(self):
        self.cancelled = True
