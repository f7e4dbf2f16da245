"""The metrics on Triton's endpoint: every family is there, and the numbers are those that clients see."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from served_engine import HAS_SLOTS, LONG
from serving import BackgroundStream, gauges, idle_reading, wait_until

from client import Client, InvalidRequest, Unavailable
from client.metrics import Reading, read_metrics
from tandem.metrics import ITL_BUCKETS, ROWS_BUCKETS, TTFT_BUCKETS

HISTOGRAMS = {
    "tandem_ttft_seconds": TTFT_BUCKETS,
    "tandem_inter_token_latency_seconds": ITL_BUCKETS,
    "tandem_step_rows": ROWS_BUCKETS,
}
FAMILIES = {
    "tandem_requests": "counter",
    # Histograms are published as the counters they are made of.
    **{f"{name}_{series}": "counter" for name in HISTOGRAMS for series in ("bucket", "sum", "count")},
    "tandem_running_sequences": "gauge",
    "tandem_queued_sequences": "gauge",
    "tandem_prompt_tokens": "counter",
    "tandem_generated_tokens": "counter",
    "tandem_kv_blocks_used": "gauge",
    "tandem_kv_blocks_total": "gauge",
    "tandem_preemptions": "counter",
    "tandem_target_restarts": "counter",
    "tandem_forward_seconds": "counter",
    "tandem_sampling_seconds": "counter",
}
PROMPTS = ["One", "The capital of France is", "word " * 200, "Once upon a time there was a small house"]
LENGTHS = [1, 7, 20, 33]


class Change:
    """What happened between two readings of an idle server."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self._before, self._after = before, after

    def __call__(self, name: str) -> float:
        return self._after.value(name) - self._before.value(name)

    @property
    def outcomes(self) -> dict[str, float]:
        before, after = (
            reading.by_label("tandem_requests_total", "outcome") for reading in (self._before, self._after)
        )
        return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def test_every_family_is_there_with_its_type(server):
    with Client(server.grpc_url) as client:
        client.generate("One", max_tokens=2)
    idle_reading(server)
    text = requests.get(f"http://{server.metrics_url}/metrics", timeout=60).text
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: found[name].type for name in FAMILIES if name in found} == FAMILIES
    assert all(found[name].documentation for name in FAMILIES)
    outcomes = {sample.labels["outcome"] for sample in found["tandem_requests"].samples}
    assert outcomes == {"success", "invalid", "rejected", "timeout", "cancelled", "error"}


def test_the_numbers_are_those_of_the_answers(server):
    before = idle_reading(server)
    with Client(server.grpc_url) as client, ThreadPoolExecutor(len(PROMPTS)) as pool:
        results = list(
            pool.map(
                lambda item: client.generate(
                    item[0], max_tokens=item[1], min_length=item[1], return_token_ids=True, drafter="none"
                ),
                zip(PROMPTS, LENGTHS, strict=True),
            )
        )
    change = Change(before, idle_reading(server))
    assert [len(result.token_ids) for result in results] == LENGTHS
    assert change.outcomes == {"success": len(PROMPTS)}
    assert change("tandem_generated_tokens_total") == sum(LENGTHS)
    computed = sum(result.prompt_tokens - result.cached_prompt_tokens for result in results)
    assert change("tandem_prompt_tokens_total") == computed
    assert change("tandem_ttft_seconds_count") == len(PROMPTS)
    assert change("tandem_inter_token_latency_seconds_count") == sum(LENGTHS) - len(LENGTHS)
    # A row of a step gives a token, or takes in a part of a prompt that is not its last.
    assert sum(LENGTHS) <= change("tandem_step_rows_sum") < sum(LENGTHS) + 20
    assert max(LENGTHS) <= change("tandem_step_rows_count") <= change("tandem_step_rows_sum")
    assert change("tandem_forward_seconds_total") > change("tandem_sampling_seconds_total") > 0
    assert change("tandem_preemptions_total") == change("tandem_target_restarts_total") == 0
    assert change("tandem_ttft_seconds_sum") > 0
    spent = change("tandem_ttft_seconds_sum") + change("tandem_inter_token_latency_seconds_sum")
    assert spent <= sum(result.timing.total_s for result in results), "more time than the clients waited"


def test_requests_by_outcome(server):
    before = idle_reading(server)
    with Client(server.grpc_url) as client:
        client.generate("One", max_tokens=1)
        for _ in range(2):
            with pytest.raises(InvalidRequest):
                client.generate("One", top_p=2)
        with pytest.raises(Unavailable):
            client.generate("One", max_tokens=LONG, min_length=LONG, timeout=0.4)
    cancelled = BackgroundStream(server.grpc_url, "One", max_tokens=LONG, min_length=LONG)
    cancelled.wait_for_tokens(2)
    cancelled.cancel()
    cancelled.wait()
    change = Change(before, idle_reading(server))
    assert change.outcomes == {"success": 1, "invalid": 2, "timeout": 1, "cancelled": 1}


def test_gauges_follow_a_stream(server):
    idle_reading(server)
    total = read_metrics(server.metrics_url).value("tandem_kv_blocks_total")
    streams = [BackgroundStream(server.grpc_url, "word " * 100, max_tokens=LONG, min_length=LONG) for _ in range(2)]
    wait_until(lambda: gauges(server)["running_sequences"] == 2, "two sequences run")
    for stream in streams:
        stream.wait_for_tokens(1)
    least = 2 if HAS_SLOTS else 2 * 100 / 32
    wait_until(lambda: least <= gauges(server)["kv_blocks_used"] <= total, "their prompts are in KV blocks")
    for stream in streams:
        stream.cancel()
        stream.wait()
    assert idle_reading(server).value("tandem_kv_blocks_used") == 0
    assert read_metrics(server.metrics_url).value("tandem_kv_blocks_total") == total > (10 if HAS_SLOTS else 100)


def test_histograms_are_cumulative_and_have_the_documented_bounds(server):
    reading = idle_reading(server)
    for name, bounds in HISTOGRAMS.items():
        buckets = {float(bound): count for bound, count in reading.by_label(f"{name}_bucket", "le").items()}
        assert sorted(buckets) == [*bounds, float("inf")]
        counts = [buckets[bound] for bound in sorted(buckets)]
        assert counts == sorted(counts)
        assert counts[-1] == reading.value(f"{name}_count") > 0
