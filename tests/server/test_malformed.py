"""Malformed requests: each gets an error that says what is wrong, and streams beside them go on unchanged."""

from __future__ import annotations

import http.client
import json
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from malformed import (
    BY_TRITON,
    INVALID,
    Case,
    HttpCase,
    malformed_cases,
    malformed_http_cases,
    valid_case,
    valid_http_case,
)
from serving import IN_BAND, RawCalls, idle_reading, stub_pids
from tritonclient.grpc import service_pb2

from client import Client
from tandem.wire import pack

SEED = 20
GRPC_CASES, HTTP_CASES = 150, 50
AT_A_TIME = 4
SECONDS = 30.0  # in which every request must be answered
PROMPT, TOKENS = "Once upon a time there was", 48


def complaint(case: Case, status: str, message: str) -> str | None:
    """What is wrong with the answer to a malformed request."""
    wanted = f"[{case.code}] {case.field}"
    if status != IN_BAND:
        return f"{case.name}: {status} instead of an error: {message[:100]}"
    if case.code is not BY_TRITON and not message.startswith(wanted):
        return f"{case.name}: {message[:100]!r} does not begin with {wanted!r}"
    if case.field not in message:
        return f"{case.name}: {message[:100]!r} does not name {case.field}"
    return None


def check(calls: RawCalls, case: Case) -> str | None:
    return complaint(case, *calls.send(case.message, SECONDS))


def check_http(url: str, case: HttpCase) -> str | None:
    connection = http.client.HTTPConnection(url, timeout=SECONDS)
    try:
        connection.request(case.method, case.path, case.body, dict(case.headers))
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
    except OSError as error:  # also what a timeout raises
        return f"{case.name}: {error!r}"
    finally:
        connection.close()
    if response.status < 400 or "error" not in body or case.field not in body:
        return f"{case.name}: {response.status} {body[:100]}, should name {case.field!r}"
    return None


def greedy(client: Client) -> tuple[int, ...] | None:
    return client.generate(PROMPT, max_tokens=TOKENS, min_length=TOKENS, return_token_ids=True).token_ids


@contextmanager
def undisturbed(server) -> Iterator[None]:
    """One greedy stream after the other, from before the block to after it: all must be as without the block."""
    with Client(server.grpc_url) as client:
        alone = greedy(client)
        pids = stub_pids(server)
        started, over = threading.Event(), threading.Event()

        def follow() -> list[tuple[int, ...] | None]:
            beside = []
            while not (beside and over.is_set()):
                stream = client.stream(PROMPT, max_tokens=TOKENS, min_length=TOKENS, return_token_ids=True)
                next(stream)
                started.set()
                beside.append(stream.result().token_ids)
            return beside

        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(follow)
            assert started.wait(SECONDS)
            try:
                yield
            finally:
                over.set()
            assert set(following.result()) == {alone}
    assert stub_pids(server) == pids, "a stub was restarted"
    idle_reading(server)  # ends only when no block is in use


def test_malformed_requests_get_errors_and_disturb_nobody(server):
    cases = list(malformed_cases(SEED, GRPC_CASES))
    http_cases = list(malformed_http_cases(SEED, HTTP_CASES))
    before = idle_reading(server).by_label("tandem_requests_total", "outcome")
    with undisturbed(server), RawCalls(server.grpc_url) as calls, ThreadPoolExecutor(AT_A_TIME) as pool:
        complaints = [
            *pool.map(lambda case: check(calls, case), cases),
            *pool.map(lambda case: check_http(server.http_url, case), http_cases),
        ]
    assert [text for text in complaints if text] == []
    after = idle_reading(server).by_label("tandem_requests_total", "outcome")
    refused = sum(case.code is not BY_TRITON for case in cases) + sum(bool(case.field) for case in http_cases)
    assert after["invalid"] - before["invalid"] >= refused
    assert {name: after[name] for name in after if name not in ("success", "invalid")} == {
        name: before[name] for name in before if name not in ("success", "invalid")
    }


def test_the_check_notices_what_is_not_malformed(server):
    with RawCalls(server.grpc_url) as calls:
        assert "OK instead of an error" in (check(calls, valid_case(SEED)) or "")
    assert "200" in (check_http(server.http_url, valid_http_case()) or "")


@pytest.mark.parametrize(
    ("status", "message", "wanted"),
    [
        ("DEADLINE_EXCEEDED", "", "DEADLINE_EXCEEDED instead of an error"),
        ("UNAVAILABLE", "Socket closed", "UNAVAILABLE instead of an error"),
        (IN_BAND, "[INTERNAL] top_p: is 2.0", "does not begin with"),
        (IN_BAND, "[INVALID_ARG] something is wrong", "does not begin with"),
        (IN_BAND, "[INVALID_ARG] top_p: is 2.0", None),
    ],
)
def test_the_check_wants_code_and_field(status, message, wanted):
    found = complaint(Case("case", service_pb2.ModelInferRequest(), INVALID, "top_p"), status, message)
    assert found is None if wanted is None else wanted in (found or "")


def test_a_prompt_of_50_mb(server):
    prompt = b"hello " * (50 * 10**6 // 6)
    size = len(prompt)
    message = service_pb2.ModelInferRequest(model_name="generate")
    message.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    message.raw_input_contents.append(struct.pack("<I", size) + prompt)
    body = b'{"text_input": "' + prompt + b'"}'
    with undisturbed(server), RawCalls(server.grpc_url) as calls:
        status, answer = calls.send(message, SECONDS)
        assert (status, f"[INVALID_ARG] text_input: has {size} bytes" in answer) == (IN_BAND, True)
        case = HttpCase("50 MB", "POST", "/v2/models/generate/generate", body, field=f"text_input: has {size} bytes")
        assert check_http(server.http_url, case) is None


def test_bytes_that_are_no_message(server):
    """Triton ends such a stream without a response; a client must not wait for one."""
    with undisturbed(server), RawCalls(server.grpc_url) as calls:
        for garbage in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"GET / HTTP/1.1\r\n\r\n"):
            assert calls.send(garbage, SECONDS) == ("OK", "")


# rows, tokens, opens
MALFORMED_STEPS: list[tuple[list[int], list[int], bytes | None]] = [
    ([0, 5, 1], [1], None),  # fewer tokens than announced
    ([0, 1, -1], [1], None),
    ([-1, 1, 1], [1], None),
    ([0, 0, 0], [], None),
    ([0, 1, 1], [10**9], None),  # outside the vocabulary
    ([0, 1, 1], [-1], None),
    ([0, 1, 1], [1], b"not JSON"),
    ([0, 1, 1], [1], b"\xff\xfe"),
    ([0, 1, 1], [1], b'[{"sequence": 7}]'),
    ([0, 1, 1], [1], json.dumps([{"sequence": 7, "prompt_length": 1, "sampling": {"top": 1}}]).encode()),
]


def test_malformed_steps_of_the_executor(server):
    """`target` is for the coordinator, but it listens to everybody."""
    with undisturbed(server), RawCalls(server.grpc_url) as calls:
        for rows, tokens, opens in MALFORMED_STEPS:
            message = service_pb2.ModelInferRequest(model_name="target")
            arrays = {
                "sequences": np.array([10**12], np.int64),
                "rows": np.array([rows], np.int32),
                "tokens": np.array(tokens, np.int32),
                "passes": np.array([1], np.int32),
            }
            if opens is not None:
                arrays["opens"] = np.frombuffer(opens, np.uint8)
            step = pack(arrays).tobytes()
            message.inputs.add(name="step", datatype="UINT8", shape=[len(step)])
            message.raw_input_contents.append(step)
            status, answer = calls.send(message, SECONDS)
            assert status == IN_BAND, f"{rows} {tokens} {opens!r}: {status} {answer}"
