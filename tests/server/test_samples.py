"""Several answers to one request, on the real server: the same as those of several requests, with one prefill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
import requests
from served_engine import LONG
from serving import BOUND_S, wait_for_gauges, wait_until

from client import AsyncClient, Client, InvalidRequest, Parameters, Result
from client.__main__ import main
from client.metrics import read_metrics
from launcher.server import TritonServer
from perf import mt_bench

COUNT = 3
SEED = 2**64 - 2  # the third answer's is 0: they wrap
PROMPT = " ".join(mt_bench.prompts(6))[:1500]
PARAMETERS: Parameters = {"max_tokens": 16, "temperature": 0.9, "return_token_ids": True, "return_log_probs": True}


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.grpc_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def alone(server) -> list[Result]:
    """What requests for one answer give with the seeds of the three."""
    with Client(server.grpc_url) as client:
        return [
            client.generate(PROMPT, random_seed=(SEED + index) % 2**64, cache_salt=f"alone {index}", **PARAMETERS)
            for index in range(COUNT)
        ]


def test_they_are_those_of_single_requests_and_share_the_prompt(client, alone):
    answers = client.samples(PROMPT, count=COUNT, random_seed=SEED, cache_salt="samples", **PARAMETERS)
    assert len({answer.text for answer in answers}) == COUNT, "the seeds do not differ"
    for answer, wanted in zip(answers, alone, strict=True):
        assert (answer.text, answer.token_ids) == (wanted.text, wanted.token_ids)
        assert answer.log_probs == pytest.approx(wanted.log_probs, abs=0.01)
        assert answer.cum_log_prob == pytest.approx(wanted.cum_log_prob, abs=0.1)
        assert answer.prompt_tokens == wanted.prompt_tokens
    blocks = alone[0].prompt_tokens // 32 * 32
    assert [answer.cached_prompt_tokens >= blocks for answer in answers] == [False] + [True] * (COUNT - 1)


def test_a_stream_says_which_answer_each_piece_belongs_to(client, alone):
    texts = [""] * COUNT
    ends = [0] * COUNT
    parameters = {**PARAMETERS, "num_return_sequences": COUNT}
    with client.stream(PROMPT, random_seed=SEED, exclude_input_in_output=False, **parameters) as stream:
        for chunk in stream:
            texts[chunk.sequence_index] += chunk.text
            ends[chunk.sequence_index] += chunk.finish_reason is not None
    assert texts == [PROMPT + wanted.text for wanted in alone]
    assert ends == [1] * COUNT


def test_http_gives_them_as_lists(server: TritonServer, alone):
    fields = {"text_input": PROMPT, "random_seed": SEED, "num_return_sequences": COUNT, **PARAMETERS}
    answer = requests.post(f"http://{server.http_url}/v2/models/generate/generate", json=fields, timeout=BOUND_S).json()
    assert answer["text_output"] == [wanted.text for wanted in alone]
    assert answer["sequence_index"] == list(range(COUNT))
    assert answer["generated_tokens"] == [wanted.generated_tokens for wanted in alone]
    assert answer["output_ids"] == [token for wanted in alone for token in wanted.token_ids]
    assert answer["finish_reason"] == [wanted.finish_reason for wanted in alone]
    assert answer["cum_log_probs"] == pytest.approx([wanted.cum_log_prob for wanted in alone], abs=0.1)


def test_the_asyncio_client(server: TritonServer, alone):
    async def ask() -> list[Result]:
        async with AsyncClient(server.grpc_url) as client:
            return await client.samples(PROMPT, count=COUNT, random_seed=SEED, **PARAMETERS)

    assert [answer.text for answer in asyncio.run(ask())] == [wanted.text for wanted in alone]


def test_the_command_line(server: TritonServer, alone, capsys):
    options = ["--url", server.grpc_url, "--max-tokens", "16", "--temperature", "0.9", "--random-seed", str(SEED)]
    assert main(["generate", PROMPT, "-n", str(COUNT), "--json", *options]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == [w.text for w in alone]


def test_cancelling_ends_all_of_them_and_counts_one_request(server: TritonServer, client):
    def cancelled() -> float:
        return read_metrics(server.metrics_url).by_label("tandem_requests_total", "outcome").get("cancelled", 0.0)

    before = cancelled()
    stream = client.stream(PROMPT, num_return_sequences=8, temperature=1.0, max_tokens=LONG, min_length=LONG)
    seen = set()
    while len(seen) < 8:
        seen.add(next(stream).sequence_index)
    stream.cancel()
    wait_for_gauges(server, running_sequences=0.0, queued_sequences=0.0, kv_blocks_used=0.0)
    wait_until(lambda: cancelled() == before + 1, "one cancelled request")


def test_greedy_answers_are_refused(client):
    with pytest.raises(InvalidRequest, match="num_return_sequences: greedy answers are all the same"):
        client.samples(PROMPT, count=2)
