"""The client without a server: requests, responses, errors, arguments."""

import asyncio
import json
import struct
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import text_format
from grpc_calls import LAST, Call, Refused, response, string
from tritonclient.grpc import model_config_pb2, service_pb2

from client import (
    AsyncClient,
    Cancelled,
    Chunk,
    Client,
    InvalidRequest,
    ServerError,
    TimedOut,
    Timing,
    Unavailable,
    Unreachable,
    Unsupported,
)
from client.asynchronous import AsyncStream
from client.channel import AFFINITY_HEADER, metadata
from client.errors import error_from_message, error_from_rpc, error_from_status
from client.request import TENSORS, Parameters, build_request
from client.response import parse_chunk
from client.sync import Stream

CONFIG = Path(__file__).parents[2] / "model_repository" / "generate" / "config.pbtxt"


def tensors(request):
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), raw)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


# -------------------------------------------------------------- requests


def test_only_given_fields_are_sent():
    request = build_request("Hi é", None, {"max_tokens": 3}, stream=False)
    assert request.model_name == "generate"
    assert "timeout" not in request.parameters
    assert tensors(request) == {
        "text_input": ("BYTES", [1, 1], b"\x05\x00\x00\x00Hi \xc3\xa9"),
        "max_tokens": ("INT32", [1, 1], b"\x03\x00\x00\x00"),
    }


def test_every_field_has_its_type_and_shape():
    everything: Parameters = {
        "max_tokens": 1,
        "min_length": 2,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "random_seed": 2**64 - 1,
        "num_return_sequences": 2,
        "stop_words": ["a", "bc"],
        "bad_words": [],
        "repetition_penalty": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "exclude_input_in_output": False,
        "return_log_probs": True,
        "return_token_ids": True,
        "beam_width": 1,
        "length_penalty": 1.0,
        "num_draft_tokens": 0,
        "drafter": "none",
        "priority": 7,
        "cache_salt": "s",
        "cache_priority": 3,
        "cache_pin": True,
        "cache_skip": True,
    }
    request = build_request(None, [{"role": "user", "content": "é"}], everything, stream=True, timeout=1.5)
    sent = tensors(request)
    assert set(sent) == set(TENSORS) - {"text_input"}
    assert {name: kind for name, (kind, _, _) in sent.items()} == {name: TENSORS[name] for name in sent}
    shapes = {name: shape for name, (_, shape, _) in sent.items() if shape != [1, 1]}
    assert shapes == {"stop_words": [1, 2], "bad_words": [1, 0]}
    assert sent["stop_words"][2] == string("a") + string("bc")
    assert sent["random_seed"][2] == b"\xff" * 8
    assert sent["temperature"][2] == struct.pack("<f", 0.5)
    assert sent["exclude_input_in_output"][2] == b"\x00"
    assert sent["stream"][2] == b"\x01"
    assert json.loads(sent["messages"][2][4:]) == [{"role": "user", "content": "é"}]
    assert request.parameters["timeout"].int64_param == 1_500_000


def test_tensors_are_those_of_the_model():
    config = text_format.Parse(CONFIG.read_text(), model_config_pb2.ModelConfig())
    names = {"TYPE_STRING": "BYTES"}
    kinds = {tensor.name: model_config_pb2.DataType.Name(tensor.data_type) for tensor in config.input}
    assert {name: names.get(kind, kind.removeprefix("TYPE_")) for name, kind in kinds.items()} == TENSORS
    assert set(Parameters.__annotations__) == set(TENSORS) - {"text_input", "messages", "stream"}


def test_several_answers_are_streamed():
    with pytest.raises(InvalidRequest, match="num_return_sequences: several answers are streamed"):
        build_request("A", None, {"num_return_sequences": 2}, stream=False)


def test_parameters_that_are_none_are_left_out():
    assert set(tensors(build_request(b"\xff", None, {"top_k": None}, stream=False))) == {"text_input"}


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"random_seed": -1}, "random_seed"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e300}, "temperature"),
        ({"return_log_probs": 1}, "return_log_probs"),
        ({"stop_words": "one"}, "stop_words"),
        ({"stop_words": [1]}, "stop_words"),
        ({"stop_words": 4}, "stop_words"),
        ({"drafter": "\ud800"}, "drafter"),
        ({"no_such_thing": 1}, "no_such_thing"),
    ],
)
def test_values_that_do_not_fit_name_their_field(parameters, field):
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        build_request("x", None, parameters, stream=True)


@pytest.mark.parametrize(
    ("prompt", "messages", "timeout", "field"),
    [
        (None, None, None, "prompt"),
        ("x", [{"role": "user", "content": "x"}], None, "prompt"),
        (None, [{"role": "user", "content": object()}], None, "messages"),
        (7, None, None, "text_input"),
        ("x", None, 0, "timeout"),
        ("x", None, float("nan"), "timeout"),
    ],
)
def test_prompt_messages_and_timeout_are_checked(prompt, messages, timeout, field):
    with pytest.raises(InvalidRequest, match=f"^{field}"):
        build_request(prompt, messages, {}, stream=True, timeout=timeout)


def test_a_wrong_value_is_refused_before_anything_is_sent():
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest):
        client.stream("x", max_tokens="many")


# ------------------------------------------------------------- responses


def test_a_chunk_of_text_only():
    assert parse_chunk(response(text_output=string("né")).infer_response) == Chunk("né")


def test_a_last_chunk_with_everything():
    message = response(
        text_output=string(""),
        output_ids=struct.pack("<2i", 7, 49151),
        output_log_probs=struct.pack("<2f", -0.5, -0.25),
        cum_log_probs=struct.pack("<f", -0.75),
        **LAST,
    )
    assert parse_chunk(message.infer_response) == Chunk(
        "", (7, 49151), (-0.5, -0.25), -0.75, "stop", prompt_tokens=5, generated_tokens=3
    )


def test_bytes_that_are_no_text_do_not_end_the_stream():
    assert parse_chunk(response(text_output=b"\x01\x00\x00\x00\xff").infer_response).text == "\ufffd"


# --------------------------------------------------------------- streams


class Blocking:
    """An `AsyncStream` behind the interface of `Stream`, so that one test serves both."""

    def __init__(self, call):
        self._stream = AsyncStream(call)

    def __iter__(self):
        return self

    def __next__(self):
        async def one():
            return await self._stream.__anext__()

        try:
            return asyncio.run(one())
        except StopAsyncIteration:
            raise StopIteration from None

    def result(self):
        return asyncio.run(self._stream.result())

    def close(self):
        asyncio.run(self._stream.aclose())

    def __getattr__(self, name):
        return getattr(self._stream, name)


both = pytest.mark.parametrize("kind", [Stream, Blocking])


@both
def test_result_is_the_sum_of_the_chunks(kind):
    call = Call(
        response(text_output=string("He"), output_ids=struct.pack("<2i", 1, 2), cum_log_probs=struct.pack("<f", -1)),
        response(text_output=string("y"), output_ids=struct.pack("<i", 3), cum_log_probs=struct.pack("<f", -3), **LAST),
    )
    stream = kind(call)
    assert next(stream).text == "He"
    assert stream.text == "He"
    result = stream.result()
    assert (result.text, result.token_ids, result.log_probs) == ("Hey", (1, 2, 3), None)
    assert result.cum_log_prob == -3.0
    assert (result.finish_reason, result.prompt_tokens, result.generated_tokens) == ("stop", 5, 3)
    assert len(result.timing.arrivals_s) == 2
    assert list(stream) == []


@both
def test_a_stream_that_ends_early_is_an_error(kind):
    stream = kind(Call(response(text_output=string("He"))))
    next(stream)
    with pytest.raises(ServerError, match="before the last response") as caught:
        next(stream)
    assert caught.value.status == "DATA_LOSS"


@both
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TimedOut),
        (grpc.StatusCode.INTERNAL, ServerError),
    ],
)
def test_a_status_becomes_its_error(kind, code, expected):
    stream = kind(Call(response(text_output=string("a")), Refused(code, "because")))
    assert next(stream).text == "a"
    with pytest.raises(ServerError, match="because") as caught:
        next(stream)
    assert type(caught.value) is expected
    assert caught.value.status == code.name
    assert list(stream) == []


@both
def test_an_error_response_is_raised_and_ends_the_stream(kind):
    stream = kind(Call(service_pb2.ModelStreamInferResponse(error_message="wrong dims")))
    with pytest.raises(ServerError, match="wrong dims") as caught:
        next(stream)
    assert caught.value.status == "UNKNOWN"
    assert list(stream) == []


@both
def test_iterating_after_cancel_says_so(kind):
    stream = kind(Call(response(text_output=string("a"))))
    stream.cancel()
    with pytest.raises(Cancelled):
        next(stream)


@both
def test_cancelling_while_an_error_comes_gives_the_error(kind):
    class CancelledAfterwards(Call):
        """The error is on its way when the client cancels: it is read, and nothing behind it can be."""

        def __next__(self):
            event = super().__next__()
            stream.cancel()
            return event

    stream = kind(CancelledAfterwards(service_pb2.ModelStreamInferResponse(error_message="[UNAVAILABLE] full")))
    with pytest.raises(Unavailable, match="full"):
        stream.result()


@both
def test_close_cancels_and_ends(kind):
    call = Call(response(text_output=string("a")))
    stream = kind(call)
    stream.close()
    assert call.cancelled
    assert list(stream) == []


@both
def test_a_dropped_stream_is_cancelled(kind):
    call = Call(response(text_output=string("a")), response(text_output=string("b")))
    for _ in kind(call):
        break
    assert call.cancelled


def test_cancelling_the_reading_task_is_not_swallowed():
    call = Call()
    call.cancelled = True  # grpc.aio raises CancelledError in the task that reads
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(AsyncStream(call).__anext__())


# ---------------------------------------------------------------- errors


def test_nobody_there_is_told_from_a_full_server():
    assert type(error_from_status("UNAVAILABLE", "failed to connect to all addresses")) is Unreachable
    assert type(error_from_status("UNAVAILABLE", "the queue is full")) is Unavailable
    assert type(error_from_message("Request for unknown model: 'generate' is not found")) is Unavailable


@both
@pytest.mark.parametrize(
    ("message", "expected", "text"),
    [
        ("[INVALID_ARG] top_p: is 2.0", InvalidRequest, "top_p: is 2.0"),
        ("[UNSUPPORTED] beam_width: only 1", Unsupported, "beam_width: only 1"),
        ("[UNAVAILABLE] the queue is full", Unavailable, "the queue is full"),
        ("[CANCELLED] gone", Cancelled, "gone"),
        ("[INTERNAL] broken", ServerError, "broken"),
    ],
)
def test_the_code_in_a_message_becomes_its_error(kind, message, expected, text):
    stream = kind(Call(service_pb2.ModelStreamInferResponse(error_message=message)))
    with pytest.raises(ServerError) as caught:
        next(stream)
    assert type(caught.value) is expected
    assert caught.value.message == text
    assert caught.value.status != "UNKNOWN"


def test_no_server():
    with Client("127.0.0.1:1") as client:
        for ask in (lambda: client.generate("x"), client.server_ready, client.models):
            with pytest.raises(Unreachable):
                ask()


def test_no_server_async():
    async def ask():
        async with AsyncClient("127.0.0.1:1") as client:
            await client.generate("x")

    with pytest.raises(Unreachable):
        asyncio.run(ask())


# ---------------------------------------------------------------- timing


def test_timing():
    timing = Timing(started=0.0, ttft_s=0.5, arrivals_s=[0.5, 0.75, 2.0], generated_tokens=4)
    assert timing.total_s == 2.0
    assert timing.tokens_per_s == 2.0
    assert timing.inter_token_s == [0.25, 1.25]
    assert Timing().tokens_per_s is None


def test_affinity_is_a_header_that_any_text_fits_in():
    assert metadata(None) is None
    ((name, value),) = metadata("Gespräch\n1")
    assert name == name.lower() == AFFINITY_HEADER
    assert value.isascii()
    assert value.isalnum()
    assert metadata("Gespräch\n1") == ((name, value),)
    assert metadata("another") != ((name, value),)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNKNOWN, "Stream removed (Data frame with END_STREAM flag received)", Unavailable),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", Unavailable),
        (grpc.StatusCode.UNKNOWN, "something else", ServerError),
    ],
)
def test_a_stream_that_breaks_off_is_unavailable(code, details, kind):
    error = error_from_rpc(Refused(code, details))
    assert type(error) is kind
    assert details in str(error)
