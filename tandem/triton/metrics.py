"""Publishes `tandem.metrics.Metrics` on Triton's own metrics endpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import triton_python_backend_utils as pb_utils

from tandem.metrics import OUTCOMES, Metrics
from tandem.step import MAX_DRAFTS, Origin
from tandem.tiers import TIERS

PUBLISH_S = 0.5

_COUNTERS = {
    "prompt_tokens": "Prompt tokens computed, again after a preemption",
    "generated_tokens": "Tokens generated",
    "preemptions": "Sequences that gave up their KV blocks to older ones",
    "target_restarts": "Times the target executor was loaded anew after a failure",
    "propose_s": "Seconds in the drafters",
    "forward_s": "Seconds in the target's forward passes",
    "sampling_s": "Seconds in the choice and acceptance of tokens",
    "drafts": "Runs of draft tokens that the target verified",
    "answer_hits": "Requests that were answered with the kept answer to an equal one",
    "answer_misses": "Requests for which no answer was kept, of those for which one may be",
}
_COUNTER_NAMES = {
    "propose_s": "propose_seconds",
    "forward_s": "forward_seconds",
    "sampling_s": "sampling_seconds",
    "answer_hits": "answer_cache_hits",
    "answer_misses": "answer_cache_misses",
}
# Counters with a label: field of Metrics -> name, label, its values, help.
_PLACES = tuple(str(place) for place in range(1, MAX_DRAFTS + 1))
_LABELLED = {
    "verified": ("draft_tokens_total", "position", _PLACES, "Draft tokens verified, by place in their run"),
    "accepted": ("accepted_tokens_total", "position", _PLACES, "Draft tokens accepted, by place in their run"),
    "origins": ("chosen_tokens_total", "origin", tuple(o.name.lower() for o in Origin), "Tokens by who proposed them"),
}
_TIER_COUNTERS = {
    "hit_tokens": ("prefix_hit_tokens_total", "Tokens of prompts that were found, by the tier they were in"),
    "restored_blocks": ("prefix_restored_blocks_total", "KV blocks fetched back from a tier below the pool"),
    "stored_blocks": ("prefix_stored_blocks_total", "KV blocks given to a tier below the pool"),
    "faults": ("prefix_faults_total", "Blocks of a tier that were damaged or foreign, and times it could not be used"),
}
_CACHE_COUNTERS = {
    "queried_tokens": ("prefix_queried_tokens_total", "Tokens of prompts that were looked for"),
    "evicted_blocks": ("prefix_evicted_blocks_total", "Kept KV blocks that the pool gave up"),
    "copied_blocks": ("prefix_copied_blocks_total", "KV blocks copied because a sequence goes on within them"),
}
_GAUGES = {
    "cached_blocks": ("prefix_blocks", "KV blocks of the pool that may be reused"),
    "pinned_blocks": ("prefix_pinned_blocks", "Of those, the ones that requests have pinned"),
    "answer_bytes": ("answer_cache_bytes", "Bytes of kept answers"),
    "running": ("running_sequences", "Sequences in the running batch"),
    "queued": ("queued_sequences", "Sequences that wait for a place in the running batch"),
    "kv_blocks_used": ("kv_blocks_used", "KV blocks in use"),
    "kv_blocks_total": ("kv_blocks_total", "KV blocks of the pool"),
}
_HISTOGRAMS = {
    "ttft": ("ttft_seconds", "Seconds from arrival to the first token"),
    "itl": ("inter_token_latency_seconds", "Seconds per token after the first"),
    "rows": ("step_rows", "Sequences in a step"),
}


class MetricsPublisher:
    """Copies the totals to Triton twice a second, as far as they changed."""

    def __init__(self, read: Callable[[], Metrics]) -> None:
        self._read = read
        self._metrics = read()
        # A metric works only while somebody holds its family.
        self._families: list[Any] = []
        self._published: dict[Any, float] = {}
        counter, gauge = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.GAUGE
        self._counters = {
            name: self._add(f"{_COUNTER_NAMES.get(name, name)}_total", help, counter)
            for name, help in _COUNTERS.items()
        }
        self._gauges = {field: self._add(name, help, gauge) for field, (name, help) in _GAUGES.items()}
        requests = self._family("requests_total", "Requests by outcome", counter)
        self._outcomes = {outcome: requests.Metric(labels={"outcome": outcome}) for outcome in OUTCOMES}
        self._labelled = {field: self._add_labelled(*entry) for field, entry in _LABELLED.items()}
        replicas = tuple(self._metrics.placed)
        self._placed = self._add_labelled(
            "placed_requests_total", "model", replicas, "Requests by the target they went to"
        )
        self._tiers = {
            field: self._add_labelled(name, "tier", TIERS, help) for field, (name, help) in _TIER_COUNTERS.items()
        }
        self._cache = {field: self._add(name, help, counter) for field, (name, help) in _CACHE_COUNTERS.items()}
        self._tier_bytes = self._add_labelled(
            "prefix_bytes", "tier", TIERS[1:], "Bytes in a tier below the pool", gauge
        )
        self._histograms = {field: self._add_histogram(field, *entry) for field, entry in _HISTOGRAMS.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish a last time, end the thread and let the metrics go."""
        self._stop.set()
        self._thread.join()
        # Left to the end of the process, their destructors would crash the stub.
        for metrics in (self._counters, self._gauges, self._labelled, self._histograms, self._outcomes):
            metrics.clear()
        for tiers in (self._tiers, self._cache, self._tier_bytes, self._placed):
            tiers.clear()
        self._families.clear()

    def _family(self, name: str, help: str, kind: Any) -> Any:
        family = pb_utils.MetricFamily(name=f"tandem_{name}", description=help, kind=kind)
        self._families.append(family)
        return family

    def _add(self, name: str, help: str, kind: Any) -> Any:
        return self._family(name, help, kind).Metric(labels={})

    def _add_labelled(self, name: str, label: str, values: tuple[str, ...], help: str, kind: Any = None) -> list[Any]:
        family = self._family(name, help, kind or pb_utils.MetricFamily.COUNTER)
        return [family.Metric(labels={label: value}) for value in values]

    def _add_histogram(self, field: str, name: str, help: str) -> list[Any]:
        """The series of a classic histogram: a counter for each bound, their sum, and how many there are."""
        counter = pb_utils.MetricFamily.COUNTER
        buckets = self._family(f"{name}_bucket", help, counter)
        bounds = getattr(self._metrics, field).bounds
        series = [buckets.Metric(labels={"le": "+Inf" if bound == float("inf") else str(bound)}) for bound in bounds]
        return [*series, self._add(f"{name}_sum", help, counter), self._add(f"{name}_count", help, counter)]

    def _run(self) -> None:
        while not self._stop.wait(PUBLISH_S):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        self._metrics = self._read()
        for name, counter in self._counters.items():
            self._raise_to(name, counter, getattr(self._metrics, name))
        for outcome, counter in self._outcomes.items():
            self._raise_to(outcome, counter, self._metrics.outcomes[outcome])
        for field, gauge in self._gauges.items():
            value = getattr(self._metrics, field)
            if value != self._published.get(field):
                gauge.set(value)
                self._published[field] = value
        for field, series in self._labelled.items():
            for index, value in enumerate(getattr(self._metrics, field)):
                self._raise_to((field, index), series[index], value)
        for index, value in enumerate(self._metrics.placed.values()):
            self._raise_to(("placed", index), self._placed[index], value)
        for field, series in self._tiers.items():
            for index, value in enumerate(self._metrics.cache.tiers(field)):
                self._raise_to((field, index), series[index], value)
        for field, counter in self._cache.items():
            self._raise_to(field, counter, self._metrics.cache.cache(field))
        for metric, value in zip(self._tier_bytes, self._metrics.tier_bytes[1:], strict=True):
            if value != self._published.get(metric):
                metric.set(value)
                self._published[metric] = value
        for field, series in self._histograms.items():
            histogram = getattr(self._metrics, field)
            cumulative = list(accumulate(histogram.counts))
            for index, value in enumerate((*cumulative, histogram.total, cumulative[-1])):
                self._raise_to((field, index), series[index], value)

    def _raise_to(self, key: Any, counter: Any, total: float) -> None:
        increase = total - self._published.get(key, 0.0)
        if increase > 0:
            counter.increment(increase)
            self._published[key] = total
