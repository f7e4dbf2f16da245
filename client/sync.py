"""The blocking client."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import channel
from client.classification import MODEL, Label, build_classification, read_labels
from client.errors import ServerError, error_from_rpc
from client.request import Message, Parameters, build_request
from client.response import Chunk, Collector, Result, Timing


class Stream(Iterator[Chunk]):
    """The responses of one request as they come. Leaving it before its end cancels the request on the server.

    Iteration raises `ServerError` (or one of its kinds) when the request fails, `Cancelled` after `cancel()`.
    """

    def __init__(self, call: Any, collector: Collector | None = None) -> None:
        self._call = call
        self._collector = collector or Collector()
        self._ended = False

    @property
    def timing(self) -> Timing:
        """Arrival times so far."""
        return self._collector.timing

    @property
    def text(self) -> str:
        """The text so far."""
        return self._collector.text

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._ended:
            raise StopIteration
        try:
            return self._collector.read(next(self._call))
        except StopIteration:
            self._ended = True
            self._collector.check_end()
            raise
        except grpc.RpcError as error:
            self._ended = True
            raise error_from_rpc(error) from None
        except ServerError:
            self._ended = True
            # The server is ending the stream too: cancelling it in that moment can trip Triton 2.51.
            with contextlib.suppress(grpc.RpcError):
                for _ in self._call:
                    pass
            raise

    def result(self) -> Result:
        """Wait for the rest and return the whole answer; the first, if there are several.

        Raises:
            ServerError: the request failed or was left before its end.
        """
        return (self.results())[0]

    def results(self) -> list[Result]:
        """Wait for the rest and return all answers, by their index.

        Raises:
            ServerError: the request failed or was left before its end.
        """
        for _ in self:
            pass
        return self._collector.results()

    def cancel(self) -> None:
        """Cancel the request; may be called from any thread, and more than once."""
        self._call.cancel()

    def close(self) -> None:
        """Leave the stream; nothing more is read from it."""
        self._ended = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._call.cancel()


class Client:
    """A connection to a server. It may be shared between threads and carry many requests at a time.

    Example:
        with Client() as client:
            for chunk in client.stream("The capital of France is", max_tokens=32):
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
        options = channel.SYNC_CHANNEL_OPTIONS
        self.model = model
        self._channel = (
            grpc.insecure_channel(url, options)
            if credentials is None
            else grpc.secure_channel(url, credentials, options)
        )
        self._stream = self._channel.unary_stream(**channel.STREAM_METHOD)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def stream(
        self,
        prompt: str | bytes | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        affinity: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Stream:
        """Send a request and return its responses as they come.

        Args:
            prompt: raw text to continue.
            messages: a chat to answer, instead of a prompt.
            timeout: seconds for the whole request.
            affinity: what names the conversation, or the text that requests begin with: a load balancer sends those
                with the same affinity to the same server, whose KV cache then has their beginning.
            parameters: see `Parameters`.

        Raises:
            InvalidRequest: a value does not fit its field; other errors are raised by the iteration.
        """
        request = build_request(prompt, messages, parameters, stream=True, timeout=timeout, model=self.model)
        return self._send(request, timeout, affinity, parameters.get("num_return_sequences") or 1)

    def generate(
        self,
        prompt: str | bytes | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | None = None,
        affinity: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Result:
        """Send a request and wait for the whole answer, which comes as one response.

        The arguments are those of `stream`.

        Raises:
            ServerError: the request failed.
        """
        request = build_request(prompt, messages, parameters, stream=False, timeout=timeout, model=self.model)
        return self._send(request, timeout, affinity).result()

    def samples(
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
        return self.stream(prompt, messages=messages, timeout=timeout, affinity=affinity, **parameters).results()

    def _send(
        self, request: service_pb2.ModelInferRequest, timeout: float | None, affinity: str | None, sequences: int = 1
    ) -> Stream:
        collector = Collector(sequences)  # its clock starts before the request leaves
        call = self._stream(request, timeout=channel.deadline(timeout), metadata=channel.metadata(affinity))
        return Stream(call, collector)

    def server_ready(self, timeout: float = 5.0) -> bool:
        """Whether the server and all its models are ready.

        Raises:
            Unreachable: nothing answers at the address.
        """
        return bool(self._ask(self._stub.ServerReady, service_pb2.ServerReadyRequest(), timeout).ready)

    def model_ready(self, model: str | None = None, timeout: float = 5.0) -> bool:
        """Whether a model (this client's own unless named) is ready.

        Raises:
            Unreachable: nothing answers at the address.
        """
        request = service_pb2.ModelReadyRequest(name=model or self.model)
        return bool(self._ask(self._stub.ModelReady, request, timeout).ready)

    def models(self, timeout: float = 5.0, admin_key: str | None = None) -> dict[str, str]:
        """State of every model in the server's repository, by name.

        Args:
            timeout: seconds.
            admin_key: of a server that tells this only to its operator (default: TANDEM_ADMIN_KEY in the environment).

        Raises:
            Unreachable: nothing answers at the address.
            Restricted: the server wants another key.
        """
        key = admin_key or os.environ.get(channel.ADMIN_KEY_VARIABLE)
        headers = ((channel.ADMIN_HEADER, key),) if key else ()
        index = self._ask(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), timeout, headers)
        return {model.name: model.state or "UNLOADED" for model in index.models}

    def classify(
        self, image: bytes, *, top_k: int | None = None, model: str = MODEL, timeout: float | None = None
    ) -> tuple[Label, ...]:
        """What is in a picture.

        Args:
            image: the bytes of a JPEG, PNG, WebP or GIF file, of any size and colour mode.
            top_k: how many classes to name; None: as many as the server does by itself.
            model: `classify` or `classify_imagenet`.
            timeout: seconds for the whole request.

        Returns:
            The likeliest classes, the likeliest first.

        Raises:
            InvalidRequest: it is not an image, damaged or too large; the message says which.
            ServerError: the request failed otherwise.
        """
        request = build_classification(image, top_k, timeout=timeout, model=model)
        return read_labels(self._ask(self._stub.ModelInfer, request, channel.deadline(timeout)))

    def infer(self, model: str, name: str, data: npt.NDArray[np.uint8], timeout: float = 30.0) -> None:
        """Send one UINT8 tensor to a model of the server, and wait for its answer, which is not read.

        Raises:
            ServerError: the request failed.
        """
        request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[data.tobytes()])
        request.inputs.add(name=name, datatype="UINT8", shape=data.shape)
        self._ask(self._stub.ModelInfer, request, timeout)

    def _ask(self, method: Any, request: Any, timeout: float | None, headers: Sequence[tuple[str, str]] = ()) -> Any:
        try:
            return method(request, timeout=timeout, metadata=headers)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None

    def close(self) -> None:
        """Close the connection; requests under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
