"""What the decoding loop counts. Names and PromQL are in `FAMILIES`; `tandem.triton.metrics` publishes them.

Values are gathered here without locks by the decoding thread and published twice a second by another, because every
operation on a Triton metric crosses a process boundary. That is why histograms are counted here and published as what
they are made of: with one operation for each observed token, metrics alone cost a 16-stream server 5 % of its speed.

Typical queries:
    output tokens per second      rate(tandem_generated_tokens_total[1m])
    mean rows per step            rate(tandem_step_rows_sum[1m]) / rate(tandem_step_rows_count[1m])
    p99 time to first token       histogram_quantile(0.99, rate(tandem_ttft_seconds_bucket[5m]))
    share of prompts reused       sum(rate(tandem_prefix_hit_tokens_total[5m])) /
                                  sum(rate(tandem_prefix_queried_tokens_total[5m]))
    the same by tier              rate(tandem_prefix_hit_tokens_total[5m]) /
                                  ignoring(tier) group_left rate(tandem_prefix_queried_tokens_total[5m])
    share of answers kept         rate(tandem_answer_cache_hits_total[5m]) / (rate(tandem_answer_cache_hits_total[5m]) +
                                  rate(tandem_answer_cache_misses_total[5m]))
    KV memory in use              tandem_kv_blocks_used / tandem_kv_blocks_total
    share of drafts accepted      sum(rate(tandem_accepted_tokens_total[1m])) / sum(rate(tandem_draft_tokens_total[1m]))
    the same by place in the run  rate(tandem_accepted_tokens_total[1m]) / rate(tandem_draft_tokens_total[1m])
    tokens per sequence and step  1 + sum(rate(tandem_accepted_tokens_total[1m])) / rate(tandem_step_rows_sum[1m])
    drafts per run, k             sum(rate(tandem_draft_tokens_total[1m])) / rate(tandem_drafts_total[1m])
    requests by replica           rate(tandem_placed_requests_total[1m])
    share of time in drafting     rate(tandem_propose_seconds_total[1m]) / (rate(tandem_propose_seconds_total[1m]) +
                                  rate(tandem_forward_seconds_total[1m]) + rate(tandem_sampling_seconds_total[1m]))
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields

import numpy as np

from tandem.answer_cache import AnswerCache
from tandem.cache_counts import Totals
from tandem.step import MAX_DRAFTS, Origin, StepResult
from tandem.tiers import TIERS

TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITL_BUCKETS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
ROWS_BUCKETS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
OUTCOMES = ("success", "invalid", "rejected", "timeout", "cancelled", "error")


class Histogram:
    """Observations by upper bound, as Prometheus counts them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = (*bounds, float("inf"))
        self.counts = [0] * len(self.bounds)  # per bucket, not cumulative
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value` so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add(self, other: Histogram) -> None:
        """Count what another of the same bounds has counted."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


@dataclass(slots=True)
class Metrics:
    """Running totals."""

    outcomes: Counter[str] = field(default_factory=Counter)
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS))  # seconds from arrival to the first token
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS))  # seconds per token after the first
    rows: Histogram = field(default_factory=lambda: Histogram(ROWS_BUCKETS))  # sequences per step
    running: int = 0
    queued: int = 0
    prompt_tokens: int = 0  # computed, so again after a preemption
    generated_tokens: int = 0
    propose_s: float = 0.0
    forward_s: float = 0.0
    sampling_s: float = 0.0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    drafts: int = 0  # runs of draft tokens that were verified
    verified: list[int] = field(default_factory=lambda: [0] * MAX_DRAFTS)  # draft tokens by place in their run
    accepted: list[int] = field(default_factory=lambda: [0] * MAX_DRAFTS)
    origins: list[int] = field(default_factory=lambda: [0] * len(Origin))  # chosen tokens by who proposed them
    preemptions: int = 0
    target_restarts: int = 0
    answers: AnswerCache = field(default_factory=lambda: AnswerCache(0))
    cache: Totals = field(default_factory=Totals)
    cached_blocks: int = 0
    pinned_blocks: int = 0
    tier_bytes: list[int] = field(default_factory=lambda: [0] * len(TIERS))
    placed: dict[str, int] = field(default_factory=dict)  # requests by the replica that they were given to
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def answer_hits(self) -> int:
        return self.answers.hits

    @property
    def answer_misses(self) -> int:
        return self.answers.misses

    @property
    def answer_bytes(self) -> int:
        return self.answers.bytes

    def observe_outcome(self, outcome: str) -> None:
        """Count a request that ended; from any thread."""
        with self._lock:
            self.outcomes[outcome] += 1

    def observe_call(self, result: StepResult) -> None:
        """One call of the target with at least one row."""
        for count in result.pass_rows.tolist():
            self.rows.observe(count)
        self.propose_s += result.propose_s
        self.forward_s += result.forward_s
        self.sampling_s += result.sampling_s
        for place, (verified, accepted) in enumerate(result.positions.tolist()):
            if not verified:
                break
            self.verified[place] += verified
            self.accepted[place] += accepted
        self.drafts += int(result.positions[0, 0])
        for origin, count in enumerate(np.bincount(result.origins, minlength=len(Origin)).tolist()):
            self.origins[origin] += count

    def observe_cache(self, result: StepResult) -> None:
        """What any call says of the prefix cache."""
        self.cache.observe(result.epoch, result.cache, result.tiers)
        self.cached_blocks, self.pinned_blocks = result.cache[-2:].tolist()
        self.tier_bytes = result.tiers[:, -1].tolist()

    def observe_tokens(self, count: int, last_token_at: float | None, arrival: float, now: float) -> None:
        """`count` tokens of one sequence came at `now` (monotonic seconds)."""
        self.generated_tokens += count
        if last_token_at is None:
            self.ttft.observe(now - arrival)
            last_token_at, count = now, count - 1
        if count:
            self.itl.observe((now - last_token_at) / count, count)

    def add(self, other: Metrics) -> None:
        """Count what another has counted; answers are kept by neither or by this one."""
        self.outcomes.update(dict(other.outcomes))  # in one go: its owner may add to it
        self.cache.add(other.cache)
        for histogram in ("ttft", "itl", "rows"):
            getattr(self, histogram).add(getattr(other, histogram))
        for columns in ("verified", "accepted", "origins", "tier_bytes"):
            pairs = zip(getattr(self, columns), getattr(other, columns), strict=True)
            setattr(self, columns, [ours + theirs for ours, theirs in pairs])
        for number in _NUMBERS:
            setattr(self, number, getattr(self, number) + getattr(other, number))


_NUMBERS = tuple(one.name for one in fields(Metrics) if one.default is not MISSING)


def total(parts: Sequence[Metrics]) -> Metrics:
    """The sum of what several loops count; the answers are those of the first."""
    result = Metrics(answers=parts[0].answers)
    for part in parts:
        result.add(part)
    return result
