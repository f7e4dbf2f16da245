"""Malformed requests, drawn from a seed: what is wrong is known, the rest of each request is valid and random."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from client.request import TENSORS

BY_TRITON = None  # refused before the model sees it, with Triton's own message
INVALID, UNSUPPORTED = "INVALID_ARG", "UNSUPPORTED"


@dataclass(frozen=True)
class Case:
    """One malformed request and what must be said about it."""

    name: str
    message: service_pb2.ModelInferRequest
    code: str | None  # as in the brackets in front of the model's messages, or BY_TRITON
    field: str  # what the message must name; "" where Triton's own message names nothing


class Request:
    """A `generate` request whose tensors may contradict each other."""

    def __init__(self, rng: random.Random) -> None:
        self.tensors: dict[str, tuple[str, list[int], bytes]] = {}
        self.message = service_pb2.ModelInferRequest(model_name="generate", id=f"fuzz-{rng.randrange(10**6)}")
        self.set("text_input", rng.choice(["Hello", "Once upon a time", "x", "é ü 漢字", "\n\n"]))
        self.set("max_tokens", rng.randint(1, 8))
        optional = {
            "stream": rng.choice([True, False]),
            "temperature": rng.choice([0.0, 0.7, 2.0]),
            "top_k": rng.choice([0, 1, 50]),
            "top_p": rng.choice([0.1, 1.0]),
            "random_seed": rng.getrandbits(64),
            "return_log_probs": True,
            "priority": rng.randint(0, 100),
            "cache_salt": "salt",
        }
        for name in rng.sample(sorted(optional), rng.randint(0, 4)):
            self.set(name, optional[name])

    def set(self, name: str, *values: Any, kind: str | None = None, shape: list[int] | None = None) -> None:
        """Give a tensor these values; its type and shape are right unless others are given."""
        kind = kind or TENSORS[name]
        raw = b"".join(_pack(kind, value) for value in values)
        self.tensors[name] = kind, [1, len(values)] if shape is None else shape, raw

    def build(self) -> service_pb2.ModelInferRequest:
        for name, (kind, shape, raw) in self.tensors.items():
            self.message.inputs.add(name=name, datatype=kind, shape=shape)
            self.message.raw_input_contents.append(raw)
        return self.message


_LAYOUTS = {"INT32": "<i", "INT64": "<q", "UINT64": "<Q", "FP32": "<f", "FP64": "<d", "BOOL": "<?"}


def _pack(kind: str, value: Any) -> bytes:
    if kind == "BYTES":
        data = value.encode() if isinstance(value, str) else value
        return struct.pack("<I", len(data)) + data
    return struct.pack(_LAYOUTS[kind], value)


def valid_case(seed: int) -> Case:
    """A request that is in order, dressed up as a malformed one: it must be noticed."""
    return Case("valid", Request(random.Random(seed)).build(), INVALID, "text_input")


def malformed_cases(seed: int, count: int) -> Iterator[Case]:
    """`count` requests: every kind in turn, until there are enough."""
    rng = random.Random(seed)
    kinds = [_number, _text, _messages, _lengths, _words, _tensor, _unsupported, _number, _envelope]
    for index in range(count):
        request = Request(rng)
        name, code, field = kinds[index % len(kinds)](rng, request)
        yield Case(f"{index}: {name}", request.build(), code, field)


Wrong = tuple[str, str | None, str]  # what was done, the expected code, the field to be named


def _number(rng: random.Random, request: Request) -> Wrong:
    not_finite = [float("nan"), float("inf"), float("-inf")]
    out_of_range = {
        "temperature": [-1.0, -1e-3],
        "top_p": [-0.1, 1.5],
        "min_p": [-0.1, 1.5],
        "repetition_penalty": [0.0, -1.0, 1e6],
        "presence_penalty": [-101.0, 1e6],
        "frequency_penalty": [-101.0, 1e6],
        "length_penalty": [],
        "max_tokens": [0, -1, -(2**31), 8193, 2**31 - 1],
        "min_length": [-1, -(2**31)],
        "top_k": [-1, -(2**31)],
        "priority": [-1, 101, 2**31 - 1],
        "num_draft_tokens": [-1, -(2**31)],
    }
    name = rng.choice(sorted(out_of_range))
    value = rng.choice(out_of_range[name] + (not_finite if TENSORS[name] == "FP32" else []))
    request.set(name, value)
    return f"{name}={value}", INVALID, name


def _text(rng: random.Random, request: Request) -> Wrong:
    name = rng.choice(["text_input", "cache_salt", "drafter"])
    long = {"text_input": 600_000, "cache_salt": 257, "drafter": 65}[name]
    values: dict[str, bytes] = {
        "lone continuation byte": b"ab\x80cd",
        "cut-off character": "漢".encode()[:2],
        "overlong encoding": b"\xc0\xaf",
        "surrogate": b"\xed\xa0\x80",
        "random bytes": b"\xff" + rng.randbytes(50),
        "too long": b"x" * long,
    }
    if name == "text_input":
        values |= {"empty": b"", "beyond the context": b"word " * 9000}
    elif name == "drafter":
        values["unknown"] = b"magic"
    what = rng.choice(sorted(values))
    request.set(name, values[what])
    return f"{name}: {what}", INVALID, name


def _messages(rng: random.Random, request: Request) -> Wrong:
    message = {"role": "user", "content": "Hello"}
    nested = rng.randint(2_000, 100_000)
    texts = {
        "cut off": json.dumps([message])[: -rng.randint(1, 30)],
        "trailing text": "[] []",
        "single quotes": "[{'role': 'user', 'content': 'x'}]",
        "deeply nested list": "[" * nested + "]" * nested,
        "deeply nested object": '{"a":' * nested,
        "long number": "[" + "9" * 10_000 + "]",
        "NaN": "[NaN]",
        "empty list": "[]",
        "object": json.dumps(message),
        "null": "null",
        "list of strings": '["Hello"]',
        "no content": '[{"role": "user"}]',
        "no role": '[{"content": "x"}]',
        "content of numbers": '[{"role": "user", "content": [1, 2]}]',
        "role null": '[{"role": null, "content": "x"}]',
        "unknown key": json.dumps([message, message | {"tool_calls": []}]),
        "lone surrogate": '[{"role": "user", "content": "\\ud800"}]',
        "lone surrogate in role": '[{"role": "\\udc00", "content": "x"}]',
        "random text": "".join(chr(rng.randrange(0x100, 0xD800)) for _ in range(50)),
        "beyond the context": json.dumps([message | {"content": "word " * 9000}]),
    }
    what = rng.choice(sorted(texts))
    del request.tensors["text_input"]
    request.set("messages", texts[what])
    return f"messages: {what}", INVALID, "messages"


def _lengths(rng: random.Random, request: Request) -> Wrong:
    what = rng.choice(["min_length above max_tokens", "no room", "both prompts", "no prompt"])
    if what == "min_length above max_tokens":
        request.set("max_tokens", 5)
        request.set("min_length", rng.choice([6, 2**31 - 1]))
        return what, INVALID, "min_length"
    if what == "no room":
        request.set("text_input", "word " * 500)
        request.set("max_tokens", 8000)
        return what, INVALID, "max_tokens"
    if what == "both prompts":
        request.set("messages", '[{"role": "user", "content": "x"}]')
    else:
        del request.tensors["text_input"]
    return what, INVALID, "text_input, messages"


def _words(rng: random.Random, request: Request) -> Wrong:
    name = rng.choice(["stop_words", "bad_words"])
    lists: dict[str, list[str | bytes]] = {
        "too many": [f"word {index}" for index in range(65)],
        "too long": ["short", "x" * 257],
        "not UTF-8": ["fine", b"\xff\xfe"],
    }
    what = rng.choice(sorted(lists))
    request.set(name, *lists[what])
    return f"{name}: {what}", INVALID, name


def _unsupported(rng: random.Random, request: Request) -> Wrong:
    values = {"beam_width": [0, 2, -1, 2**31 - 1], "length_penalty": [0.0, 2.0, -1.0]}
    name = rng.choice(sorted(values))
    value = rng.choice(values[name])
    request.set(name, value)
    return f"{name}={value}", UNSUPPORTED, name


def _tensor(rng: random.Random, request: Request) -> Wrong:
    """Shapes, types and bytes that contradict the model's configuration; Triton names the tensor."""
    name = rng.choice([name for name in request.tensors if name not in ("stop_words", "bad_words")])
    kind, shape, raw = request.tensors[name]
    damages: dict[str, tuple[str, list[int], bytes]] = {
        "other type": ("INT64", shape, raw),
        "no such type": ("FLOAT8", shape, raw),
        "two values": (kind, [1, 2], raw * 2),
        "batch of two": (kind, [2, 1], raw * 2),
        "no batch dimension": (kind, [1], raw),
        "three dimensions": (kind, [1, 1, 1], raw),
        "empty shape": (kind, [], raw),
        "negative dimension": (kind, [1, -1], raw),
        "nothing in it": (kind, [1, 1], b""),
        "cut off": (kind, shape, raw[:-1]),
        "too much in it": (kind, shape, raw + raw),
        "huge dimension": (kind, [1, 2**40], raw),
    }
    if kind == "BYTES":
        damages["length beyond the data"] = (kind, shape, struct.pack("<I", 2**32 - 1) + raw[4:])
        damages["half a length"] = (kind, shape, raw[:2])
    what = rng.choice(sorted(damages))
    request.tensors[name] = damages[what]
    # A batch of two is refused as such; where it contradicts the other tensors, the first one may be named.
    return f"{name}: {what}", BY_TRITON, "" if what == "batch of two" else name


def _envelope(rng: random.Random, request: Request) -> Wrong:
    """What stands around the tensors."""
    message = request.message
    changes: dict[str, tuple[Callable[[], object], str]] = {
        "unknown tensor": (lambda: request.tensors.update(prompt=("BYTES", [1, 1], _pack("BYTES", "x"))), "prompt"),
        "same tensor twice": (lambda: _add_input(message, "max_tokens"), "max_tokens"),
        "no tensors": (request.tensors.clear, ""),
        "unknown model": (lambda: setattr(message, "model_name", "generat"), "generat"),
        "unknown version": (lambda: setattr(message, "model_version", "7"), "7"),
        "unknown output": (lambda: message.outputs.add(name="text"), "text"),
        "timeout of text": (lambda: setattr(message.parameters["timeout"], "string_param", "soon"), "timeout"),
        "negative priority": (lambda: setattr(message.parameters["priority"], "int64_param", -1), "priority"),
        "unknown shared memory": (lambda: _use_shared_memory(message), "nowhere"),
        "typed and raw contents": (lambda: _add_typed(message), "top_k"),
    }
    what = rng.choice(sorted(changes))
    change, field = changes[what]
    change()
    return what, BY_TRITON, field


def _add_input(message: service_pb2.ModelInferRequest, name: str) -> None:
    message.inputs.add(name=name, datatype=TENSORS[name], shape=[1, 1])
    message.raw_input_contents.append(b"\1\0\0\0")


def _use_shared_memory(message: service_pb2.ModelInferRequest) -> None:
    tensor = message.inputs.add(name="stop_words", datatype="BYTES", shape=[1, 1])
    tensor.parameters["shared_memory_region"].string_param = "nowhere"
    tensor.parameters["shared_memory_byte_size"].int64_param = 64


def _add_typed(message: service_pb2.ModelInferRequest) -> None:
    tensor = message.inputs.add(name="top_k", datatype="INT32", shape=[1, 1])
    tensor.contents.int_contents.append(1)


@dataclass(frozen=True)
class HttpCase:
    """One malformed HTTP request; each must be answered with a status of 400 or more."""

    name: str
    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    field: str = ""  # what the message must name, if the model sees the request


def valid_http_case() -> HttpCase:
    """A request that is in order: it must be noticed."""
    return HttpCase("valid", "POST", _GENERATE, b'{"text_input": "Hello", "max_tokens": 2}')


_GENERATE = "/v2/models/generate/generate"


def malformed_http_cases(seed: int, count: int) -> Iterator[HttpCase]:
    """`count` requests: every kind in turn, until there are enough."""
    rng = random.Random(seed)
    kinds = [_http_value, _http_type, _http_body, _http_target]
    for index in range(count):
        valid = {"text_input": "Hello", "max_tokens": rng.randint(1, 8), "temperature": rng.choice([0, 0.5])}
        yield kinds[index % len(kinds)](rng, valid, _GENERATE + rng.choice(["", "_stream"]))


def _http_value(rng: random.Random, valid: dict[str, Any], path: str) -> HttpCase:
    """The model names the field."""
    values: dict[str, list[Any]] = {
        "text_input": ["", "word " * 9000],
        "messages": ["{", "[]", '[{"role": "user"}]', "[" * 50_000],
        "max_tokens": [0, -1, 8193, 99999999999],
        "temperature": [-1, 1e39, float("nan"), float("inf")],
        "top_p": [2, -0.5],
        "beam_width": [2],
        "drafter": ["magic"],
        "stop_words": [["x"] * 65, ["x" * 300]],
        "timeout": [-1, "soon"],
    }
    name = rng.choice(sorted(values))
    value = rng.choice(values[name])
    if name == "messages":
        del valid["text_input"]
    body = json.dumps(valid | {name: value}).encode()
    return HttpCase(f"{name}={str(value)[:20]}", "POST", path, body, field=name)


def _http_type(rng: random.Random, valid: dict[str, Any], path: str) -> HttpCase:
    """JSON types that Triton cannot turn into the tensor's type."""
    name, value = rng.choice(
        [
            ("text_input", 3), ("text_input", None), ("text_input", ["a", "b"]), ("text_input", {"a": 1}),
            ("messages", [{"role": "user", "content": "x"}]), ("max_tokens", "3"), ("max_tokens", 1.5),
            ("max_tokens", [1, 2]), ("temperature", "hot"), ("stream", "yes"), ("stream", 1), ("stop_words", 3),
            ("stop_words", [1]), ("random_seed", -1), ("random_seed", 2**64), ("parameters", 3), ("id", 3),
        ]
    )  # fmt: skip
    body = json.dumps(valid | {name: value}).encode()
    return HttpCase(f"{name}={value}", "POST", path, body)


def _http_body(rng: random.Random, valid: dict[str, Any], path: str) -> HttpCase:
    whole = json.dumps(valid).encode()
    bodies: dict[str, bytes] = {
        "cut off": whole[: rng.randrange(len(whole))],
        "empty": b"",
        "not JSON": rng.randbytes(100),
        "zeros": b"\0" * 100,
        "a list": b"[" + whole + b"]",
        "null": b"null",
        "deeply nested": b"[" * 50_000,
        "lone surrogate": b'{"text_input": "\\ud800"}',
        "Latin-1": b'{"text_input": "\xe9"}',
        "same field twice": b'{"text_input": "x", "text_input": "y"}',
    }
    what = rng.choice(sorted(bodies))
    return HttpCase(what, "POST", path, bodies[what])


def _http_target(rng: random.Random, valid: dict[str, Any], path: str) -> HttpCase:
    """Wrong addresses, methods and headers."""
    body = json.dumps(valid).encode()
    return rng.choice(
        [
            HttpCase("unknown model", "POST", "/v2/models/nobody/generate", body),
            HttpCase("unknown version", "POST", "/v2/models/generate/versions/9/generate", body),
            HttpCase("unknown endpoint", "POST", "/v2/models/generate/degenerate", body),
            HttpCase("unknown path", "GET", "/favicon.ico", b""),
            HttpCase("GET", "GET", path, b""),
            HttpCase("PUT", "PUT", path, body),
            HttpCase("infer on a decoupled model", "POST", "/v2/models/generate/infer", b'{"inputs": []}'),
            HttpCase("unknown encoding", "POST", path, body, (("Content-Encoding", "gzip"),)),
        ]
    )
