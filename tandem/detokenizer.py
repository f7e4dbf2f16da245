"""Token ids to text as they come: the pieces join to `tokenizer.decode(ids, skip_special_tokens=True)`, exactly.

Two kinds of decoders are streamed:

- ByteLevel (GPT-2, Llama 3, Qwen, SmolLM): every token is a string of bytes, and an incremental UTF-8 decoder
  holds back the bytes of an unfinished character. Invalid bytes become U+FFFD by the rule of the Unicode
  standard (one per maximal subpart) in Rust's `from_utf8_lossy` and in Python alike.
- Decoders that work token by token (SentencePiece-style Replace or Metaspace, WordPiece, none at all): the
  text of a token is the same wherever it stands, but at the start of the text, where a space may be stripped.
  A run of byte tokens (ByteFallback, `<0xE2>`) is one unit, because one invalid byte spoils all of it: it is
  held until it ends.

With any other decoder (CTC, BPEDecoder, unusual sequences), where later tokens may change earlier text,
everything is held back until `flush`: late, but never wrong.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # as Rust's u8::from_str_radix reads it


class DetokenizerStream(Protocol):
    """The text of one answer."""

    def push(self, ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that is final now."""

    def flush(self) -> str:
        """The rest, when no token follows."""


class Detokenizer:
    """The tables of one tokenizer, shared by its streams, which may run in several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = json.loads(tokenizer.to_str())["decoder"]
        size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        special = {added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special}
        names: list[str | None] = [tokenizer.id_to_token(token) for token in range(size)]
        self._names = [None if name in special else name for name in names]
        self._kind = _kind(decoder)
        if self._kind is _Kind.BYTES:
            self._bytes = [b"" if name is None else _token_bytes(name) for name in self._names]
        elif self._kind is _Kind.PIECES:
            self._pieces = _Pieces(tokenizer, self._names, _has_byte_fallback(decoder))

    def stream(self, continued: bool = False) -> DetokenizerStream:
        """A new stream for the tokens of one answer.

        Args:
            continued: the text continues another one, so a space at its start belongs to it. No difference
                for a ByteLevel decoder, nor for one that is not streamed.
        """
        if self._kind is _Kind.BYTES:
            return _ByteStream(self._bytes)
        if self._kind is _Kind.PIECES:
            return _PieceStream(self._pieces, continued)
        return _WholeStream(self._tokenizer)


class _Kind(Enum):
    BYTES = "bytes"
    PIECES = "pieces"
    WHOLE = "whole"


def _parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _parts(inner)]
    return [decoder]


def _has_byte_fallback(decoder: dict[str, Any] | None) -> bool:
    return any(part["type"] == "ByteFallback" for part in _parts(decoder))


def _kind(decoder: dict[str, Any] | None) -> _Kind:
    parts = _parts(decoder)
    types = [part["type"] for part in parts]
    if types == ["ByteLevel"]:
        return _Kind.BYTES
    if not set(types) <= {"Replace", "Metaspace", "WordPiece", "Strip", "ByteFallback", "Fuse"}:
        return _Kind.WHOLE
    fused = False
    for index, part in enumerate(parts):
        # What comes before ByteFallback must leave byte tokens as they are; what comes after Fuse sees the
        # whole text at once, so it may change single characters or the start, nothing else.
        character = part["type"] == "Replace" and len(part["pattern"].get("String", "")) == 1
        start = part["type"] == "Strip" and part["stop"] == 0
        spares_bytes = character and not part["pattern"]["String"].isascii()
        if "ByteFallback" in types[index + 1 :] and not spares_bytes:
            return _Kind.WHOLE
        if fused and not (character or start or part["type"] == "Fuse"):
            return _Kind.WHOLE
        fused = fused or part["type"] == "Fuse"
    return _Kind.PIECES


def _byte_characters() -> dict[str, int]:
    """The printable stand-ins for bytes of GPT-2 (Radford et al., 2019, `bytes_to_unicode` of its code)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


def _token_bytes(name: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in name])
    except KeyError:  # an added token with other characters stands for itself
        return name.encode()


class _ByteStream:
    __slots__ = ("_bytes", "_decoder")

    def __init__(self, table: list[bytes]) -> None:
        self._bytes = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        table = self._bytes
        size = len(table)  # the vocabulary of an engine may be padded
        return self._decoder.decode(b"".join([table[token] for token in ids if token < size]))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class _Pieces:
    """The text of each token inside a text, found by decoding it after another token, once."""

    def __init__(self, tokenizer: Tokenizer, names: list[str | None], byte_fallback: bool) -> None:
        self._tokenizer = tokenizer
        self.byte_tokens = frozenset(
            token for token, name in enumerate(names) if byte_fallback and name and _BYTE_TOKEN.fullmatch(name)
        )
        self._texts = ["" if name is None else None for name in names]
        self.size = len(names)
        usable = [token for token, name in enumerate(names) if name is not None and token not in self.byte_tokens]
        usable.sort(key=lambda token: not (names[token] or "").isalnum())  # a plain word, if there is one
        self._anchor = next((token for token in usable if self.decode([token])), None)
        self._anchor_text = "" if self._anchor is None else self.decode([self._anchor])

    def decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def is_silent(self, token: int) -> bool:
        """The library passes over special tokens and unknown ids before it decodes."""
        return token >= self.size or self._texts[token] == ""

    def run(self, ids: list[int]) -> str:
        """The text of tokens that are not at the start."""
        if self._anchor is None:  # no token but bytes has text
            return self.decode(ids)
        return self.decode([self._anchor, *ids])[len(self._anchor_text) :]

    def text(self, token: int) -> str:
        """The text of one token that is neither at the start nor a byte."""
        text = self._texts[token]
        if text is None:
            text = self._texts[token] = self.run([token])
        return text


class _PieceStream:
    __slots__ = ("_held", "_pieces", "_started")

    def __init__(self, pieces: _Pieces, continued: bool) -> None:
        self._pieces = pieces
        self._started = continued  # some text was returned, so nothing more is stripped
        self._held: list[int] = []  # before the start all tokens, after it a run of byte tokens

    def push(self, ids: Sequence[int]) -> str:
        pieces = self._pieces
        texts = []
        for token in ids:
            if pieces.is_silent(token):
                continue
            if token in pieces.byte_tokens:
                self._held.append(token)
                continue
            if self._started:
                if self._held:
                    texts.append(self._take_held())
                texts.append(pieces.text(token))
            else:
                self._held.append(token)
                text = pieces.decode(self._held)
                if text:
                    texts.append(text)
                    self._held = []
                    self._started = True
        return "".join(texts)

    def _take_held(self) -> str:
        held, self._held = self._held, []
        return self._pieces.run(held) if self._started else self._pieces.decode(held)

    def flush(self) -> str:
        return self._take_held() if self._held else ""


class _WholeStream:
    __slots__ = ("_ids", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        self._ids += ids
        return ""

    def flush(self) -> str:
        ids, self._ids = self._ids, []
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
