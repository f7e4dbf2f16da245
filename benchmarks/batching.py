"""What dynamic batching brings: the real perf_analyzer against two servers in turns, and the bare engine beside them.

Both servers have the same engine and settings; one has no dynamic batching. In each round, one after the other:
16 requests at a time with batching, the same without, one at a time without, and the engine in a loop without
any server, with as many images a call as the batching server had on average. perf_analyzer runs on the same cores.

On a machine that others use as well the rates say little; CPU time for each image, of the server with its models and
of the engine alone, says more: where an engine keeps all cores busy, it bounds the rate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.environment import machine, use_huge_pages
from benchmarks.load_generator import Load, measure
from benchmarks.spread import with_range
from launcher.engines import CLASSIFIERS
from launcher.server import REPOSITORY, Options, TritonServer
from perf import analyzer
from tandem.vision.classifier import Classifier, load_classifier
from tandem.vision.manifest import INPUT
from tandem.vision.repository import engine_directory

GATE_GAIN, GATE_BARE = 1.8, 0.9
_COUNTS = ("nv_inference_count_total", "nv_inference_exec_count_total")


def counts(server: TritonServer, model: str) -> np.ndarray:
    """Inferences that a model has made, and executions in which it made them."""
    text = requests.get(f"http://{server.metrics_url}/metrics", timeout=30).text
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("model") == model
    }
    return np.array([found[name] for name in _COUNTS])


def cpu_seconds(server: TritonServer) -> float:
    """CPU time that a server and its models' processes have used so far."""
    root = psutil.Process(server.pid)
    times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


@dataclass(frozen=True, slots=True)
class Measured:
    """A load and what it cost; of the bare engine the latencies are 0."""

    load: Load
    cpu_ms: float  # for each image


def served(program: Path, server: TritonServer, model: str, size: int, concurrency: int, count: int) -> Measured:
    """One run of perf_analyzer at a server, with pictures of `size` pixels along an edge."""
    before, done = cpu_seconds(server), counts(server, model)[0]
    shape = ["--shape", f"{INPUT}:{size},{size},3"]
    load = measure(program, server.grpc_url, model, concurrency, count, shape)
    images = counts(server, model)[0] - done  # perf_analyzer sends a few more than it counts
    return Measured(load, (cpu_seconds(server) - before) / images * 1000)


def bare(engine: Classifier, batch: int, seconds: float) -> Measured:
    """The engine alone, in this process."""
    size = engine.manifest.image.size
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    engine.infer(images)
    done, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        engine.infer(images)
        done += batch
    elapsed = time.perf_counter() - started
    return Measured(Load(done / elapsed, 0.0, 0.0), (time.process_time() - cpu) / done * 1000)


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    return with_range([value / other for value, other in zip(values, others, strict=True)], 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    parser.add_argument("--model", default=CLASSIFIERS[0], choices=CLASSIFIERS, help="default: %(default)s")
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="default: the one of this project")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=2000, help="in each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args()
    use_huge_pages("benchmarks.batching")
    model, concurrency, count = arguments.model, arguments.concurrency, arguments.requests
    repository = arguments.repository.resolve()
    program, _ = analyzer.find()
    ways = (
        f"batching, {concurrency} at a time",
        f"no batching, {concurrency} at a time",
        "no batching, one at a time",
        "bare engine, batches of that size",
        "bare engine, one at a time",
    )
    rounds: list[list[Measured]] = []
    batches: list[float] = []
    with ExitStack() as stack:
        unbatched = {f"TANDEM_{model.upper()}_DYNAMIC_BATCHING": "0"}
        batching = stack.enter_context(TritonServer(Options(models=[model], repository=repository)))
        plain = stack.enter_context(TritonServer(Options(models=[model], repository=repository, env=unbatched)))
        engine = load_classifier(engine_directory(repository, model))
        size = engine.manifest.image.size
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("measuring", total=arguments.rounds + 1)
        for number in range(arguments.rounds + 1):
            before = counts(batching, model)
            found = [
                served(program, batching, model, size, concurrency, count),
                served(program, plain, model, size, concurrency, count),
                served(program, plain, model, size, 1, max(1, count // 4)),
            ]
            made, executions = counts(batching, model) - before
            found += [bare(engine, max(1, round(made / executions)), 3.0), bare(engine, 1, 2.0)]
            progress.advance(task)
            if number > 0:  # the first is a warm-up
                rounds.append(found)
                batches.append(made / executions)
    columns = list(zip(*rounds, strict=True))
    rates = [[measured.load.per_second for measured in column] for column in columns]
    cpu = [[measured.cpu_ms for measured in column] for column in columns]
    table = Table("", "images/s", "p50, ms", "p95, ms", "CPU, ms/image", title="median (min-max)")
    for name, column, rate, milliseconds in zip(ways, columns, rates, cpu, strict=True):
        p50, p95 = [m.load.p50_ms for m in column], [m.load.p95_ms for m in column]
        latencies = (with_range(p50, 0), with_range(p95, 0)) if any(p95) else ("", "")
        table.add_row(name, with_range(rate, 1), *latencies, with_range(milliseconds, 1))
    on, off, single, alone, alone_single = rates
    p95_on, p95_off = ([m.load.p95_ms for m in column] for column in columns[:2])
    lines = (
        f"{model}, {engine.manifest.precision} on {engine.manifest.runtime}; {machine()}; {arguments.rounds} rounds; "
        f"mean batch {with_range(batches, 1)}",
        f"batching / no batching: {verdict(on, off, GATE_GAIN)}; by CPU time {ratio(cpu[1], cpu[0])}",
        f"batching / bare engine: {verdict(on, alone, GATE_BARE)}; by CPU time {ratio(cpu[3], cpu[0])}",
        f"p95 without batching / with it: {verdict(p95_off, p95_on, 1.0)}",
        f"batching / one at a time: {ratio(on, single)}",
        f"what the engine itself gains from such batches: {ratio(alone, alone_single)}; "
        f"by CPU time {ratio(cpu[4], cpu[3])}",
    )
    console = Console(width=110)
    console.print(table)
    console.print("\n".join(lines), highlight=False)


def verdict(values: Sequence[float], others: Sequence[float], wanted: float) -> str:
    """Whether the median of the ratios is at least `wanted`."""
    middle = statistics.median(value / other for value, other in zip(values, others, strict=True))
    return f"{ratio(values, others)}, wanted {wanted:g}: {'met' if middle >= wanted else 'not met'}"


if __name__ == "__main__":
    main()
