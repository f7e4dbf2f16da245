"""What is computed of the requests of a measurement. All times are the client's.

- `ttft_ms`: from sending a request to its first response that brings a token.
- `itl_ms`: inter-token latency, one value for each token after a request's first. Where a response brings k tokens,
  each of them counts with a k-th of the time since the response before, as in the server's own histogram; further
  tokens of the first response count with 0. So a request's values add up to the time from its first token to its last.
- `gap_ms`: time between two responses of a request: what a reader sees, bursts included.
- `tpot_ms`: time per output token of a request after its first: the mean of its `itl_ms`.
- `latency_ms`: from sending a request to its last response.
- `stream_tokens_per_s`: of one request after its first token: 1000 / `tpot_ms`.
- `tokens_per_s`, `requests_per_s`: of all requests together, from the first that is sent to the last response. The
  end of a closed loop, when streams are missing already, is part of it.

A percentile p is the smallest of the values that at least p % do not exceed: a value that was measured, never one in
between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from perf.export import Request

PERCENTILES = (50, 90, 95, 99)
Values = npt.NDArray[np.float64]


def _has_tokens(request: Request) -> bool:
    """Whether it went to a model of language: others bring responses without."""
    return bool(request.tokens)


def ttft_ms(requests: Sequence[Request]) -> Values:
    """One value for each request that brought a token; float64 [requests]."""
    found = []
    for request in filter(_has_tokens, requests):
        first = next((at for at, tokens in zip(request.arrivals, request.tokens, strict=True) if tokens), None)
        if first is not None:
            found.append((first - request.sent) / 1e6)
    return np.array(found)


def itl_ms(requests: Sequence[Request]) -> Values:
    """One value for each token after a request's first; float64 [tokens - requests]."""
    values, times = [], []
    for request in filter(_has_tokens, requests):
        before = None
        for at, tokens in zip(request.arrivals, request.tokens, strict=True):
            if not tokens:
                continue
            values.append(0.0 if before is None else (at - before) / 1e6 / tokens)
            times.append(tokens - (before is None))
            before = at
    return np.repeat(np.array(values), np.array(times, dtype=np.int64))


def gap_ms(requests: Sequence[Request]) -> Values:
    """One value for each response after a request's first; float64 [responses - requests]."""
    gaps = [np.diff(np.array(request.arrivals, dtype=np.int64)) / 1e6 for request in requests]
    return np.concatenate(gaps) if gaps else np.array([])


def tpot_ms(requests: Sequence[Request]) -> Values:
    """One value for each request of at least two tokens; float64 [requests]."""
    means = [itl_ms([request]) for request in requests if request.generated > 1]
    return np.array([values.mean() for values in means])


def latency_ms(requests: Sequence[Request]) -> Values:
    """One value for each request; float64 [requests]."""
    return np.array([(request.arrivals[-1] - request.sent) / 1e6 for request in requests])


def stream_tokens_per_s(requests: Sequence[Request]) -> Values:
    """One value for each request of at least two tokens that came at different times; float64 [requests]."""
    tpot = tpot_ms(requests)
    return 1000 / tpot[tpot > 0]


DISTRIBUTIONS: dict[str, Callable[[Sequence[Request]], Values]] = {
    "ttft_ms": ttft_ms,
    "itl_ms": itl_ms,
    "gap_ms": gap_ms,
    "tpot_ms": tpot_ms,
    "latency_ms": latency_ms,
    "stream_tokens_per_s": stream_tokens_per_s,
}


def percentile(values: Values, percent: float) -> float:
    """See the top of this file."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def span_s(requests: Sequence[Request]) -> float:
    """Seconds from the first request that is sent to the last response."""
    return (max(request.arrivals[-1] for request in requests) - min(request.sent for request in requests)) / 1e9


def figures(requests: Sequence[Request], seconds: float | None = None) -> dict[str, Any]:
    """Everything above of some requests, ready for JSON; what there is nothing of is left out.

    Args:
        requests: at least one.
        seconds: the time they took, where they are of several rounds; their span by default.
    """
    seconds = span_s(requests) if seconds is None else seconds
    tokens = sum(request.generated for request in requests)
    prompt, cached = (sum(getattr(r, name) for r in requests) for name in ("prompt_tokens", "cached_tokens"))
    drafted, accepted = (sum(getattr(r, name) for r in requests) for name in ("drafted", "accepted"))
    made: dict[str, Any] = {"requests": len(requests), "seconds": seconds, "requests_per_s": len(requests) / seconds}
    if tokens:
        made |= {
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "tokens_per_response": tokens / sum(len(request.arrivals) for request in requests),
            "prompt_tokens": prompt,
            "cached_share": cached / prompt if prompt else 0.0,
            "accepted_share": accepted / drafted if drafted else None,
        }
    for name, distribution in DISTRIBUTIONS.items():
        values = distribution(requests) if tokens or name == "latency_ms" else np.array([])
        if len(values):
            made[name] = {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
            made[name] |= {"mean": float(values.mean()), "n": len(values)}
    return made
