"""A closed loop: so many workers, each of which sends the next request when its last one is answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.workloads import Job
from client import Client, Message, Parameters, Result
from client.comparison import first_difference


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back, in the order of the jobs, and the seconds from the first request to the last answer."""

    seconds: float
    results: list[Result]

    @property
    def tokens(self) -> int:
        return sum(result.generated_tokens for result in self.results)


def answer_all(client: Client, jobs: Sequence[Job], streams: int, drafter: str, salt: str) -> Answers:
    """Send every job, `streams` at a time.

    Args:
        client: shared by the workers.
        jobs: what to send.
        streams: number of workers.
        drafter: for all requests.
        salt: what the server may remember of other runs must not help this one, nor a request its repetition.

    Raises:
        ServerError: a request failed.
    """

    def one(job: Job) -> Result:
        messages: list[Message] = [{"role": "user", "content": job.message}]
        own: Parameters = {"drafter": drafter, "cache_salt": f"{salt}/{job.repetition}", "return_token_ids": True}
        parameters: Parameters = {**job.parameters, **own}
        return client.stream(messages=messages, **parameters).result()

    pool = ThreadPoolExecutor(streams)
    try:
        started = time.perf_counter()
        results = list(pool.map(one, jobs))
        return Answers(time.perf_counter() - started, results)
    finally:
        pool.shutdown(cancel_futures=True)


def difference(wanted: Answers, found: Answers) -> str | None:
    """The first request whose answers are not the same; None if all are."""
    for number, (ours, theirs) in enumerate(zip(wanted.results, found.results, strict=True), 1):
        if (place := first_difference(ours, theirs)) is not None:
            return f"request {number} differs at token {place + 1}"
    return None
