"""The asyncio client: the same calls as the blocking one, awaited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from client import channel
from client.errors import Cancelled, ServerError, error_from_rpc
from client.request import Message, Parameters, build_request
from client.response import Chunk, Collector, Result, Timing


class AsyncStream(AsyncIterator[Chunk]):
    """The responses of one request as they come. Leaving it before its end cancels the request on the server.

    Iteration raises `ServerError` (or one of its kinds) when the request fails, `Cancelled` after `cancel()`.
    Cancelling the task that reads it cancels the request too.
    """

    def __init__(self, call: Any, collector: Collector | None = None) -> None:
        self._call = call
        self._collector = collector or Collector()
        self._ended = False
        self._cancelled_here = False

    @property
    def timing(self) -> Timing:
        """Arrival times so far."""
        return self._collector.timing

    @property
    def text(self) -> str:
        """The text so far."""
        return self._collector.text

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._ended:
            raise StopAsyncIteration
        response = await self._read()
        if response is grpc.aio.EOF:
            self._ended = True
            self._collector.check_end()
            raise StopAsyncIteration
        try:
            return self._collector.read(response)
        except ServerError:
            self._ended = True
            # The server is ending the stream too: cancelling it in that moment can trip Triton 2.51.
            with contextlib.suppress(ServerError):
                while await self._read() is not grpc.aio.EOF:
                    pass
            raise

    async def _read(self) -> Any:
        """The next response or `EOF`; raises as the iteration does."""
        try:
            return await self._call.read()
        except asyncio.CancelledError:
            self._ended = True
            if self._cancelled_here:
                raise Cancelled("cancelled by the client", "CANCELLED") from None
            raise
        except grpc.RpcError as error:
            self._ended = True
            raise error_from_rpc(error) from None

    async def result(self) -> Result:
        """Wait for the rest and return the whole answer; the first, if there are several.

        Raises:
            ServerError: the request failed or was left before its end.
        """
        return (await self.results())[0]

    async def results(self) -> list[Result]:
        """Wait for the rest and return all answers, by their index.

        Raises:
            ServerError: the request failed or was left before its end.
        """
        async for _ in self:
            pass
        return self._collector.results()

    def cancel(self) -> None:
        """Cancel the request; may be called more than once."""
        self._cancelled_here = True
        self._call.cancel()

    async def aclose(self) -> None:
        """Leave the stream; nothing more is read from it."""
        self._ended = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the connection with it
            self._call.cancel()


class AsyncClient:
    """A connection to a server, made inside the event loop that uses it. It carries many requests at a time.

    Example:
        async with AsyncClient() as client:
            async for chunk in client.stream("The capital of France is", max_tokens=32):
                print(chunk.text, end="", flush=True)

    Args:
        url: host and port of the server's gRPC endpoint.
        model: name of the model.
        credentials: for an encrypted connection.
    """

    def __init__(
        self,
        url: str = channel.DEFAULT_URL,
        *,
        model: str = "generate",
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        options = channel.CHANNEL_OPTIONS
        self.model = model
        self._channel = (
            grpc.aio.insecure_channel(url, options)
            if credentials is None
            else grpc.aio.secure_channel(url, credentials, options)
        )
        self._stream = self._channel.unary_stream(**channel.STREAM_METHOD)

    def stream(
        self,
        prompt: str | bytes | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        affinity: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> AsyncStream:
        """Send a request and return its responses as they come; arguments as for `Client.stream`.

        Raises:
            InvalidRequest: a value does not fit its field; other errors are raised by the iteration.
        """
        request = build_request(prompt, messages, parameters, stream=True, timeout=timeout, model=self.model)
        return self._send(request, timeout, affinity, parameters.get("num_return_sequences") or 1)

    async def generate(
        self,
        prompt: str | bytes | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        affinity: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Result:
        """Send a request and wait for the whole answer, which comes as one response.

        Raises:
            ServerError: the request failed.
        """
        request = build_request(prompt, messages, parameters, stream=False, timeout=timeout, model=self.model)
        return await self._send(request, timeout, affinity).result()

    async def samples(
        self,
        prompt: str | bytes | None = None,
        *,
        count: int,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        affinity: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> list[Result]:
        """Send a request for several answers to one prompt, and wait for all of them.

        The prompt is computed once. Other arguments are those of `stream`; `temperature` must be above 0.

        Args:
            count: how many; answer i is the one that `random_seed` + i gives.

        Returns:
            The answers by their index; in their `timing` the responses of each.

        Raises:
            ServerError: the request failed.
        """
        parameters["num_return_sequences"] = count
        return await self.stream(prompt, messages=messages, timeout=timeout, affinity=affinity, **parameters).results()

    def _send(
        self, request: service_pb2.ModelInferRequest, timeout: float | None, affinity: str | None, sequences: int = 1
    ) -> AsyncStream:
        collector = Collector(sequences)  # its clock starts before the request leaves
        call = self._stream(request, timeout=channel.deadline(timeout), metadata=channel.metadata(affinity))
        return AsyncStream(call, collector)

    async def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
