"""Every field of a request: its default, its range, and an error that names it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import InvalidRequest, RequestError, Unsupported
from tandem.request import (
    MAX_SALT_BYTES,
    MAX_WORD_BYTES,
    MAX_WORDS,
    GenerateRequest,
    parse_request,
)

MAX_PROMPT_BYTES = 1000
INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)


def parse(**fields: Any) -> GenerateRequest:
    """Parse a request with a valid prompt unless another is given; None leaves a field out."""
    given_fields = {"text_input": b"Hello"} | fields
    tensors = {
        name: value if isinstance(value, list) else [value] for name, value in given_fields.items() if value is not None
    }
    return parse_request(tensors, MAX_PROMPT_BYTES)


def chat(*messages: Any) -> GenerateRequest:
    return parse(text_input=None, messages=json.dumps(messages).encode())


def refusal(kind: type[RequestError] = InvalidRequest, /, **fields: Any) -> str:
    """The message with which a request is refused."""
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert type(caught.value) is kind
    return str(caught.value)


def test_defaults():
    request = parse()
    assert isinstance(request.random_seed, int)
    assert dataclasses.replace(request, random_seed=0) == GenerateRequest(
        text_input="Hello",
        messages=None,
        max_tokens=None,
        min_length=0,
        stream=False,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        random_seed=0,
        is_deterministic=True,
        num_return_sequences=1,
        stop_words=(),
        bad_words=(),
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        exclude_input_in_output=True,
        return_log_probs=False,
        return_token_ids=False,
        priority=0,
        cache_salt="",
        cache_priority=50,
        cache_pin=False,
        cache_skip=False,
        num_draft_tokens=None,
        drafter="auto",
    )


def test_every_field_is_read():
    fields = {
        "text_input": "héllo ",
        "max_tokens": 7,
        "min_length": 3,
        "stream": True,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.25,
        "min_p": 0.125,
        "random_seed": 2**64 - 1,
        "num_return_sequences": 3,
        "repetition_penalty": 1.5,
        "presence_penalty": -2.0,
        "frequency_penalty": 0.5,
        "exclude_input_in_output": False,
        "return_log_probs": True,
        "return_token_ids": True,
        "priority": 100,
        "cache_salt": "tenant",
        "cache_priority": 90,
        "cache_pin": True,
        "cache_skip": True,
        "num_draft_tokens": 4,
        "drafter": "none",
    }
    sent = {name: value.encode() if isinstance(value, str) else value for name, value in fields.items()}
    request = parse(**sent, stop_words=[b"a", b"b"], bad_words=[b"c"])
    read = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    assert read == fields | {"messages": None, "is_deterministic": True, "stop_words": ("a", "b"), "bad_words": ("c",)}


def test_without_a_seed_every_request_has_its_own():
    assert len({parse().random_seed for _ in range(20)}) == 20


# name -> accepted values, refused values
RANGES: dict[str, tuple[list[float], list[float]]] = {
    "max_tokens": ([1, INT32_MAX], [0, -1, INT32_MIN]),
    "min_length": ([0, 1, INT32_MAX], [-1, INT32_MIN]),
    "temperature": ([0.0, 1e-45, 1.0, 3e38], [-1e-6, -1.0]),
    "top_k": ([0, 1, INT32_MAX], [-1]),
    "top_p": ([0.0, 0.5, 1.0], [-0.01, 1.01]),
    "min_p": ([0.0, 0.5, 1.0], [-0.01, 1.01]),
    "repetition_penalty": ([1e-3, 1.0, 100.0], [0.0, -1.0, 100.5]),
    "presence_penalty": ([-100.0, 0.0, 100.0], [-100.5, 100.5]),
    "frequency_penalty": ([-100.0, 0.0, 100.0], [-100.5, 100.5]),
    "priority": ([0, 100], [-1, 101]),
    "cache_priority": ([0, 100], [-1, 101]),
    "num_draft_tokens": ([0, 8], [-1]),
}
FLOATS = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]


@pytest.mark.parametrize("name", RANGES)
def test_ranges(name):
    accepted, refused = RANGES[name]
    for value in accepted:
        assert getattr(parse(**{name: value}), name) == value
    for value in refused:
        assert refusal(**{name: value}).startswith(f"{name}: is {value}; it must be ")


@pytest.mark.parametrize("name", [*FLOATS, "length_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(name, value):
    assert refusal(**{name: value}) == f"{name}: is {value}; it must be a finite number"


@pytest.mark.parametrize(
    "name", [*RANGES, "text_input", "stream", "random_seed", "drafter", "cache_salt", "beam_width"]
)
@pytest.mark.parametrize("count", [0, 2])
def test_one_value_each(name, count):
    value = b"auto" if name in ("text_input", "drafter", "cache_salt") else 1
    assert refusal(**{name: [value] * count}) == f"{name}: has {count} values; give one"


def test_an_answer_is_deterministic_if_it_is_greedy_or_has_a_seed():
    assert parse().is_deterministic
    assert not parse(temperature=0.5).is_deterministic
    assert parse(temperature=0.5, random_seed=3).is_deterministic


def test_several_answers_need_a_temperature():
    assert parse(num_return_sequences=64, temperature=0.1).num_return_sequences == 64
    assert (
        refusal(num_return_sequences=65, temperature=0.1) == "num_return_sequences: is 65; it must be between 1 and 64"
    )
    assert refusal(num_return_sequences=0) == "num_return_sequences: is 0; it must be between 1 and 64"
    assert refusal(num_return_sequences=2).startswith("num_return_sequences: greedy answers are all the same")


def test_min_length_may_not_exceed_max_tokens():
    assert parse(max_tokens=5, min_length=5).min_length == 5
    assert refusal(max_tokens=5, min_length=6) == "min_length: 6 is more than max_tokens, 5"


def test_what_this_server_cannot_do_is_unsupported():
    assert parse(beam_width=1, length_penalty=1.0)
    for value in (0, 2, -1):
        assert refusal(Unsupported, beam_width=value).startswith("beam_width: ")
    for penalty in (0.0, 0.5, 2.0):
        assert refusal(Unsupported, length_penalty=penalty).startswith("length_penalty: ")


def test_drafter():
    assert parse(drafter=b"").drafter == "auto"
    for name in ("auto", "none", "suffix", "draft"):
        assert parse(drafter=name.encode()).drafter == name
    with pytest.raises(Unsupported, match="drafter: 'draft' is not available on this server; use auto, none"):
        parse_request({"text_input": [b"One"], "drafter": [b"draft"]}, 100, ["auto", "none"])
    assert refusal(drafter=b"magic").startswith("drafter: 'magic' is not one of auto, none,")
    assert refusal(drafter=b"x" * 65).startswith("drafter: has 65 bytes")


def test_prompt_is_exactly_one_of_text_and_messages():
    wanted = "text_input, messages: give exactly one of the two"
    assert refusal(text_input=None) == wanted
    assert refusal(messages=b'[{"role": "user", "content": "x"}]') == wanted
    assert refusal(text_input=b"").startswith("text_input: is empty")


def test_texts_are_bounded_in_bytes():
    assert parse(text_input="é".encode() * (MAX_PROMPT_BYTES // 2)).text_input == "é" * (MAX_PROMPT_BYTES // 2)
    long = "é".encode() * (MAX_PROMPT_BYTES // 2) + b"x"
    assert refusal(text_input=long) == "text_input: has 1001 bytes; at most 1000 are allowed"
    assert refusal(text_input=None, messages=long) == "messages: has 1001 bytes; at most 1000 are allowed"
    assert parse(cache_salt=b"s" * MAX_SALT_BYTES).cache_salt == "s" * MAX_SALT_BYTES
    assert refusal(cache_salt=b"s" * (MAX_SALT_BYTES + 1)).startswith("cache_salt: has 257 bytes")


@pytest.mark.parametrize("name", ["text_input", "messages", "stop_words", "bad_words", "cache_salt", "drafter"])
def test_text_must_be_utf8(name):
    fields = {name: b"ab\xff"}
    if name == "messages":
        fields["text_input"] = None
    assert refusal(**fields) == f"{name}: is not valid UTF-8 at byte 2"


@pytest.mark.parametrize("name", ["stop_words", "bad_words"])
def test_words(name):
    words = getattr(parse(**{name: [b"", b"b", b"", b"a", b"b"]}), name)
    assert words == ("b", "a"), "empty ones are passed over, the rest keeps its order without repetition"
    most = [f"{index}".encode() for index in range(MAX_WORDS)]
    assert len(getattr(parse(**{name: most}), name)) == MAX_WORDS
    assert refusal(**{name: [*most, b"x"]}) == f"{name}: has {MAX_WORDS + 1} entries; at most {MAX_WORDS} are allowed"
    assert getattr(parse(**{name: b"x" * MAX_WORD_BYTES}), name) == ("x" * MAX_WORD_BYTES,)
    assert refusal(**{name: b"x" * (MAX_WORD_BYTES + 1)}).startswith(f"{name}: has 257 bytes")


def test_messages():
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "hé \N{PILE OF POO}"}]
    assert chat(*messages).messages == tuple(messages)
    assert chat(*messages).text_input is None


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("{", "messages: is not valid JSON: "),
        ("[] x", "messages: is not valid JSON: "),
        ("[" * 900, "messages: is not valid JSON: "),
        ("9" * 900, "messages: must be a JSON list"),
        ("NaN", "messages: must be a JSON list"),
        ("[]", "messages: must be a JSON list"),
        ("{}", "messages: must be a JSON list"),
        ('["hello"]', "messages[0]: must be an object"),
        ('[{"role": "user", "content": "x"}, null]', "messages[1]: must be an object"),
        ('[{"role": "user", "content": "x", "name": "y"}]', "messages[0]: unknown key 'name'"),
        ('[{"role": "user"}]', "messages[0].content: must be a string"),
        ('[{"content": "x"}]', "messages[0].role: must be a string"),
        ('[{"role": null, "content": "x"}]', "messages[0].role: must be a string"),
        ('[{"role": "user", "content": ["x"]}]', "messages[0].content: must be a string"),
        ('[{"role": "user", "content": "\\ud800"}]', "messages[0].content: holds a lone surrogate"),
        ('[{"role": "\\udfff", "content": "x"}]', "messages[0].role: holds a lone surrogate"),
    ],
)
def test_malformed_messages(text, start):
    assert refusal(text_input=None, messages=text.encode()).startswith(start)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000])
def test_messages_that_exhaust_the_json_parser(text):
    """The prompt limit of a real server lets these through."""
    with pytest.raises(InvalidRequest, match=r"^messages: is not valid JSON: "):
        parse_request({"messages": [text.encode()]}, 1 << 20)


def test_paired_surrogates_are_text():
    request = parse(text_input=None, messages=rb'[{"role": "user", "content": "\ud83d\ude00"}]')
    assert request.messages == ({"role": "user", "content": "\N{GRINNING FACE}"},)


# What Triton can hand over for each data type.
_VALUES = {
    "BYTES": st.binary(max_size=300) | st.text(max_size=80).map(str.encode),
    "INT32": st.integers(INT32_MIN, INT32_MAX) | st.integers(-3, 130),
    "UINT64": st.integers(0, 2**64 - 1),
    "FP32": st.floats(width=32) | st.floats(-2, 2, width=32),
    "BOOL": st.booleans(),
}
_TYPES = {
    "BYTES": ["text_input", "messages", "stop_words", "bad_words", "cache_salt", "drafter"],
    "INT32": ["max_tokens", "min_length", "top_k", "beam_width", "num_draft_tokens", "priority"],
    "UINT64": ["random_seed"],
    "FP32": [*FLOATS, "length_penalty"],
    "BOOL": ["stream", "exclude_input_in_output", "return_log_probs", "return_token_ids"],
}
NAMES = [name for names in _TYPES.values() for name in names]
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: st.lists(_VALUES[kind], min_size=1, max_size=1) | st.lists(_VALUES[kind], max_size=70)
        for kind, names in _TYPES.items()
        for name in names
    },
)


@given(fields=_FIELDS)
def test_any_tensors_give_a_request_or_an_error_that_names_a_field(fields):
    """Nothing else may come out: another exception would reach the client as an internal error."""
    request = None
    try:
        request = parse_request(fields, MAX_PROMPT_BYTES)
    except (InvalidRequest, Unsupported) as error:
        named = re.split("[:,[]", str(error))[0]
    if request is None:
        assert named in NAMES
        return
    assert (request.text_input is None) != (request.messages is None)
    assert all(math.isfinite(getattr(request, name)) for name in FLOATS)
    for name, (_, refused) in RANGES.items():
        assert getattr(request, name) not in refused
    assert request.max_tokens is None or request.min_length <= request.max_tokens


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=_JSON)
def test_any_json_gives_messages_or_an_error_that_names_them(value):
    text = json.dumps(value).encode()
    request = None
    try:
        request = parse_request({"messages": [text]}, 1 << 20)
    except InvalidRequest as error:
        message = str(error)
    if request is None:
        assert message.startswith("messages")
        return
    assert request.messages == tuple(value)
    assert all(set(message) == {"role", "content"} for message in value)
