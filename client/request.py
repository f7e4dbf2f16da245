"""A request of the `generate` model as a protobuf message. Only the fields that are given are sent."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from tritonclient.grpc import service_pb2

from client.errors import InvalidRequest

Message = Mapping[str, str]  # {"role": "user", "content": "..."}


class Parameters(TypedDict, total=False):
    """What a request may set. The server's own defaults hold for what is left out.

    Penalties, `top_k` and the like follow the TensorRT-LLM ensemble's names and meanings.
    """

    max_tokens: int  # most tokens to generate
    min_length: int  # no end before this many tokens
    temperature: float  # 0 is greedy
    top_k: int  # 0 is off
    top_p: float  # 1 is off
    min_p: float  # 0 is off
    random_seed: int  # 0 .. 2**64 - 1; the same seed gives the same tokens
    num_return_sequences: int  # answers to one prompt; answer i is the one that random_seed + i gives
    stop_words: Sequence[str]  # the text ends before the first of these
    bad_words: Sequence[str]  # never generated
    repetition_penalty: float  # 1 is off
    presence_penalty: float  # 0 is off
    frequency_penalty: float  # 0 is off
    exclude_input_in_output: bool  # False repeats the prompt before the answer
    return_log_probs: bool
    return_token_ids: bool
    beam_width: int  # only 1
    length_penalty: float  # only 1
    num_draft_tokens: int  # speculation: most tokens drafted in a cycle, 0 is off
    drafter: str  # speculation: auto, none, suffix, draft
    priority: int  # 0 .. 100, higher runs first
    cache_salt: str  # requests with different salts never share cached prefixes
    cache_priority: int  # 0 .. 100 (50): how long the K and V of this request are kept for others
    cache_pin: bool  # keep those of the prompt until the cache is reset
    cache_skip: bool  # compute all of the prompt, and keep nothing of this request


def _integer(layout: str) -> Callable[[Any], bytes]:
    def pack(value: Any) -> bytes:
        if isinstance(value, bool):
            raise TypeError("is a bool")
        return struct.pack(layout, value)

    return pack


def _boolean(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise TypeError("is not a bool")
    return struct.pack("<?", value)


def _bytes(value: Any) -> bytes:
    data = value.encode() if isinstance(value, str) else bytes(memoryview(value))
    return struct.pack("<I", len(data)) + data


# Triton data type -> (packer of one element, what the element must be)
_PACKERS: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "INT32": (_integer("<i"), "an integer of 32 bits"),
    "UINT64": (_integer("<Q"), "an integer from 0 to 2**64 - 1"),
    "FP32": (lambda value: struct.pack("<f", value), "a number"),
    "BOOL": (_boolean, "True or False"),
    "BYTES": (_bytes, "a string of valid text, or bytes"),
}

TENSORS: dict[str, str] = {
    "text_input": "BYTES",
    "messages": "BYTES",
    "stream": "BOOL",
    "max_tokens": "INT32",
    "min_length": "INT32",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "min_p": "FP32",
    "random_seed": "UINT64",
    "num_return_sequences": "INT32",
    "stop_words": "BYTES",
    "bad_words": "BYTES",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "exclude_input_in_output": "BOOL",
    "return_log_probs": "BOOL",
    "return_token_ids": "BOOL",
    "beam_width": "INT32",
    "length_penalty": "FP32",
    "num_draft_tokens": "INT32",
    "drafter": "BYTES",
    "priority": "INT32",
    "cache_salt": "BYTES",
    "cache_priority": "INT32",
    "cache_pin": "BOOL",
    "cache_skip": "BOOL",
}
_LISTS = ("stop_words", "bad_words")


def build_request(
    prompt: str | bytes | None,
    messages: Sequence[Message] | None,
    parameters: Parameters,
    *,
    stream: bool,
    timeout: float | None = None,
    model: str = "generate",
) -> service_pb2.ModelInferRequest:
    """Build the message for one request.

    Every tensor has shape [1, 1], `stop_words` and `bad_words` [1, n]; parameters that are None are left out.

    Args:
        prompt: raw text; bytes are sent as they are.
        messages: a chat instead of a prompt; the server applies the model's template.
        parameters: what to set.
        stream: whether the server answers as it goes, or once at the end.
        timeout: seconds after which the server drops the request.
        model: name of the model.

    Raises:
        InvalidRequest: both or neither of prompt and messages, several answers in one response, an unknown
            parameter, or a value that does not fit its tensor's type. Ranges are checked by the server.
    """
    if (prompt is None) == (messages is None):
        raise InvalidRequest("prompt, messages: give exactly one of the two", "INVALID_ARGUMENT")
    if not stream and (parameters.get("num_return_sequences") or 1) != 1:
        raise InvalidRequest("num_return_sequences: several answers are streamed; use `samples`", "INVALID_ARGUMENT")
    if timeout is not None and not timeout > 0:
        raise InvalidRequest(f"timeout: is {timeout}; it must be above 0 seconds", "INVALID_ARGUMENT")
    request = service_pb2.ModelInferRequest(model_name=model)
    if prompt is not None:
        _add(request, "text_input", prompt)
    else:
        _add(request, "messages", _chat_json(messages))
    if stream:
        _add(request, "stream", True)
    for name, value in parameters.items():
        if value is not None:
            _add(request, name, value)
    if timeout is not None:
        request.parameters["timeout"].int64_param = max(1, round(timeout * 1e6))  # microseconds
    return request


def _chat_json(messages: Sequence[Message] | None) -> str:
    try:
        return json.dumps(messages, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"messages: {error}", "INVALID_ARGUMENT") from None


def _add(request: service_pb2.ModelInferRequest, name: str, value: Any) -> None:
    if name not in TENSORS:
        raise InvalidRequest(f"{name}: no such parameter", "INVALID_ARGUMENT")
    pack, wanted = _PACKERS[TENSORS[name]]
    try:
        if name in _LISTS:
            if isinstance(value, (str, bytes)):
                raise TypeError("is one string")
            wanted = "a list of strings"
            elements = [pack(element) for element in value]
        else:
            elements = [pack(value)]
    except (TypeError, ValueError, OverflowError, struct.error):
        raise InvalidRequest(f"{name}: is {_short(value)}; it must be {wanted}", "INVALID_ARGUMENT") from None
    request.inputs.add(name=name, datatype=TENSORS[name], shape=(1, len(elements)))
    request.raw_input_contents.append(b"".join(elements))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."
