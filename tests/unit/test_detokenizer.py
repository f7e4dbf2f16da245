"""Streamed text against the whole decoding of the `tokenizers` library, for every kind of decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tandem.detokenizer import Detokenizer

ENGINE = Path(__file__).parents[2] / "model_repository/target/1/engine"
EURO = "€".encode()


def byte_level() -> Tokenizer:
    """256 byte tokens, then a few longer ones that end inside characters, then added tokens."""
    vocab = {character: id for id, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merged = ["Ġt", "Ġthe", "âĤ", "¬Ġ", "ðŁĺ", "ĠðŁ", "Ċ"]
    for token in merged:
        vocab.setdefault(token, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.decoder = decoders.ByteLevel()
    return with_added_tokens(tokenizer)


def with_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<|end|>", AddedToken("<s>", special=True)])
    tokenizer.add_tokens(["<tool>", "é", "日本", " spaced "])
    return tokenizer


def sentencepiece(decoder: decoders.Decoder | None) -> Tokenizer:
    """▁-words and byte tokens, as BPE with byte fallback."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "<0xe2>", "<0x+5>"]
    names += ["▁", "▁▁", "▁Hello", "Hello", "▁world", "wor", "ld", ".", ",", "▁n't", "##ing", "ing"]
    names += ["日", "€", "don", "</w>", "x</w>", "\N{REPLACEMENT CHARACTER}"]
    tokenizer = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, [], unk_token="<unk>"))
    if decoder is not None:
        tokenizer.decoder = decoder
    return with_added_tokens(tokenizer)


def llama() -> decoders.Decoder:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(parts)


def unfused() -> decoders.Decoder:
    return decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Strip("l", 1, 0)])


STREAMED: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte level in a sequence": lambda: replaced(byte_level(), decoders.Sequence([decoders.ByteLevel()])),
    "llama": lambda: sentencepiece(llama()),
    "gemma": lambda: sentencepiece(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ),
    "strip two": lambda: sentencepiece(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)])
    ),
    "fuse first": lambda: sentencepiece(
        decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")])
    ),
    "metaspace": lambda: sentencepiece(decoders.Metaspace()),
    "metaspace never": lambda: sentencepiece(decoders.Metaspace(prepend_scheme="never")),
    "unfused": lambda: sentencepiece(unfused()),
    "wordpiece": lambda: sentencepiece(decoders.WordPiece()),
    "wordpiece without cleanup": lambda: sentencepiece(decoders.WordPiece(cleanup=False)),
    "none": lambda: sentencepiece(None),
}
HELD: dict[str, Callable[[], Tokenizer]] = {
    "bpe": lambda: sentencepiece(decoders.BPEDecoder()),
    "ctc": lambda: sentencepiece(decoders.CTC()),
    "strip the end": lambda: sentencepiece(decoders.Sequence([decoders.Fuse(), decoders.Strip(".", 0, 1)])),
    "replace across tokens": lambda: sentencepiece(decoders.Sequence([decoders.Fuse(), decoders.Replace("ing.", "!")])),
    "byte tokens made on the way": lambda: sentencepiece(
        decoders.Sequence([decoders.Replace("ing", "<0x41>"), decoders.ByteFallback(), decoders.Fuse()])
    ),
}


def replaced(tokenizer: Tokenizer, decoder: decoders.Decoder) -> Tokenizer:
    tokenizer.decoder = decoder
    return tokenizer


CACHE: dict[str, tuple[Tokenizer, Detokenizer]] = {}


def prepared(name: str) -> tuple[Tokenizer, Detokenizer]:
    if name not in CACHE:
        tokenizer = (STREAMED | HELD)[name]()
        CACHE[name] = tokenizer, Detokenizer(tokenizer)
    return CACHE[name]


def whole(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def streamed(detokenizer: Detokenizer, ids: list[int], step: int = 1) -> str:
    stream = detokenizer.stream()
    return "".join(stream.push(ids[at : at + step]) for at in range(0, len(ids), step)) + stream.flush()


@pytest.mark.parametrize("name", [*STREAMED, *(name for name in HELD if name != "strip the end")])  # see below
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_whole(name: str, data: st.DataObject) -> None:
    tokenizer, detokenizer = prepared(name)
    size = tokenizer.get_vocab_size() + 3  # some ids are unknown
    words = st.integers(min(257, size - 30), size - 1)  # words more often than bytes
    ids = data.draw(st.lists(st.one_of(words, st.integers(0, size - 1)), max_size=25))
    assert streamed(detokenizer, ids, data.draw(st.integers(1, 4))) == whole(tokenizer, ids)


@pytest.mark.parametrize("name", STREAMED)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_text_is_held_back_only_for_an_unfinished_character(name: str, data: st.DataObject) -> None:
    tokenizer, detokenizer = prepared(name)
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(min(257, size - 30), size - 1), max_size=15))
    stream = detokenizer.stream()
    text, in_run = "", False
    for index, token in enumerate(ids):
        text += stream.push([token])
        if whole(tokenizer, [token, token]):  # special tokens have no text, and do not end a run
            in_run = tokenizer.id_to_token(token).startswith("<0x")
        if not in_run:
            assert whole(tokenizer, ids[: index + 1]).removesuffix("�") in (text, text.removesuffix("�"))


@pytest.mark.parametrize("name", HELD)
def test_other_decoders_wait_for_the_end(name: str) -> None:
    # The library itself panics where an empty text is stripped at its end, so "strip the end" is tried here only.
    tokenizer, detokenizer = prepared(name)
    stream = detokenizer.stream()
    ids = [tokenizer.token_to_id(token) for token in ("Hello", "ing", ".")]
    assert stream.push(ids) == ""
    assert stream.flush() == whole(tokenizer, ids) != ""


# --- bytes ---


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    if tokenizer.token_to_id("<0x00>") is not None:
        return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table = {}
    for byte in range(0x80):
        table[byte] = encode.pre_tokenize_str(chr(byte))[0][0]
    for lead, base in ((0xC2, 0x80), (0xC3, 0xC0)):
        for offset in range(0x40):
            pair = encode.pre_tokenize_str(chr(base + offset))[0][0]
            table[lead], table[0x80 + offset] = pair[0], pair[1]
    for byte, stand_in in zip(range(0xC4, 0xF5), map(chr, range(0xC4, 0xF5)), strict=True):
        table[byte] = stand_in
    for byte in (0xC0, 0xC1, *range(0xF5, 0x100)):
        table[byte] = chr(byte)
    return [tokenizer.token_to_id(table[byte]) for byte in data]


ODD_BYTES = [
    bytes(range(256)),
    bytes(reversed(range(256))),
    EURO[:1] + b"A" + EURO[:2] + EURO + EURO[2:],
    b"\xf0\x9f\x98\x80\xf0\x9f\x98",  # an emoji, whole and truncated
    b"\xc0\x80\xe0\x80\x80\xf0\x80\x80\x80",  # overlong
    b"\xed\xa0\x80\xed\xb0\x80",  # surrogates
    b"\xf4\x90\x80\x80\xf5\x80\x80\x80",  # beyond U+10FFFF
    b"\xef\xbb\xbfBOM",
]


@pytest.mark.parametrize("name", ["byte level", "llama"])
@pytest.mark.parametrize("data", ODD_BYTES)
def test_odd_bytes(name: str, data: bytes) -> None:
    tokenizer, detokenizer = prepared(name)
    ids = byte_ids(tokenizer, data)
    assert streamed(detokenizer, ids) == whole(tokenizer, ids)
    if name == "byte level":
        assert whole(tokenizer, ids) == data.decode(errors="replace")


@settings(deadline=None)
@given(st.binary(max_size=30), st.integers(1, 5), st.sampled_from(["byte level", "llama"]))
def test_any_bytes(data: bytes, step: int, name: str) -> None:
    tokenizer, detokenizer = prepared(name)
    ids = byte_ids(tokenizer, data)
    assert streamed(detokenizer, ids, step) == whole(tokenizer, ids)


@given(st.text(max_size=20))
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    tokenizer, detokenizer = prepared("byte level")
    stream = detokenizer.stream()
    for character in text:
        *before, last = byte_ids(tokenizer, character.encode())
        assert stream.push(before) == ""
        assert stream.push([last]) == character
    assert stream.flush() == ""


def test_a_run_of_byte_tokens_is_one_unit() -> None:
    tokenizer, detokenizer = prepared("llama")
    stream = detokenizer.stream()
    end = tokenizer.token_to_id("<|end|>")
    hello, dot = tokenizer.token_to_id("▁Hello"), tokenizer.token_to_id(".")
    assert stream.push([hello]) == "Hello"
    assert [stream.push([id]) for id in [*byte_ids(tokenizer, EURO), end]] == [""] * 4
    assert stream.push([dot]) == "€."
    assert stream.push(byte_ids(tokenizer, EURO + b"\xff")) == ""
    assert stream.flush() == "����"


# --- spaces, added tokens ---


def test_decoding_token_by_token_would_be_wrong() -> None:
    """The negative control: what these tests are to find is there."""
    tokenizer, detokenizer = prepared("llama")
    ids = [tokenizer.token_to_id(name) for name in ("▁Hello", "▁world", "<0xE2>", "<0x82>", "<0xAC>")]
    assert streamed(detokenizer, ids) == "Hello world€"
    assert "".join(whole(tokenizer, [id]) for id in ids) == "Helloworld���"


def test_an_answer_that_continues_a_text_keeps_its_space() -> None:
    for name in ("llama", "metaspace", "wordpiece"):
        tokenizer, detokenizer = prepared(name)
        ids = [tokenizer.token_to_id("▁world"), tokenizer.token_to_id("ld")]
        prompt = [tokenizer.token_to_id("Hello")]
        assert detokenizer.stream().push(ids) == whole(tokenizer, ids)
        continued = detokenizer.stream(continued=True)
        assert whole(tokenizer, prompt) + continued.push(ids) == whole(tokenizer, prompt + ids)


def test_streams_of_a_detokenizer_are_independent() -> None:
    tokenizer, detokenizer = prepared("byte level")
    first, second = detokenizer.stream(), detokenizer.stream()
    ids = byte_ids(tokenizer, EURO)
    assert first.push(ids[:2]) == ""
    assert second.push(byte_ids(tokenizer, b"x")) == "x"
    assert first.push(ids[2:]) == "€"


def test_a_tokenizer_without_words_is_served() -> None:
    names = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = replaced(
        Tokenizer(models.BPE(names, [])), decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    )
    ids = [*EURO, 0x41, 0xFF]
    assert streamed(Detokenizer(tokenizer), ids) == whole(tokenizer, ids)
    empty = Tokenizer(models.BPE({}, []))
    assert streamed(Detokenizer(empty), [0, 5]) == ""


def test_the_tokenizer_of_the_built_engine() -> None:
    assert (ENGINE / "tokenizer.json").exists(), "no engine is built: run `make test`, which builds it first"
    tokenizer = Tokenizer.from_file(str(ENGINE / "tokenizer.json"))
    detokenizer = Detokenizer(tokenizer)
    text = "Hello  world\n\tnaïve 日本語 😀👩‍👩‍👧 <|im_end|> 12345 don't" + "".join(map(chr, range(0x250)))
    ids = tokenizer.encode(text).ids
    assert streamed(detokenizer, ids) == whole(tokenizer, ids)
    every = list(range(tokenizer.get_vocab_size()))
    assert streamed(detokenizer, every) == whole(tokenizer, every)
    assert streamed(detokenizer, every[::-1]) == whole(tokenizer, every[::-1])
