"""perf_analyzer's profile export: the raw times and outputs of every request.

What the file holds, seen on perf_analyzer 2.50 with `--streaming`: for each request the time it was sent, the time of
each response (nanoseconds since 1970, the clock of `time.time_ns`), and the outputs of each. The server may put
several tokens into one response (`max_responses_per_s`), so responses are not tokens; requests therefore ask for
`return_token_ids`, and the length of `output_ids` is the number of tokens that a response brought. A list of one
element is written as that element. Outputs that a response does not have are written all the same, as zeros or as
whatever lay in memory: the counts are read from the last response only, which has them.

Where a measurement was paused, requests have the times without the pauses (perf/pauses.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import pauses
from perf.errors import PerfError


class UnfinishedExportError(PerfError):
    """perf_analyzer ended well and wrote nothing, or only a part, as once in some hundred runs: measure again."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Times are nanoseconds since 1970; `tokens`: of each response, () for other models."""

    sent: int
    arrivals: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def generated(self) -> int:
        return sum(self.tokens)


@dataclass(frozen=True, slots=True)
class Export:
    """One measurement of perf_analyzer.

    Attributes:
        requests: in the order in which they were sent.
        window_s: seconds from the beginning to the end of the measurement, as perf_analyzer has them.
    """

    requests: tuple[Request, ...]
    window_s: float


def read(path: Path) -> Export:
    """Read the export of a run with one experiment.

    Raises:
        UnfinishedExportError: it is empty or cut off.
        PerfError: it is not such a file, or its numbers contradict each other.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        (experiment,) = _parsed(path, text)["experiments"]
        begin, *_, end = experiment["window_boundaries"]
        active = pauses.load(path)
        requests = [_request(request, active) for request in experiment["requests"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PerfError(f"{path} is no export of one perf_analyzer measurement: {error!r}") from None
    if not requests:
        raise PerfError(f"{path} holds no requests")
    return Export(tuple(sorted(requests, key=lambda request: request.sent)), (end - begin) / 1e9)


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not text or text.startswith("{"):
            part = "only a part" if text else "nothing"
            raise UnfinishedExportError(f"perf_analyzer wrote {part} of its export: {path}: {error}") from None
        raise


def _request(raw: dict[str, Any], active: pauses.ActiveTime) -> Request:
    sent, arrivals = active.at(raw["timestamp"]), tuple(map(active.at, raw["response_timestamps"]))
    outputs = raw["response_outputs"]
    if not arrivals or len(outputs) != len(arrivals):
        raise ValueError(f"{len(arrivals)} responses with {len(outputs)} outputs")
    if "output_ids" not in outputs[-1]:
        return Request(sent, arrivals)
    last = outputs[-1]
    if not last["finish_reason"]:
        raise ValueError("a request's last response has no finish_reason: it was cut off")
    tokens = [_count(output["output_ids"]) for output in outputs]
    generated = last["generated_tokens"]
    if sum(tokens) == generated + 1 and not isinstance(last["output_ids"], list):
        tokens[-1] = 0  # an empty list is written as one number
    if sum(tokens) != generated:
        raise ValueError(f"responses with {sum(tokens)} tokens, and {generated} generated_tokens at the end")
    return Request(
        sent,
        arrivals,
        tuple(tokens),
        last["prompt_tokens"],
        last["cached_prompt_tokens"],
        last["drafted_tokens"],
        last["accepted_draft_tokens"],
    )


def _count(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    return 0 if value in ("", None) else 1
