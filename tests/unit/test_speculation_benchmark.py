"""The pure parts of `benchmarks.speculation`: workloads, counters, statistics and the page."""

from __future__ import annotations

import json

import pytest

from benchmarks import workloads
from benchmarks.closed_loop import Answers, answer_all, difference
from benchmarks.counters import Counters
from benchmarks.speculation import turns
from benchmarks.speculation_report import (
    Cell,
    Run,
    cost_table,
    page,
    place_table,
    speed_table,
    table,
    time_table,
)
from benchmarks.step_times import StepTimes
from client import Result, Timing
from client.metrics import Reading

METRICS = """\
# TYPE tandem_step_rows_sum counter
tandem_step_rows_sum 30
# TYPE tandem_step_rows_count counter
tandem_step_rows_count 10
# TYPE tandem_draft_tokens_total counter
tandem_draft_tokens_total{position="1"} 10
tandem_draft_tokens_total{position="2"} 5
# TYPE tandem_accepted_tokens_total counter
tandem_accepted_tokens_total{position="1"} 8
tandem_accepted_tokens_total{position="2"} 1
# TYPE tandem_drafts_total counter
tandem_drafts_total 10
# TYPE tandem_chosen_tokens_total counter
tandem_chosen_tokens_total{origin="target"} 20
tandem_chosen_tokens_total{origin="suffix"} 6
tandem_chosen_tokens_total{origin="draft"} 4
# TYPE tandem_forward_seconds_total counter
tandem_forward_seconds_total 1.5
"""
STEADY = {1: [0.012, 0.010], 2: [0.011, 0.012], 4: [0.018, 0.03], 8: [0.04, 0.05]}
TIMES = StepTimes(STEADY, {**STEADY, 4: [0.03, 0.02]})


def test_counters_are_read_and_subtracted():
    found = Counters.read(Reading(METRICS))
    assert (found.steps, found.rows, found.forward_s, found.runs) == (10, 30, 1.5, 10)
    assert (found.target, found.suffix, found.draft) == (20, 6, 4)
    assert found.drafted == 15
    assert found.width == 4.5
    assert found.tokens_per_step == 1.5
    assert found.acceptance()[:3] == [0.8, 0.2, None]
    assert found - found == Counters()
    assert (found + found).verified[:2] == (20, 10)
    assert Counters().tokens_per_step == Counters().width == 0


def cell(workload: str = "copying", streams: int = 1) -> Cell:
    plain = Counters(steps=100, rows=100, target=100, forward_s=1.0, propose_s=0.1, sampling_s=0.2)
    drafted = Counters(
        steps=50, rows=50, target=50, suffix=50, forward_s=0.6, runs=50,
        verified=(50.0,) * 3 + (0.0,) * 13, accepted=(30.0, 20.0, 0.0) + (0.0,) * 13,
    )  # fmt: skip
    turns = [(Run(2.0, 100, plain), Run(1.0, 100, drafted)), (Run(3.0, 100, plain), Run(1.0, 100, drafted))]
    return Cell(workload, streams, 7, turns)


def cells_of(markdown: str, row: int = 2) -> list[str]:
    return [text.strip() for text in markdown.splitlines()[row].strip("|").split("|")]


@pytest.mark.parametrize(
    ("requests", "streams", "sizes"),
    [(80, 1, [10] * 8), (25, 1, [12, 13]), (6, 1, [6]), (80, 8, [40, 40]), (80, 32, [80]), (68, 32, [68])],
)
def test_every_request_has_its_turn(requests, streams, sizes):
    jobs = workloads.jobs("copying", requests)
    portions = turns(jobs, streams)
    assert [len(portion) for portion in portions] == sizes
    assert [job for portion in portions for job in portion] == jobs


def test_speed_up_is_of_the_runs_of_a_turn():
    row = cells_of(speed_table([cell()], "auto", TIMES))
    assert row[:3] == ["copying", "1", "7"]
    assert row[3:7] == ["41.7 (33.3–50.0)", "100.0 (100.0–100.0)", "2.50 (2.00–3.00)", "2.00"]
    assert row[7] == "1.00"  # half the steps, of width 4, which take twice as long as those of width 1


def test_acceptance_by_place():
    assert cells_of(place_table([cell()]))[2:6] == ["60%", "40%", "0%", "–"]


def test_where_the_time_goes():
    lines = time_table([cell(), cell("mixed", 4)], "auto")
    assert "mixed" not in lines
    assert cells_of(lines)[2:] == [
        "none", "100", "1.0", "1.0", "2.50", "0.10", "1.00", "0.20", "1.20", "48.0%", "12.00",
    ]  # fmt: skip
    assert cells_of(lines, 3)[2:6] == ["auto", "50", "1.0", "4.0"]
    assert "mixed" in time_table([cell("mixed", 4)], "auto")


def test_what_a_wider_step_costs():
    assert cells_of(cost_table(TIMES), 4) == ["4", "24.0", "18.0", "20.0", "1.80", "2.00"]


def test_a_table_is_aligned():
    lines = table(["name", "n"], [["a", "1"], ["longer", "1234"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ------ | ---: |"


def test_a_page_says_whether_answers_were_the_same():
    good, bad = cell(), cell("mixed")
    assert "Every request got the same token ids" in page([good], "auto", TIMES, "Made by hand.")
    bad.differences.append("turn 1: request 3 differs at token 9")
    text = page([good, bad], "auto", TIMES, "Made by hand.")
    assert "Every request" not in text
    assert "* mixed, 1 streams, turn 1: request 3 differs at token 9" in text


def answers(*ids: tuple[int, ...]) -> Answers:
    return Answers(1.0, [Result("", "stop", 1, len(one), Timing(), token_ids=one) for one in ids])


def test_difference():
    assert difference(answers((1, 2), (3,)), answers((1, 2), (3,))) is None
    assert difference(answers((1, 2), (3, 4)), answers((1, 2), (3, 5))) == "request 2 differs at token 2"
    assert difference(answers((1, 2)), answers((1,))) == "request 1 differs at token 2"


class Prepared:
    """A client that answers with the message's length; refuses the message that it is told to."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused
        self.asked: list[dict] = []

    def stream(self, **arguments):
        self.asked.append(arguments)
        return self

    def result(self) -> Result:
        message = self.asked[-1]["messages"][0]["content"]
        if message == self.refused:
            raise ConnectionError(message)
        return Result("", "stop", 1, len(message), Timing(), token_ids=(1,))


def test_a_closed_loop_answers_all_in_order():
    jobs = [workloads.Job("a", {"max_tokens": 3}), workloads.Job("bb", {}, repetition=1)]
    client = Prepared()
    found = answer_all(client, jobs, 1, "auto", "run 1")
    assert [result.generated_tokens for result in found.results] == [1, 2]
    assert found.tokens == 3
    assert client.asked[0]["max_tokens"] == 3
    assert [request["cache_salt"] for request in client.asked] == ["run 1/0", "run 1/1"]
    assert {request["drafter"] for request in client.asked} == {"auto"}
    with pytest.raises(ConnectionError):
        answer_all(Prepared("bb"), jobs, 1, "auto", "run 1")


@pytest.fixture
def questions(monkeypatch):
    monkeypatch.setattr(workloads.mt_bench, "prompts", lambda count=80: [f"question {n}" for n in range(count)])


def test_workloads(questions):
    greedy, sampled = workloads.jobs("mt-bench", 5), workloads.jobs("mt-bench-sampled", 5)
    assert [job.message for job in greedy] == [job.message for job in sampled] == [f"question {n}" for n in range(5)]
    assert all(job.parameters == {"max_tokens": 128} for job in greedy)
    assert [job.parameters["random_seed"] for job in sampled] == list(range(5))
    assert len(workloads.jobs("mt-bench")) == 80
    mixed = workloads.jobs("mixed", 8)
    assert ["temperature" in job.parameters for job in mixed] == [False, False, False, True] * 2
    assert [job.message.startswith("question") for job in mixed] == [False, True] * 4
    assert len(workloads.jobs("mixed", 1)) == 1


@pytest.mark.parametrize("name", workloads.NAMES)
def test_no_two_requests_of_a_run_share_message_and_salt(questions, name):
    for count in (None, 1, 37, 100):
        jobs = workloads.jobs(name, count)
        assert count is None or len(jobs) == count
        assert len({(job.message, str(job.parameters), job.repetition) for job in jobs}) == len(jobs)


def test_copying_prompts():
    entries = json.loads(workloads.COPYING.read_text(encoding="utf-8"))
    assert len({entry["prompt"] for entry in entries}) == len(entries) == 16
    assert {entry["kind"] for entry in entries} == {"repeat", "spelling", "rewrite", "code", "edit"}
