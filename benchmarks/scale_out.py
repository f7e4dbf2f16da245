"""What a second server brings: chats against one server with one core, and against two behind HAProxy, one core each.

In turns: so many chats at a time to the one server, twice as many to both, through HAProxy, which keeps each chat where
its KV cache is. The clients get the cores of the servers that they ask: half of the machine is compared with all of it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.environment import machine
from benchmarks.haproxy import haproxy
from benchmarks.spread import with_range
from benchmarks.two_cores import gains, on_cores
from client import Client, Message, Result
from launcher.server import Options, TritonServer
from perf import mt_bench
from perf.figures import percentile

GATE_RATE, GATE_HITS = 1.8, 0.9
TURNS, TOKENS = 4, 32
CORES = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one run of chats."""

    requests_per_s: float
    hit_rate: float  # prompt tokens that were in a cache
    ttft_p95_ms: float


def chats_on(cores: Sequence[int], url: str, count: int, at_a_time: int) -> Measured:
    """`chats` in a process of its own, whose threads all run on these cores."""
    with on_cores(*cores), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(chats, url, count, at_a_time).result()


def chats(url: str, count: int, at_a_time: int) -> Measured:
    """Hold `count` chats of `TURNS` turns, so many at a time; each is under a cache salt of its own."""
    salt = secrets.token_hex(8)
    questions = mt_bench.prompts()

    def chat(number: int) -> list[Result]:
        messages: list[Message] = []
        results = []
        for turn in range(TURNS):
            messages.append({"role": "user", "content": questions[(number * TURNS + turn) % len(questions)]})
            results.append(
                client.stream(
                    messages=messages, affinity=f"{salt}/{number}", cache_salt=f"{salt}/{number}", max_tokens=TOKENS,
                    min_length=TOKENS,
                ).result()
            )  # fmt: skip
            messages.append({"role": "assistant", "content": results[-1].text})
        return results

    with Client(url) as client, ThreadPoolExecutor(at_a_time) as pool:
        started = time.perf_counter()
        done = [result for results in pool.map(chat, range(count)) for result in results]
        seconds = time.perf_counter() - started
    cached, prompts = (sum(getattr(r, name) for r in done) for name in ("cached_prompt_tokens", "prompt_tokens"))
    waits = np.array([result.timing.ttft_s or 0.0 for result in done])
    return Measured(len(done) / seconds, cached / prompts, 1000 * percentile(waits, 95))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__)
    parser.add_argument("--streams", type=int, default=16, help="chats at a time of each server (default: %(default)s)")
    parser.add_argument("--chats", type=int, default=48, help="of each server in a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="default: %(default)s")
    arguments = parser.parse_args()
    streams, count = arguments.streams, arguments.chats
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    if len(cores) < CORES:
        parser.error("two cores are needed: one for each server")
    env = {"TANDEM_THREADS": "1", "TANDEM_GRAPH_MEMORY_MB": "512", "TANDEM_KV_CACHE_MB": "512"}
    machine_gains = gains(cores, arguments.rounds)
    one: list[Measured] = []
    two: list[Measured] = []
    with ExitStack() as stack:
        servers = []
        for core in cores:
            with on_cores(core):
                options = Options(models=("target", "generate"), env=env, start_seconds=600)
                servers.append(stack.enter_context(TritonServer(options)))
        log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="haproxy-"))) / "log"
        url = stack.enter_context(haproxy(servers, log))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("measuring", total=2 * (arguments.rounds + 1))
        for number in range(arguments.rounds + 1):
            chosen = number % CORES
            alone = chats_on([cores[chosen]], servers[chosen].grpc_url, count, streams)
            progress.advance(task)
            both = chats_on(cores, url, CORES * count, CORES * streams)
            progress.advance(task)
            if number > 0:  # the first is a warm-up
                one.append(alone)
                two.append(both)
    table = Table("", "requests/s", "hit rate", "p95 TTFT, ms", title="median (min-max)")
    for name, runs in ((f"one server, {streams} chats", one), (f"two servers, {CORES * streams} chats", two)):
        table.add_row(
            name, with_range([run.requests_per_s for run in runs], 2), with_range([run.hit_rate for run in runs], 3),
            with_range([run.ttft_p95_ms for run in runs], 0),
        )  # fmt: skip
    rates = [b.requests_per_s / a.requests_per_s for a, b in zip(one, two, strict=True)]
    hits = [b.hit_rate / a.hit_rate for a, b in zip(one, two, strict=True)]
    console = Console(width=110)
    console.print(table)
    console.print(f"{machine()}; {arguments.rounds} rounds, {TURNS} turns of {TOKENS} tokens", highlight=False)
    bounds = ", ".join(f"{kind} {with_range(ratios, 2)}" for kind, ratios in machine_gains.items())
    console.print(f"the machine itself, both cores / one: {bounds}", highlight=False)
    for what, ratios, wanted in (("rate", rates, GATE_RATE), ("hit rate", hits, GATE_HITS)):
        verdict = "met" if statistics.median(ratios) >= wanted else "not met"
        console.print(f"{what}, two / one: {with_range(ratios, 2)}, wanted {wanted:g}: {verdict}", highlight=False)


if __name__ == "__main__":
    main()
