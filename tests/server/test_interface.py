"""Every field of a request, over gRPC, against what it means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import full_precision
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from client import Client, InvalidRequest, Result, Unsupported
from client.response import Chunk

QUESTION = "What is the capital of France? Answer in one short sentence."
MESSAGES = [{"role": "user", "content": QUESTION}]
RAW = "Once upon a time, there was a"
DEVIATION = 1e-3  # of logits and log-probabilities from torch's; 1.3e-4 was measured (test_exactness.py)
EMOJI = "A line of emoji only: 😀 🎉 🌍 🐢 😀 🎉 🌍 🐢 😀 🎉 🌍"


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.grpc_url) as connection:
        yield connection


@pytest.fixture
def fp32_client(fp32_server) -> Iterator[Client]:
    with Client(fp32_server.grpc_url) as connection:
        yield connection


def decode(tokens: Sequence[int] | None) -> str:
    """Text of token ids without the end token, invalid bytes replaced."""
    return full_precision.encoder().tokenizer.decode(list(tokens or ()), skip_special_tokens=True)


def encode(text: str) -> list[int]:
    return full_precision.encoder().encode(text, special_tokens=True)


# ------------------------------------------------------------------ prompt and text


def test_messages_are_the_rendered_template(client):
    rendered = full_precision.encoder().render(MESSAGES)
    assert rendered.endswith(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    chat = client.generate(messages=MESSAGES, max_tokens=24, return_token_ids=True)
    raw = client.generate(rendered, max_tokens=24, return_token_ids=True)
    assert "Paris" in chat.text
    assert (chat.text, chat.token_ids, chat.prompt_tokens) == (raw.text, raw.token_ids, raw.prompt_tokens)
    assert client.generate(QUESTION, max_tokens=24).text != chat.text, "raw text went through the template"


def test_a_chat_of_several_turns_and_a_system_message(client):
    messages = [
        {"role": "system", "content": "You only answer with numbers."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
    ]
    rendered = full_precision.encoder().render(messages)
    assert rendered.count("<|im_start|>") == 5
    assert client.generate(messages=messages, max_tokens=8).text == client.generate(rendered, max_tokens=8).text


def test_exclude_input_in_output_false_repeats_the_prompt(client):
    answer = client.generate(RAW, max_tokens=8)
    assert client.generate(RAW, max_tokens=8, exclude_input_in_output=False).text == RAW + answer.text
    chunks = list(client.stream(RAW, max_tokens=8, exclude_input_in_output=False))
    assert "".join(chunk.text for chunk in chunks) == RAW + answer.text
    assert chunks[0].text.startswith(RAW)


def test_the_leading_space_of_an_answer_is_kept(client):
    answer = client.generate("The capital of France", max_tokens=6, return_token_ids=True)
    assert answer.text.startswith(" ")
    assert answer.text == decode(answer.token_ids)


def read(client: Client, prompt: str, **parameters: object) -> tuple[list[Chunk], Result]:
    with client.stream(prompt, **parameters) as stream:
        chunks = list(stream)
        return chunks, stream.result()


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_the_whole_text_in_pieces_even_where_tokens_cut_characters(client, seed):
    parameters = {"max_tokens": 40, "temperature": 1.0, "random_seed": seed, "return_token_ids": True}
    chunks, streamed = read(client, EMOJI, **parameters)
    whole = client.generate(EMOJI, **parameters)
    assert (streamed.text, streamed.token_ids) == (whole.text, whole.token_ids)
    assert "".join(chunk.text for chunk in chunks) == whole.text == decode(whole.token_ids)
    assert len(chunks) > 1
    assert any(ord(character) > 0xFFFF for character in whole.text), "no character of four bytes: nothing was tested"
    assert any("\ufffd" in decode([token]) for token in whole.token_ids), "no token ended within a character"


def test_token_ids_decode_to_the_text_and_are_counted(client):
    answer = client.generate(messages=MESSAGES, max_tokens=32, return_token_ids=True)
    assert answer.finish_reason == "stop"
    assert answer.token_ids is not None
    assert answer.token_ids[-1] == full_precision.END, "the end token is among the ids"
    assert answer.text == decode(answer.token_ids)
    assert answer.generated_tokens == len(answer.token_ids)
    assert answer.prompt_tokens == len(full_precision.encode_chat(QUESTION))
    assert client.generate(messages=MESSAGES, max_tokens=3).finish_reason == "length"
    assert client.generate(messages=MESSAGES, max_tokens=3).token_ids is None


# ------------------------------------------------------------------ where an answer ends, and what it must not hold


def test_stop_words_are_found_across_tokens_and_cut_off(client):
    free = client.generate(RAW, max_tokens=32, return_token_ids=True)
    pieces = [decode([token]) for token in free.token_ids or ()]
    # The end of one token and the beginning of the next one, twice: the stop word is no token itself.
    index = next(i for i in range(8, 30) if min(map(len, pieces[i : i + 2])) > 3 and pieces[i + 1].startswith(" "))
    word = pieces[index][-2:] + pieces[index + 1][:3]
    expected = free.text[: free.text.index(word)]
    parameters = {"max_tokens": 32, "stop_words": ["never said", word]}
    answer = client.generate(RAW, return_token_ids=True, **parameters)
    assert (answer.text, answer.finish_reason) == (expected, "stop")
    assert answer.token_ids == (free.token_ids or ())[: index + 2]
    chunks, streamed = read(client, RAW, **parameters)
    assert "".join(chunk.text for chunk in chunks) == streamed.text == expected
    assert client.generate(RAW, max_tokens=32, stop_words=["never said"]).text == free.text


def test_bad_words_never_occur(client):
    free = client.generate(RAW, max_tokens=24, return_token_ids=True)
    pieces = [decode([token]).strip() for token in free.token_ids or ()]
    words = sorted({piece for piece in pieces if piece.isalpha() and len(piece) > 3})[:4]
    assert len(words) == 4
    forbidden = {tuple(encode(form)) for word in words for form in (word, f" {word}")}
    for parameters in ({}, {"temperature": 1.0, "random_seed": 7}):
        answer = client.generate(RAW, max_tokens=48, bad_words=words, return_token_ids=True, **parameters)
        ids = answer.token_ids or ()
        found = {ids[start : start + len(word)] for word in forbidden for start in range(len(ids))}
        assert not found & forbidden
        assert len(ids) > 10
    in_two_tokens = decode((free.token_ids or ())[2:4]).strip()
    assert len(encode(f" {in_two_tokens}")) == 2
    answer = client.generate(RAW, max_tokens=24, bad_words=[in_two_tokens], return_token_ids=True)
    assert (answer.token_ids or ())[:3] == (free.token_ids or ())[:3], "only the last token of a bad word is forbidden"
    assert (answer.token_ids or ())[3] != (free.token_ids or ())[3]


def test_min_length_keeps_the_end_away(client):
    short = client.generate(messages=MESSAGES, max_tokens=64, return_token_ids=True)
    assert short.finish_reason == "stop"
    length = short.generated_tokens
    longer = client.generate(messages=MESSAGES, max_tokens=64, min_length=length + 5, return_token_ids=True)
    assert longer.generated_tokens > length + 5 - 1
    assert full_precision.END not in (longer.token_ids or ())[: length + 4]
    assert (longer.token_ids or ())[: length - 1] == (short.token_ids or ())[:-1]
    same = client.generate(messages=MESSAGES, max_tokens=64, min_length=length - 1, return_token_ids=True)
    assert same.token_ids == short.token_ids


# ------------------------------------------------------------------ log-probabilities and penalties, against torch


def test_log_probabilities_are_torch_s(fp32_client):
    prompt = encode(RAW)
    for parameters in ({}, {"temperature": 0.7, "top_k": 20, "random_seed": 3}):
        answer = fp32_client.generate(RAW, max_tokens=16, return_log_probs=True, return_token_ids=True, **parameters)
        tokens, reported = list(answer.token_ids or ()), answer.log_probs
        logits = full_precision.logits_after(prompt + tokens[:-1], len(tokens))
        expected = torch.log_softmax(torch.tensor(logits), -1)[range(len(tokens)), tokens].numpy()
        assert reported == pytest.approx(expected.tolist(), abs=DEVIATION)
        assert answer.cum_log_prob == pytest.approx(math.fsum(reported), abs=1e-4)
        chunks, streamed = read(fp32_client, RAW, max_tokens=16, return_log_probs=True, **parameters)
        assert streamed.log_probs == pytest.approx(reported, abs=DEVIATION)
        assert sum(len(chunk.log_probs or ()) for chunk in chunks) == len(tokens)
        # Negative control: the values belong to these tokens and no others.
        shifted = torch.log_softmax(torch.tensor(logits), -1)[range(len(tokens)), [tokens[-1], *tokens[:-1]]].numpy()
        assert reported != pytest.approx(shifted.tolist(), abs=DEVIATION)
    assert fp32_client.generate(RAW, max_tokens=2).log_probs is None


class OpenAiPenalties(LogitsProcessor):
    """logit - frequency * count - presence * (count > 0), counted over the answer: OpenAI API reference."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        counts = torch.bincount(input_ids[0, self.prompt_length :], minlength=scores.shape[-1])
        return scores - self.frequency * counts - self.presence * (counts > 0)


REPEATED = "one two three one two three one two three one two"


@pytest.mark.parametrize(
    "parameters",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.9},
        {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.4, "min_length": 20},
    ],
    ids=["repetition", "repetition below 1", "presence", "frequency", "all"],
)
def test_penalties_are_those_of_transformers_and_openai(fp32_client, parameters):
    """Greedy answers and their log-probabilities equal those of torch with the logits processors."""
    prompt = encode(REPEATED)
    processors = LogitsProcessorList()
    if "repetition_penalty" in parameters:
        processors.append(RepetitionPenaltyLogitsProcessor(parameters["repetition_penalty"]))
    presence, frequency = parameters.get("presence_penalty", 0.0), parameters.get("frequency_penalty", 0.0)
    processors.append(OpenAiPenalties(len(prompt), presence, frequency))
    minimum = parameters.get("min_length", 0)
    processors.append(MinNewTokensLengthLogitsProcessor(len(prompt), minimum, [full_precision.END]))
    answer = fp32_client.generate(REPEATED, max_tokens=20, return_log_probs=True, return_token_ids=True, **parameters)
    free = fp32_client.generate(REPEATED, max_tokens=20, return_log_probs=True, return_token_ids=True)
    tokens = list(answer.token_ids or ())
    assert (answer.token_ids, answer.log_probs) != (free.token_ids, free.log_probs), "the penalty changed nothing"
    logits = full_precision.logits_after(prompt + tokens[:-1], len(tokens))
    for position, token in enumerate(tokens):
        history = torch.tensor([prompt + tokens[:position]])
        processed = processors(history, torch.tensor(logits[position : position + 1]))[0]
        assert processed.max() - processed[token] < 2 * DEVIATION
        expected = torch.log_softmax(processed, -1)[token].item()
        assert (answer.log_probs or ())[position] == pytest.approx(expected, abs=DEVIATION)


# ------------------------------------------------------------------ sampling


def test_top_k_1_and_a_tiny_top_p_are_greedy(client):
    greedy = client.generate(RAW, max_tokens=16).text
    assert client.generate(RAW, max_tokens=16, temperature=1.5, top_k=1).text == greedy
    assert client.generate(RAW, max_tokens=16, temperature=1.5, top_p=1e-6).text == greedy
    assert client.generate(RAW, max_tokens=16, temperature=1.5, min_p=1.0).text == greedy
    assert client.generate(RAW, max_tokens=16, temperature=0.0, random_seed=5).text == greedy
    assert client.generate(RAW, max_tokens=16, temperature=1.5, random_seed=5).text != greedy


def test_a_seed_fixes_the_text(client):
    def ask(seed: int | None) -> str:
        return client.generate(RAW, max_tokens=16, temperature=1.0, random_seed=seed).text

    seeds = [0, 1, 2, 2**63, 2**64 - 1]
    texts = [ask(seed) for seed in seeds]
    assert [ask(seed) for seed in seeds] == texts
    assert len(set(texts)) == len(seeds)
    assert len({ask(None) for _ in range(3)}) == 3, "without a seed every request draws its own"


@pytest.mark.parametrize("parameters", [{"min_p": 0.2}, {"top_k": 3}, {"top_p": 0.3}], ids=["min_p", "top_k", "top_p"])
def test_filters_keep_what_they_promise(fp32_client, parameters):
    """Every sampled token is one that the filter keeps; a wider filter gives tokens that it does not."""
    logits = np.sort(full_precision.logits_after(encode(RAW), 1)[0].astype(np.float64))[::-1]
    probabilities = np.exp(logits - logits[0]) / np.exp(logits - logits[0]).sum()
    if "min_p" in parameters:
        kept = int((probabilities >= parameters["min_p"] * probabilities[0]).sum())
    elif "top_p" in parameters:
        kept = int(np.searchsorted(np.cumsum(probabilities), parameters["top_p"])) + 1
    else:
        kept = parameters["top_k"]
    ids = np.argsort(-full_precision.logits_after(encode(RAW), 1)[0])[:kept]

    def first(seed: int, **filters: object) -> int:
        answer = fp32_client.generate(
            RAW, max_tokens=1, temperature=1.0, random_seed=seed, return_token_ids=True, **filters
        )
        return (answer.token_ids or ())[0]

    with ThreadPoolExecutor(8) as threads:
        filtered = set(threads.map(lambda seed: first(seed, **parameters), range(48)))
        unfiltered = set(threads.map(first, range(48)))
    assert filtered <= set(ids.tolist())
    assert len(filtered) > 1
    assert not unfiltered <= set(ids.tolist())


# ------------------------------------------------------------------ fields of other servers, and of speculation


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_draft_tokens": 0}, {"num_draft_tokens": 5},
        {"drafter": "auto"}, {"drafter": "none"}, {"drafter": "suffix"},
        {"beam_width": 1}, {"length_penalty": 1.0}, {"priority": 100}, {"cache_salt": "tenant"},
        {"stop_words": []}, {"stop_words": [""]}, {"bad_words": [""]},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_change_nothing_today(client, parameters):
    assert client.generate(RAW, max_tokens=8, **parameters).text == client.generate(RAW, max_tokens=8).text


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"drafter": "oracle"}, InvalidRequest, "drafter: 'oracle' is not one of"),
        ({"num_draft_tokens": -1}, InvalidRequest, "num_draft_tokens: is -1"),
        ({"beam_width": 2}, Unsupported, "beam_width: only 1"),
        ({"length_penalty": 0.5}, Unsupported, "length_penalty: only 1"),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused_by_name(client, parameters, error, message):
    with pytest.raises(error) as caught:
        client.generate(RAW, max_tokens=8, **parameters)
    assert caught.value.message.startswith(message)
