"""The interface over HTTP: the same fields and the same answers as over gRPC, whole and as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import requests
from served_engine import LONG

from client import Client

GENERATE = "/v2/models/generate/generate"
PROMPT = "The capital of France is"
CHAT = [{"role": "user", "content": "Name three rivers."}]
TOKENS = 24
SECONDS = 120


def post(server, **fields: object) -> dict[str, object]:
    """The answer of `/generate`."""
    answer = requests.post(f"http://{server.http_url}{GENERATE}", json=fields, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.json()
    return answer.json()


def events(server, **fields: object) -> list[dict[str, object]]:
    """The events of `/generate_stream`."""
    url = f"http://{server.http_url}{GENERATE}_stream"
    with requests.post(url, json=fields, timeout=SECONDS, stream=True) as answer:
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def as_list(value: object) -> list[object]:
    """Triton writes a tensor with one element as a scalar."""
    return value if isinstance(value, list) else [value]


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.grpc_url) as connection:
        yield connection


def test_generate_answers_like_grpc(server, client):
    wanted = client.generate(PROMPT, max_tokens=TOKENS, return_token_ids=True, return_log_probs=True)
    answer = post(server, text_input=PROMPT, max_tokens=TOKENS, return_token_ids=True, return_log_probs=True)
    assert answer["text_output"] == wanted.text
    assert answer["output_ids"] == list(wanted.token_ids)
    assert answer["output_log_probs"] == pytest.approx(wanted.log_probs)
    assert answer["cum_log_probs"] == pytest.approx(sum(wanted.log_probs), abs=1e-3)
    assert answer["finish_reason"] == wanted.finish_reason
    assert answer["prompt_tokens"] == wanted.prompt_tokens
    assert answer["generated_tokens"] == wanted.generated_tokens == len(wanted.token_ids)


def test_what_was_not_asked_for_is_not_sent(server):
    wanted = {"text_output", "finish_reason", "prompt_tokens", "generated_tokens", "model_name", "model_version"}
    wanted |= {"cached_prompt_tokens", "drafted_tokens", "accepted_draft_tokens"}
    assert set(post(server, text_input=PROMPT, max_tokens=2)) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "random_seed": 2**64 - 1},
        {"text_input": "Ten emoji: 😀 🎉", "temperature": 1.0, "random_seed": 5},
    ],
    ids=["greedy", "seeded", "emoji"],
)
def test_events_join_to_the_whole_answer(server, options):
    fields = {"text_input": PROMPT, "max_tokens": 48, "return_token_ids": True, "return_log_probs": True} | options
    whole = post(server, **fields)
    pieces = events(server, **fields, stream=True)
    assert len(pieces) > 2, "it was not streamed"
    assert "".join(piece["text_output"] for piece in pieces) == whole["text_output"]
    for name in ("output_ids", "output_log_probs"):
        joined = [value for piece in pieces for value in as_list(piece[name])]
        assert joined == pytest.approx(whole[name])
    assert pieces[-1]["cum_log_probs"] == pytest.approx(whole["cum_log_probs"], abs=1e-3)
    assert [piece.get("finish_reason") for piece in pieces] == [None] * (len(pieces) - 1) + [whole["finish_reason"]]
    assert pieces[-1]["generated_tokens"] == whole["generated_tokens"]


def test_without_stream_there_is_one_event(server):
    (event,) = events(server, text_input=PROMPT, max_tokens=TOKENS)
    assert event["text_output"] == post(server, text_input=PROMPT, max_tokens=TOKENS)["text_output"]


def test_stop_words(server):
    whole = post(server, text_input=PROMPT, max_tokens=TOKENS)["text_output"]
    word = whole[5:9]
    for stop_words in (word, [word], ["no such word", word]):
        answer = post(server, text_input=PROMPT, max_tokens=TOKENS, stop_words=stop_words)
        assert (answer["text_output"], answer["finish_reason"]) == (whole[: whole.index(word)], "stop")
    pieces = events(server, text_input=PROMPT, max_tokens=TOKENS, stop_words=[word], stream=True)
    assert "".join(piece["text_output"] for piece in pieces) == whole[: whole.index(word)]
    for stop_words in ([], "", [""]):
        answer = post(server, text_input=PROMPT, max_tokens=TOKENS, stop_words=stop_words)
        assert answer["text_output"] == whole


def test_bad_words(server):
    whole = post(server, text_input=PROMPT, max_tokens=TOKENS)["text_output"]
    assert "Paris" in whole
    assert "Paris" not in post(server, text_input=PROMPT, max_tokens=TOKENS, bad_words=["Paris"])["text_output"]


def test_messages_are_a_json_text(server, client):
    wanted = client.generate(messages=CHAT, max_tokens=TOKENS)
    answer = post(server, messages=json.dumps(CHAT), max_tokens=TOKENS)
    assert answer["text_output"] == wanted.text
    assert answer["prompt_tokens"] == wanted.prompt_tokens
    pieces = events(server, messages=json.dumps(CHAT), max_tokens=TOKENS, stream=True)
    assert "".join(piece["text_output"] for piece in pieces) == wanted.text


def test_the_prompt_can_be_repeated(server):
    answer = post(server, text_input=PROMPT, max_tokens=TOKENS)["text_output"]
    echoed = post(server, text_input=PROMPT, max_tokens=TOKENS, exclude_input_in_output=False)["text_output"]
    assert echoed == PROMPT + answer
    pieces = events(server, text_input=PROMPT, max_tokens=TOKENS, exclude_input_in_output=False, stream=True)
    assert pieces[0]["text_output"].startswith(PROMPT)
    assert "".join(piece["text_output"] for piece in pieces) == PROMPT + answer


def test_fields_in_a_list_of_one_are_as_good(server):
    assert (
        post(server, text_input=[PROMPT], max_tokens=[5], temperature=[0])["text_output"]
        == post(server, text_input=PROMPT, max_tokens=5, temperature=0)["text_output"]
    )


def test_an_error_after_some_events_is_an_event(server):
    """The status line has gone out by then."""
    *pieces, last = events(
        server, text_input=PROMPT, max_tokens=LONG, min_length=LONG, stream=True, parameters={"timeout": 700_000}
    )
    assert len(pieces) > 1
    assert last["error"].startswith("[UNAVAILABLE] the request's time was over after ")


@pytest.mark.parametrize("path", [GENERATE, GENERATE + "_stream"])
def test_an_error_at_once_is_a_status(server, path):
    answer = requests.post(f"http://{server.http_url}{path}", json={"text_input": "x", "top_p": 7}, timeout=SECONDS)
    assert answer.status_code == 400
    assert "[INVALID_ARG] top_p: is 7.0; it must be between 0 and 1" in answer.text
