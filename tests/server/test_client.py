"""The client library and its command line against the real server and the default model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served_engine import LONG

from client import AsyncClient, Cancelled, Client, InvalidRequest, TimedOut, Unavailable, Unsupported
from client.metrics import read_metrics
from launcher.demo import run_demo
from launcher.server import REPOSITORY

ROOT = Path(__file__).parents[2]
PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Name three rivers."}]
LOADED = ("generate", "target")
# All of the repository are listed.
MODELS = {
    path.parent.name: "READY" if path.parent.name in LOADED else "UNLOADED"
    for path in REPOSITORY.glob("*/config.pbtxt")
}


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.grpc_url) as connection:
        yield connection


def wait_for_metric(server, name: str, wanted: float, seconds: float = 10.0) -> None:
    """Until a gauge has a value; it is published a few times a second."""
    give_up = time.monotonic() + seconds
    while (value := read_metrics(server.metrics_url).value(name)) != wanted:
        assert time.monotonic() < give_up, f"{name} stays at {value}, not {wanted}"
        time.sleep(0.05)


def wait_until_idle(server) -> None:
    for name in ("tandem_running_sequences", "tandem_queued_sequences", "tandem_kv_blocks_used"):
        wait_for_metric(server, name, 0)


def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "client", *arguments],
        cwd=ROOT,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_readiness(client):
    assert client.server_ready()
    assert client.model_ready()
    assert not client.model_ready("no-such-model")
    assert client.models() == MODELS


@pytest.mark.parametrize("question", [{"prompt": PROMPT}, {"messages": MESSAGES}], ids=["prompt", "messages"])
def test_stream_and_whole_are_the_same(client, question):
    options = question | {"max_tokens": 24, "return_token_ids": True, "return_log_probs": True}
    whole = client.generate(**options)
    stream = client.stream(**options)
    chunks = list(stream)
    streamed = stream.result()
    assert len(chunks) > 2
    assert "".join(chunk.text for chunk in chunks) == streamed.text == whole.text
    assert streamed.token_ids == whole.token_ids
    assert streamed.log_probs == pytest.approx(whole.log_probs, abs=0.05)  # the order of other requests' steps
    assert streamed.cum_log_prob == pytest.approx(sum(streamed.log_probs), abs=1e-3)
    assert len(streamed.token_ids) == len(streamed.log_probs) == streamed.generated_tokens
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (streamed.finish_reason, streamed.prompt_tokens) == (whole.finish_reason, whole.prompt_tokens)
    assert 0 < stream.timing.ttft_s < stream.timing.total_s
    assert math.isclose(stream.timing.tokens_per_s * stream.timing.total_s, streamed.generated_tokens)


def test_options_reach_the_model(client):
    limited = client.generate(PROMPT, max_tokens=3)
    assert (limited.generated_tokens, limited.finish_reason) == (3, "length")
    whole = client.generate(PROMPT, max_tokens=8)
    assert " Paris" in whole.text
    stopped = client.generate(PROMPT, max_tokens=8, stop_words=["Par"])
    assert (stopped.text, stopped.finish_reason) == (whole.text[: whole.text.index("Par")], "stop")
    assert client.generate(PROMPT, max_tokens=8, exclude_input_in_output=False).text == PROMPT + whole.text
    drawn = [client.generate(PROMPT, max_tokens=12, temperature=1.5, random_seed=seed).text for seed in range(4)]
    assert len(set(drawn)) > 1
    assert client.generate(PROMPT, max_tokens=12, temperature=1.5, random_seed=3).text == drawn[3]


def test_cancel_frees_the_sequence(server, client):
    stream = client.stream(PROMPT, max_tokens=LONG, min_length=LONG)
    next(stream)
    wait_for_metric(server, "tandem_running_sequences", 1)
    stream.cancel()
    with pytest.raises(Cancelled):
        stream.result()
    wait_until_idle(server)


def test_cancel_from_another_thread(server, client):
    stream = client.stream(PROMPT, max_tokens=LONG, min_length=LONG)
    next(stream)
    threading.Timer(0.2, stream.cancel).start()
    with pytest.raises(Cancelled):
        stream.result()
    wait_until_idle(server)


def test_leaving_the_loop_frees_the_sequence(server, client):
    for _ in client.stream(PROMPT, max_tokens=LONG, min_length=LONG):
        wait_for_metric(server, "tandem_running_sequences", 1)
        break
    wait_until_idle(server)


def test_closing_the_client_frees_its_sequences(server):
    with Client(server.grpc_url) as client:
        streams = [client.stream(PROMPT, max_tokens=LONG, min_length=LONG) for _ in range(3)]
        for stream in streams:
            next(stream)
        wait_for_metric(server, "tandem_running_sequences", 3)
    wait_until_idle(server)


def test_timeouts(server, client):
    with pytest.raises((Unavailable, TimedOut)):
        client.generate(PROMPT, max_tokens=LONG, min_length=LONG, timeout=0.3)
    wait_until_idle(server)


@pytest.mark.parametrize(
    ("parameters", "kind", "field"),
    [
        ({"temperature": float("nan")}, InvalidRequest, "temperature"),
        ({"max_tokens": -1}, InvalidRequest, "max_tokens"),
        ({"top_p": 2.0}, InvalidRequest, "top_p"),
        ({"beam_width": 4}, Unsupported, "beam_width"),
        ({"length_penalty": 2.0}, Unsupported, "length_penalty"),
    ],
)
def test_errors_have_their_type_and_name_the_field(client, parameters, kind, field):
    with pytest.raises(kind, match=field):
        client.generate(PROMPT, **parameters)
    with pytest.raises(kind, match=field):
        next(client.stream(PROMPT, **parameters))


def test_wrong_prompts(client):
    for prompt in ("", b"\xff\xfe"):
        with pytest.raises(InvalidRequest, match="text_input"):
            client.generate(prompt)
    with pytest.raises(InvalidRequest, match="messages"):
        client.generate(messages=[])


def test_a_model_that_is_not_there(server):
    with Client(server.grpc_url, model="no-such-model") as client, pytest.raises(Unavailable, match="no-such-model"):
        client.generate(PROMPT)


def test_many_streams_of_one_client_beside_errors(client):
    """An error or a cancel in one stream leaves the others as they are."""

    def one(index: int) -> str:
        if index % 4 == 3:
            with pytest.raises(InvalidRequest):
                client.generate(PROMPT, top_p=2.0)
            next(client.stream(PROMPT, max_tokens=500))
            return ""
        return client.stream(PROMPT, max_tokens=16).result().text

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(one, range(16)))
    complete = [text for index, text in enumerate(texts) if index % 4 != 3]
    assert len(complete) == 12
    assert all(" Paris" in text for text in complete)


def test_asyncio(server):
    async def scenario() -> None:
        async with AsyncClient(server.grpc_url) as client:
            results = await asyncio.gather(
                *(client.stream(PROMPT, max_tokens=16).result() for _ in range(6)),
                client.generate(PROMPT, max_tokens=16),
                client.generate(messages=MESSAGES, max_tokens=16),
                client.generate(PROMPT, top_k=-1),
                return_exceptions=True,
            )
            assert all(" Paris" in result.text for result in results[:7])
            assert results[7].generated_tokens == 16
            assert isinstance(results[8], InvalidRequest)

            cancelled = client.stream(PROMPT, max_tokens=LONG, min_length=LONG)
            await anext(cancelled)
            cancelled.cancel()
            with pytest.raises(Cancelled):
                await cancelled.result()

            async with client.stream(PROMPT, max_tokens=LONG, min_length=LONG) as left:
                await anext(left)
            async for _ in client.stream(PROMPT, max_tokens=LONG, min_length=LONG):
                break

            reader = asyncio.create_task(client.generate(PROMPT, max_tokens=LONG, min_length=LONG))
            await asyncio.sleep(0.3)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await asyncio.to_thread(wait_until_idle, server)  # with the connection still open

    asyncio.run(scenario())


def test_command_generate(server, client):
    expected = client.generate(PROMPT, max_tokens=12).text
    for extra in ([], ["--no-stream"]):
        done = run("generate", PROMPT, "--max-tokens", "12", "--url", server.grpc_url, *extra)
        assert (done.returncode, done.stdout) == (0, expected + "\n")
        assert "12 generated tokens" in done.stderr
        assert "\x1b" not in done.stdout + done.stderr


def test_command_generate_reads_a_pipe_and_writes_json(server, client):
    expected = client.generate(PROMPT, max_tokens=6, return_token_ids=True)
    done = run(
        *("generate", "-", "--json", "--max-tokens", "6", "--return-token-ids", "--url", server.grpc_url),
        stdin=PROMPT,
    )
    assert done.returncode == 0
    fields = json.loads(done.stdout)
    assert (fields["text"], fields["token_ids"]) == (expected.text, list(expected.token_ids))
    assert fields["timing"]["ttft_s"] > 0


def test_command_generate_shows_errors(server):
    done = run("generate", PROMPT, "--temperature", "nan", "--url", server.grpc_url)
    assert done.returncode == 2
    assert "temperature" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_command_and_frees_the_sequence(server):
    command = [sys.executable, "-m", "client", "generate", PROMPT, "--url", server.grpc_url]
    with subprocess.Popen(
        [*command, "--max-tokens", str(LONG), "--min-length", str(LONG)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.read(process.stdout.fileno(), 1)
        for _ in range(10):  # Python loses an interrupt that meets it in a callback or a destructor: press again
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, error = process.communicate(timeout=3)
                break
    assert process.returncode == 130
    assert b"Traceback" not in error
    wait_until_idle(server)


def test_command_chat(server, client):
    system = {"role": "system", "content": "You are brief."}
    expected = client.generate(messages=[system, *MESSAGES], max_tokens=10).text
    options = ["--system", "You are brief.", "--max-tokens", "10", "--url", server.grpc_url]
    done = run("chat", "--message", MESSAGES[0]["content"], *options)
    assert (done.returncode, done.stdout) == (0, expected + "\n")

    first = {"role": "assistant", "content": expected}
    second = client.generate(
        messages=[system, *MESSAGES, first, {"role": "user", "content": "Why?"}], max_tokens=10
    ).text
    turns = f"{MESSAGES[0]['content']}\nWhy?\n/reset\n{MESSAGES[0]['content']}\n/quit\nnot asked\n"
    done = run("chat", *options, stdin=turns)
    assert (done.returncode, done.stdout) == (0, f"{expected}\n{second}\n{expected}\n")


def test_command_compare(server, client):
    prompt = "1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2,"
    expected = client.generate(prompt, max_tokens=40).text
    options = ["--rounds", "2", "--max-tokens", "40", "--url", server.grpc_url]
    done = run("compare", prompt, *options, "--drafter", "suffix")
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert "identical text: yes" in done.stdout
    assert re.search(r"speed-up  \d+\.\d\d \(.*, 2 rounds\)", done.stdout)
    accepted = re.search(r"(\d+) verified, (\d+) accepted \(\2 of suffix\); (\d+\.\d+) tokens per step", done.stdout)
    assert accepted, done.stdout
    assert 0 < int(accepted[2]) <= int(accepted[1])
    assert float(accepted[3]) > 1
    assert "\x1b" not in done.stdout + done.stderr

    sampled = run("compare", "--chat", "Name three rivers.", "--temperature", "0.9", *options)
    assert (sampled.returncode, sampled.stderr) == (0, "")
    assert "identical text: yes" in sampled.stdout


def test_every_character_of_a_stream_belongs_to_a_token(client):
    """Also where a token ends inside a character, and where text waits for the end of a stop word."""
    request = {"max_tokens": 48, "temperature": 0.7, "random_seed": 3, "return_token_ids": True}
    stream = client.stream("é 日本 émile 日本 🙂 émile 日本", stop_words=["qqq", "日本x"], **request)
    for chunk in stream:
        assert len(chunk.text_lengths) == len(chunk.token_ids)
        assert sum(chunk.text_lengths) == len(chunk.text)
        assert "".join(piece for piece, _ in chunk.pieces()) == chunk.text
    whole = client.generate("é", max_tokens=8, exclude_input_in_output=False, return_token_ids=True)
    assert whole.text.startswith("é")


def test_command_status(server, client):
    stream = client.stream(PROMPT, max_tokens=LONG, min_length=LONG)
    next(stream)
    done = run("status", "--json", "--url", server.grpc_url, "--metrics-url", server.metrics_url)
    assert done.returncode == 0
    status = json.loads(done.stdout)
    assert status["ready"]
    assert status["models"] == MODELS
    assert status["running_sequences"] == 1
    assert status["rows_per_step"] == 1.0
    assert status["generated_per_s"] > 0
    assert 0 < status["kv_blocks_used"] < status["kv_blocks_total"]
    table = run("status", "--url", server.grpc_url, "--metrics-url", server.metrics_url)
    assert table.returncode == 0
    assert "1 running, 0 queued" in table.stdout
    assert "\x1b" not in table.stdout
    stream.close()
    wait_until_idle(server)


def test_demo(server, capsys):
    assert run_demo(server.grpc_url, server.metrics_url) == 0
    shown = capsys.readouterr().out
    assert shown.count("TTFT") == 2
    assert "8 at a time" in shown
    assert "the requests shared their steps" in shown
