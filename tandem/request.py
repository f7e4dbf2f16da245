"""One request of `generate`: from raw fields to checked values. Every message names the field that is wrong."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.errors import InvalidRequest, Unsupported
from tandem.step import DRAFTERS

MAX_WORDS = 64  # stop words or bad words in a request
MAX_WORD_BYTES = 256
MAX_SALT_BYTES = 256
MAX_PRIORITY = 100
MAX_SEQUENCES = 64  # answers to one request
CACHE_PRIORITY = 50  # of requests that ask for none

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """The checked fields of one request; lengths are in tokens."""

    text_input: str | None
    messages: tuple[Message, ...] | None  # exactly one of the two is given
    max_tokens: int | None
    min_length: int
    stream: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    random_seed: int
    is_deterministic: bool  # asked again, it must give the same answer
    num_return_sequences: int
    stop_words: tuple[str, ...]
    bad_words: tuple[str, ...]
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    exclude_input_in_output: bool
    return_log_probs: bool
    return_token_ids: bool
    priority: int
    cache_salt: str
    cache_priority: int
    cache_pin: bool
    cache_skip: bool
    num_draft_tokens: int | None
    drafter: str


def parse_request(
    fields: Mapping[str, Sequence[Any]], max_prompt_bytes: int, drafters: Sequence[str] = DRAFTERS
) -> GenerateRequest:
    """Check the fields of a request.

    Args:
        fields: the flattened values of each input tensor that was given; strings are bytes.
        max_prompt_bytes: longest accepted `text_input` or `messages`, bytes.
        drafters: those of this server.

    Raises:
        InvalidRequest: a field is malformed or out of range.
        Unsupported: `beam_width`, `length_penalty` or `drafter` asks for something that is not there.
    """
    read = _Reader(fields)
    text, messages = read.text("text_input", max_prompt_bytes), read.text("messages", max_prompt_bytes)
    if (text is None) == (messages is None):
        raise InvalidRequest("text_input, messages: give exactly one of the two")
    if text == "":
        raise InvalidRequest("text_input: is empty; a prompt needs at least one character")
    if read.number("beam_width", 1) != 1:
        raise Unsupported("beam_width: only 1 is supported; there is no beam search")
    if read.number("length_penalty", 1.0) != 1.0:
        raise Unsupported("length_penalty: only 1 is supported; it is defined for beam search")
    drafter = read.text("drafter", 64) or "auto"
    if drafter not in DRAFTERS:
        raise InvalidRequest(f"drafter: {drafter[:64]!r} is not one of {', '.join(DRAFTERS)}")
    if drafter not in drafters:
        raise Unsupported(f"drafter: {drafter!r} is not available on this server; use {', '.join(drafters)}")
    max_tokens = read.number("max_tokens", None, lambda v: v >= 1, "at least 1")
    min_length = read.number("min_length", 0, lambda v: v >= 0, "0 or more")
    if max_tokens is not None and min_length > max_tokens:
        raise InvalidRequest(f"min_length: {min_length} is more than max_tokens, {max_tokens}")
    temperature = read.number("temperature", 0.0, lambda v: v >= 0, "0 (greedy) or more")
    sequences = read.number(
        "num_return_sequences", 1, lambda v: 1 <= v <= MAX_SEQUENCES, f"between 1 and {MAX_SEQUENCES}"
    )
    if sequences > 1 and temperature == 0:
        raise InvalidRequest("num_return_sequences: greedy answers are all the same; ask for 1, or set temperature")
    return GenerateRequest(
        text_input=text,
        messages=None if messages is None else _parse_messages(messages),
        max_tokens=max_tokens,
        min_length=min_length,
        stream=read.flag("stream", False),
        temperature=temperature,
        top_k=read.number("top_k", 0, lambda v: v >= 0, "0 (off) or more"),
        top_p=read.number("top_p", 1.0, lambda v: 0 <= v <= 1, "between 0 and 1"),
        min_p=read.number("min_p", 0.0, lambda v: 0 <= v <= 1, "between 0 and 1"),
        random_seed=read.number("random_seed", secrets.randbits(64)),
        is_deterministic=temperature == 0 or "random_seed" in fields,
        num_return_sequences=sequences,
        stop_words=read.words("stop_words"),
        bad_words=read.words("bad_words"),
        repetition_penalty=read.number("repetition_penalty", 1.0, lambda v: 0 < v <= 100, "above 0, at most 100"),
        presence_penalty=read.number("presence_penalty", 0.0, lambda v: abs(v) <= 100, "between -100 and 100"),
        frequency_penalty=read.number("frequency_penalty", 0.0, lambda v: abs(v) <= 100, "between -100 and 100"),
        exclude_input_in_output=read.flag("exclude_input_in_output", True),
        return_log_probs=read.flag("return_log_probs", False),
        return_token_ids=read.flag("return_token_ids", False),
        priority=read.number("priority", 0, lambda v: 0 <= v <= MAX_PRIORITY, f"between 0 and {MAX_PRIORITY}"),
        cache_salt=read.text("cache_salt", MAX_SALT_BYTES) or "",
        cache_priority=read.number(
            "cache_priority", CACHE_PRIORITY, lambda v: 0 <= v <= MAX_PRIORITY, f"between 0 and {MAX_PRIORITY}"
        ),
        cache_pin=read.flag("cache_pin", False),
        cache_skip=read.flag("cache_skip", False),
        num_draft_tokens=read.number("num_draft_tokens", None, lambda v: v >= 0, "0 (off) or more"),
        drafter=drafter,
    )


class _Reader:
    def __init__(self, fields: Mapping[str, Sequence[Any]]) -> None:
        self._fields = fields

    def _one(self, name: str) -> Any:
        values = self._fields.get(name)
        if values is None:
            return None
        if len(values) != 1:
            raise InvalidRequest(f"{name}: has {len(values)} values; give one")
        return values[0]

    def text(self, name: str, max_bytes: int) -> str | None:
        value = self._one(name)
        return None if value is None else _decode(name, value, max_bytes)

    def flag(self, name: str, default: bool) -> bool:
        value = self._one(name)
        return default if value is None else bool(value)

    def number(self, name: str, default: Any, accept: Callable[[Any], bool] = lambda _: True, wanted: str = "") -> Any:
        value = self._one(name)
        if value is None:
            return default
        if not math.isfinite(value):
            raise InvalidRequest(f"{name}: is {value}; it must be a finite number")
        if not accept(value):
            raise InvalidRequest(f"{name}: is {value}; it must be {wanted}")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """Empty strings are passed over: existing clients send [""] for "none"."""
        values = self._fields.get(name, ())
        if len(values) > MAX_WORDS:
            raise InvalidRequest(f"{name}: has {len(values)} entries; at most {MAX_WORDS} are allowed")
        decoded = (_decode(name, value, MAX_WORD_BYTES) for value in values)
        return tuple(dict.fromkeys(word for word in decoded if word))


def _decode(name: str, value: bytes, max_bytes: int) -> str:
    if len(value) > max_bytes:
        raise InvalidRequest(f"{name}: has {len(value)} bytes; at most {max_bytes} are allowed")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name}: is not valid UTF-8 at byte {error.start}") from None


def _parse_messages(text: str) -> tuple[Message, ...]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"messages: is not valid JSON: {error}") from None
    if not isinstance(parsed, list) or not parsed:
        raise InvalidRequest('messages: must be a JSON list like [{"role": "user", "content": "Hello"}]')
    return tuple(_parse_message(index, message) for index, message in enumerate(parsed))


def _parse_message(index: int, message: Any) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where}: must be an object with role and content")
    unknown = sorted(set(message) - {"role", "content"})
    if unknown:
        raise InvalidRequest(f"{where}: unknown key {unknown[0][:64]!r}; only role and content are known")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise InvalidRequest(f"{where}.{key}: must be a string")
        try:
            message[key].encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{where}.{key}: holds a lone surrogate, which is no valid text") from None
    return {"role": message["role"], "content": message["content"]}
