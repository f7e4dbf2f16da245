"""The client's command line and its reading of the metrics, without a server."""

import json
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_calls import LAST, Call, Refused, response, string

from client import (
    Result,
    Timing,
    Unavailable,
)
from client.__main__ import main
from client.arguments import build_parser, parameters_from
from client.chat import Conversation
from client.metrics import Reading, mean_between, rate_between
from client.output import as_json, summary
from client.request import Parameters
from client.sync import Stream

ROOT = Path(__file__).parents[2]

METRICS = """\
# HELP tandem_requests_total Requests
# TYPE tandem_requests_total counter
tandem_requests_total{{outcome="success"}} {success}
tandem_requests_total{{outcome="error"}} 1
# TYPE tandem_step_rows histogram
tandem_step_rows_bucket{{le="+Inf"}} {steps}
tandem_step_rows_count {steps}
tandem_step_rows_sum {rows}
# TYPE nv_inference_count counter
nv_inference_count{{model="generate"}} 3
"""


def test_metrics_between_two_readings():
    before = Reading(METRICS.format(success=2, steps=10, rows=20))
    after = Reading(METRICS.format(success=7, steps=14, rows=52))
    before.at, after.at = 1.0, 3.0
    assert after.by_label("tandem_requests_total", "outcome") == {"success": 7, "error": 1}
    assert after.value("tandem_requests_total") == 8
    assert after.value("nv_inference_count") == 0
    assert mean_between(before, after, "tandem_step_rows") == 8
    assert mean_between(after, after, "tandem_step_rows") is None
    assert mean_between(None, before, "tandem_step_rows") == 2
    assert rate_between(before, after, "tandem_requests_total") == 2.5


def parse(*arguments):
    return parameters_from(build_parser().parse_args(arguments))


def test_arguments_become_parameters():
    assert parse("generate", "x") == {}
    assert parse("generate", "x", "--top-p", "0.5", "--random-seed", "18446744073709551615") == {
        "top_p": 0.5,
        "random_seed": 2**64 - 1,
    }
    assert parse("generate", "x", "--stop-words", "a", "b", "--return-log-probs", "--include-input") == {
        "stop_words": ["a", "b"],
        "return_log_probs": True,
        "exclude_input_in_output": False,
    }
    assert parse("chat", "--message", "hi", "--max-tokens", "5") == {"max_tokens": 5}


def test_every_parameter_can_be_given_on_the_command_line():
    options = vars(build_parser().parse_args(["generate", "x"]))
    assert set(Parameters.__annotations__) - set(options) == {"exclude_input_in_output"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate"],
        ["generate", "x", "--max-tokens", "many"],
        ["chat", "--timeout", "0"],
        ["compare", "x", "--rounds", "0"],
        ["fly"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["generate"], ["chat"], ["compare"], ["status"], ["cache"]])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "python -m client generate" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["generate", "x"], ["chat", "--message", "x"], ["compare", "x"], ["status"]])
def test_without_a_server_it_says_how_to_start_one(command, capsys):
    assert main([*command, "--url", "127.0.0.1:1"]) == 3
    captured = capsys.readouterr()
    assert "start it with `make serve`" in captured.err
    assert captured.out.strip() == ""


def test_a_value_that_does_not_fit(capsys):
    assert main(["generate", "x", "--max-tokens", "99999999999", "--url", "127.0.0.1:1"]) == 2
    assert "max_tokens" in capsys.readouterr().err


def test_json_and_summary():
    timing = Timing(started=0.0, ttft_s=0.5, arrivals_s=[0.5, 1.0], generated_tokens=3)
    result = Result("né", "length", 5, 3, timing, token_ids=(1, 2, 3))
    fields = json.loads(as_json(result))
    assert fields == {
        "text": "né",
        "finish_reason": "length",
        "prompt_tokens": 5,
        "generated_tokens": 3,
        "drafted_tokens": 0,
        "accepted_draft_tokens": 0,
        "cached_prompt_tokens": 0,
        "token_ids": [1, 2, 3],
        "timing": {"ttft_s": 0.5, "total_s": 1.0, "tokens_per_s": 3.0, "inter_token_s": [0.5]},
    }
    assert set(json.loads(as_json(result, streamed=False))["timing"]) == {"total_s", "tokens_per_s"}
    assert summary(result) == "[5 prompt + 3 generated tokens, TTFT 500 ms, 3.0 tokens/s, finish: length]"


class Answers:
    """Answers a chat with prepared calls and keeps the messages it was sent."""

    def __init__(self, *calls):
        self.calls = list(calls)
        self.sent = []

    def stream(self, *, messages, timeout):
        self.sent.append([dict(message) for message in messages])
        return Stream(self.calls.pop(0))


def test_a_chat_remembers(capsys):
    client = Answers(
        Call(response(text_output=string("Hello"), **LAST)),
        Call(response(text_output=string("half")), KeyboardInterrupt()),
        Call(Refused(grpc.StatusCode.UNAVAILABLE, "the queue is full")),
        Call(response(text_output=string("again"), **LAST)),
    )
    chat = Conversation("Be brief.")
    assert chat.answer(client, "Hi", {}, None).text == "Hello"
    assert chat.answer(client, "More", {}, None) is None  # stopped by Ctrl-C, and kept as far as it came
    with pytest.raises(Unavailable):
        chat.answer(client, "Lost", {}, None)
    chat.answer(client, "Go on", {}, None)
    assert capsys.readouterr().out == "Hellohalfagain"
    contents = [[message["content"] for message in messages] for messages in client.sent]
    assert contents[3] == ["Be brief.", "Hi", "Hello", "More", "half", "Go on"]
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]


SWALLOWED = """
import sys, time
from client.__main__ import raise_interrupt_again

class Swallows:
    def __del__(self):
        raise KeyboardInterrupt

sys.unraisablehook = raise_interrupt_again if sys.argv[1] == "again" else sys.__unraisablehook__
try:
    Swallows()
    time.sleep(0.5)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("hook", "status", "traceback"), [("again", 130, False), ("control", 0, True)])
def test_an_interrupt_that_a_destructor_swallows_comes_again(hook: str, status: int, traceback: bool) -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWED, hook], capture_output=True, cwd=ROOT, timeout=60)
    assert (done.returncode, b"Traceback" in done.stderr) == (status, traceback)
