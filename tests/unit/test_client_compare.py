"""`python -m client compare` with prepared streams instead of a server."""

import struct

import grpc
import pytest
from grpc_calls import Call, Refused, response, string
from rich.console import Console

from client import Chunk, Result, Timing, compare
from client.__main__ import main
from client.comparison import Comparison, steps
from client.response import parse_chunk
from client.side_by_side import Column, LiveView
from client.sync import Stream


def answer(*tokens, drafted=0):
    """Two responses: text, id and origin of each token; the second ends the stream."""
    calls = []
    for part, last in ((tokens[:1], False), (tokens[1:], True)):
        texts, ids, origins = zip(*part, strict=True)
        outputs = {
            "text_output": string("".join(texts)),
            "output_ids": struct.pack(f"<{len(ids)}i", *ids),
            "output_origins": bytes(origins),
            "output_text_lengths": struct.pack(f"<{len(texts)}i", *map(len, texts)),
        }
        if last:
            accepted = sum(origin > 0 for _, _, origin in tokens)
            counts = {"prompt_tokens": 5, "generated_tokens": len(tokens), "drafted_tokens": drafted}
            counts["accepted_draft_tokens"] = accepted
            outputs |= {name: struct.pack("<i", count) for name, count in counts.items()}
            outputs["finish_reason"] = string("stop")
        calls.append(response(**outputs))
    return Call(*calls)


PLAIN = [("né", 1, 0), (" b", 2, 0), (" c", 3, 0)]
DRAFTED = [("né", 1, 0), (" b", 2, 1), (" c", 3, 2)]


@pytest.fixture
def served(monkeypatch):
    """A client that answers with the calls of this list and notes what it was asked in the other."""
    calls, asked = [], []

    class Prepared:
        def __init__(self, url):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def stream(self, prompt, **arguments):
            asked.append({"prompt": prompt, **arguments})
            return Stream(calls.pop(0))

    monkeypatch.setattr(compare, "Client", Prepared)
    return calls, asked


def test_both_ways_take_turns_and_are_summed_up(served, capsys):
    calls, asked = served
    for _ in range(2):
        calls += [answer(*PLAIN), answer(*DRAFTED, drafted=4)]
    assert main(["compare", "x", "--rounds", "2", "--max-tokens", "3", "--timeout", "9"]) == 0
    out = capsys.readouterr().out
    assert out.count("né b c") == 1
    assert "identical text: yes" in out
    assert "drafts    4 verified, 2 accepted (1 of suffix, 1 of draft); 1.50 tokens per step" in out
    assert "2 rounds" in out
    assert "\x1b" not in out
    assert [request["drafter"] for request in asked] == ["none", "auto"] * 2
    assert all((r["prompt"], r["messages"], r["max_tokens"], r["timeout"]) == ("x", None, 3, 9.0) for r in asked)
    assert len({request["cache_salt"] for request in asked}) == 4
    assert "random_seed" not in asked[0]


def test_options_of_the_request(served):
    calls, asked = served
    calls += [answer(*PLAIN) for _ in range(4)]
    options = ["--rounds", "1", "--drafter", "suffix", "--num-draft-tokens", "3", "--temperature", "0.8"]
    assert main(["compare", "--chat", "x", *options]) == 0
    assert main(["compare", "x", *options, "--random-seed", "7", "--cache-salt", "s"]) == 0
    assert [request["drafter"] for request in asked] == ["none", "suffix"] * 2
    assert asked[0]["messages"] == [{"role": "user", "content": "x"}]
    assert asked[0]["prompt"] is None
    assert [request["random_seed"] for request in asked] == [compare.SEED] * 2 + [7] * 2
    assert asked[2]["cache_salt"] == asked[3]["cache_salt"] == "s"
    assert all(request["num_draft_tokens"] == 3 for request in asked)


def test_a_difference_is_an_error_and_shows_both(served, capsys):
    calls, _ = served
    calls += [answer(*PLAIN), answer(*PLAIN[:2], (" d", 4, 1)), answer(*PLAIN), answer(*PLAIN)]
    assert main(["compare", "x", "--rounds", "1"]) == 1
    out = capsys.readouterr().out
    assert "identical text: NO (round 1, auto: token 3 is not that of none in round 1)" in out
    assert "né b c" in out
    assert "né b d" in out


def test_ctrl_c_and_errors_end_it_as_in_other_commands(served, capsys):
    calls, _ = served
    interrupted = answer(*PLAIN)
    interrupted.events.insert(1, KeyboardInterrupt())
    calls.append(interrupted)
    assert main(["compare", "x"]) == 130
    assert interrupted.cancelled
    calls += [answer(*PLAIN), Call(Refused(grpc.StatusCode.UNAVAILABLE, "the queue is full"))]
    assert main(["compare", "x"]) == 1
    assert "the queue is full" in capsys.readouterr().err


def result(*origins, ids=(1, 2, 3), seconds=1.0):
    timing = Timing(started=0.0, ttft_s=0.1, arrivals_s=[seconds], generated_tokens=3)
    return Result("abc", "stop", 5, 3, timing, token_ids=ids, origins=origins or None)


def test_steps_end_with_a_token_of_the_target():
    assert steps(result("target", "suffix", "target")) == 2
    assert steps(result("target", "suffix", "draft")) == 2  # an accepted end token
    assert steps(result()) is None


def test_speed_up_is_of_pairs():
    rounds = [(result(seconds=2.0), result(seconds=1.0)), (result(seconds=3.0), result(seconds=1.0))]
    lines = Comparison(("none", "auto"), rounds).lines()
    assert lines[1] == "none  2.50 s, TTFT 100 ms, 1.2 tokens/s"
    assert lines[3] == "speed-up  2.50 (2.00 to 3.00, 2 rounds)"


def test_differences_between_rounds_count():
    same, shorter = (result(), result()), (result(ids=(1, 2)), result())
    assert Comparison(("none", "auto"), [same, same]).difference() is None
    found = Comparison(("none", "auto"), [same, shorter]).difference()
    assert found == "round 2, none: token 3 is not that of none in round 1"


def test_pieces_of_a_chunk():
    first, last = (parse_chunk(event.infer_response) for event in answer(*DRAFTED).events)
    assert first.pieces() == [("né", "target")]
    assert last.pieces() == [(" b", "suffix"), (" c", "draft")]
    assert Chunk("ab", (1, 2), origins=("target", "suffix")).pieces() == [("ab", "target")]  # an older server
    echoed = Chunk("prompt, b", (1,), origins=("suffix",), text_lengths=(2,))
    assert echoed.pieces() == [("prompt,", "target"), (" b", "suffix")]
    assert Chunk("", (1,), origins=("target",), text_lengths=(0,)).pieces() == []


def test_the_view_colours_drafts_and_keeps_the_end_of_a_long_text():
    console = Console(
        force_terminal=True, width=60, height=16, record=True, color_system="standard", legacy_windows=False
    )
    column = Column("auto")
    for number in range(40):
        column.take(Chunk(f"line {number}\n", (1,), origins=("suffix",), text_lengths=(8,)), 1.0)
    with console.capture() as captured, LiveView(console, [Column("none"), column], "round 1 of 1") as view:
        view.show(at_once=True)
    drawn = captured.get()
    assert "\x1b[32mline 38" in drawn
    assert "line 20" not in drawn
    assert "auto: 40 tokens, 40 tokens/s" in drawn
