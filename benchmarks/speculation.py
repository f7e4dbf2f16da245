"""What speculation brings: the real server without drafters (A) and with them (B), by workload and streams."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.closed_loop import Answers, answer_all, difference
from benchmarks.counters import Counters, settled
from benchmarks.environment import ENGINE, machine, use_huge_pages
from benchmarks.speculation_report import Cell, Run, page
from benchmarks.step_times import step_times
from benchmarks.workloads import NAMES, Job, jobs
from client import Client
from client.metrics import Reading, read_metrics
from launcher.runtime import PROJECT
from launcher.server import Options, TritonServer

PAGE = PROJECT / "docs" / "speculation.md"
STREAMS = (1, 4, 8, 16, 32)
WARM_UP = 2  # requests per way, not counted
# Of a turn, so that A and B alternate every half minute: the machine is faster in one minute than in the next. At the
# end of a turn some streams have nothing to do, which must not count for much.
TURN, TURN_PER_STREAM = 10, 4


def default_count(streams: int) -> int:
    """Requests that take a 2-core machine about as long at any number of streams, and keep the streams busy."""
    return 4 + 2 * streams


def turns(requests: Sequence[Job], streams: int) -> list[Sequence[Job]]:
    """The requests in portions of about the same size: see `TURN`."""
    count = max(1, len(requests) // max(TURN, TURN_PER_STREAM * streams))
    borders = [len(requests) * number // count for number in range(count + 1)]
    return [requests[start:end] for start, end in pairwise(borders)]


class Bench:
    """Runs cells against one server."""

    def __init__(self, server: TritonServer, client: Client, drafter: str) -> None:
        self._server, self._client, self._drafter = server, client, drafter
        self._generated = read_metrics(server.metrics_url).value("tandem_generated_tokens_total")
        self._reading: Reading = settled(server.metrics_url, self._generated)
        self._runs = 0

    def warm_up(self, requests: Sequence[Job]) -> None:
        for drafter in ("none", self._drafter):
            self._run(requests[:WARM_UP], 1, drafter)

    def measure(self, cell: Cell, requests: Sequence[Job]) -> None:
        """One more turn of A and B."""
        answers, runs = zip(*(self._run(requests, cell.streams, d) for d in ("none", self._drafter)), strict=True)
        cell.turns.append((runs[0], runs[1]))
        if (found := difference(*answers)) is not None:
            cell.differences.append(f"turn {len(cell.turns)}: {found}")

    def _run(self, requests: Sequence[Job], streams: int, drafter: str) -> tuple[Answers, Run]:
        self._runs += 1
        answers = answer_all(self._client, requests, streams, drafter, salt=f"run {self._runs}")
        self._generated += answers.tokens
        before, self._reading = self._reading, settled(self._server.metrics_url, self._generated)
        counters = Counters.read(self._reading) - Counters.read(before)
        return answers, Run(answers.seconds, answers.tokens, counters)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speculation", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="numbers of concurrent streams")
    parser.add_argument("--rounds", type=int, default=3, help="how often each request is sent, per way")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--prompts", type=int, help="requests of a run; default: 4, and 2 for each stream")
    size.add_argument("--full", action="store_true", help="all requests that a workload has, if that is more")
    parser.add_argument("--drafter", default="auto", help="what B asks for (default: %(default)s)")
    parser.add_argument("--engine", type=Path, default=ENGINE, help="engine directory")
    parser.add_argument("--output", type=Path, default=PAGE, help="page to write (default: docs/speculation.md)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    use_huge_pages("benchmarks.speculation")
    work: list[tuple[Cell, list[Job]]] = []
    for workload in arguments.workloads:
        for streams in arguments.streams:
            count = arguments.prompts or default_count(streams)
            requests = jobs(workload, max(count, len(jobs(workload))) if arguments.full else count)
            work.append((Cell(workload, streams, len(requests)), requests))
    command = shlex.join(["python", "-m", "benchmarks.speculation", *sys.argv[1:]])
    made = f"Made by `{command}` on {time.strftime('%Y-%m-%d')}, {machine()}."
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    done: list[Cell] = []
    text = ""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("bare engine", total=sum(len(requests) for _, requests in work) * arguments.rounds)
        times = step_times(arguments.engine)
        progress.update(task, description="server")
        options = Options(env={"TANDEM_TARGET_ENGINE": str(arguments.engine.resolve())})
        with TritonServer(options) as server, Client(server.grpc_url) as client:
            bench = Bench(server, client, arguments.drafter)
            bench.warm_up(work[0][1])
            for cell, requests in work:
                progress.update(task, description=f"{cell.workload}, {cell.streams} streams")
                for portion in turns(requests, cell.streams) * arguments.rounds:
                    bench.measure(cell, portion)
                    progress.advance(task, len(portion))
                done.append(cell)
                # After every cell: what was measured so far outlives an interruption.
                text = page(done, arguments.drafter, times, made)
                arguments.output.write_text(text, encoding="utf-8")
    Console(soft_wrap=True, highlight=False, markup=False).print(text)
    return 1 if any(cell.differences for cell in done) else 0


if __name__ == "__main__":
    sys.exit(main())
