"""What dynamic batching brings: the real perf_analyzer against two servers in turns, and the bare engine beside them.

Both servers have the same engine and settings; one has no dynamic batching. In each round, one after the other:
16 requests at a time with batching, the same without, one at a time without, and the engine in a loop without
any server, with as many images a call as the batching server had on average. perf_analyzer runs on the same cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import requests
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.environment import machine, use_huge_pages
from benchmarks.load_generator import Load, measure
from benchmarks.unbatched import unbatched_repository
from launcher.engines import CLASSIFIERS
from launcher.server import REPOSITORY, Options, TritonServer
from perf import analyzer
from tandem.vision.classifier import Classifier, load_classifier
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


def bare(engine: Classifier, batch: int, seconds: float) -> float:
    """Images/s of the engine alone."""
    size = engine.manifest.image.size
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    engine.infer(images)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        engine.infer(images)
        done += batch
    return done / (time.perf_counter() - started)


def spread(values: Sequence[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def ratio(values: Sequence[float], others: Sequence[float]) -> str:
    return spread([value / other for value, other in zip(values, others, strict=True)], 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=__doc__)
    parser.add_argument("--model", default=CLASSIFIERS[0], choices=CLASSIFIERS, help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=320, help="in each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args()
    use_huge_pages("benchmarks.batching")
    model, concurrency, count = arguments.model, arguments.concurrency, arguments.requests
    program, _ = analyzer.find()
    on: list[Load] = []
    off: list[Load] = []
    single: list[Load] = []
    alone, alone_single, batches = [], [], []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unbatched-")))
        other = unbatched_repository(REPOSITORY, model, directory)
        batching = stack.enter_context(TritonServer(Options(models=[model])))
        plain = stack.enter_context(TritonServer(Options(models=[model], repository=other)))
        engine = load_classifier(engine_directory(REPOSITORY, model))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("measuring", total=arguments.rounds + 1)
        for number in range(arguments.rounds + 1):
            before = counts(batching, model)
            loads = [
                measure(program, batching.grpc_url, model, concurrency, count),
                measure(program, plain.grpc_url, model, concurrency, count),
                measure(program, plain.grpc_url, model, 1, count // 4),
            ]
            made, executions = counts(batching, model) - before
            batch = max(1, round(made / executions))
            rates = [bare(engine, batch, 3.0), bare(engine, 1, 2.0)]
            progress.advance(task)
            if number == 0:  # a warm-up
                continue
            for kept, load in zip((on, off, single), loads, strict=True):
                kept.append(load)
            alone.append(rates[0])
            alone_single.append(rates[1])
            batches.append(made / executions)
    served = {name: [load.per_second for load in loads] for name, loads in (("on", on), ("off", off))}
    table = Table("", "images/s", "p50, ms", "p95, ms", "batching against it", title="median (min-max)")
    for name, loads in (
        (f"batching, {concurrency} at a time", on),
        (f"no batching, {concurrency} at a time", off),
        ("no batching, one at a time", single),
    ):
        own = [load.per_second for load in loads]
        against = "" if loads is on else ratio(served["on"], own)
        p50, p95 = [load.p50_ms for load in loads], [load.p95_ms for load in loads]
        table.add_row(name, spread(own), spread(p50, 0), spread(p95, 0), against)
    size = round(statistics.median(batches))
    table.add_row(f"bare engine, batches of {size}", spread(alone), "", "", ratio(served["on"], alone))
    table.add_row("bare engine, one at a time", spread(alone_single), "", "", ratio(served["on"], alone_single))
    console = Console(width=110)
    console.print(table)
    p95_on, p95_off = [load.p95_ms for load in on], [load.p95_ms for load in off]
    lines = (
        f"{model}, {engine.manifest.precision} on {engine.manifest.runtime}; {machine()}; {arguments.rounds} rounds; "
        f"mean batch {spread(batches)}",
        f"what the engine itself gains from such batches: {ratio(alone, alone_single)}",
        f"wanted {GATE_GAIN:.2f} of no batching: {verdict(served['on'], served['off'], GATE_GAIN)}",
        f"wanted {GATE_BARE:.2f} of the bare engine: {verdict(served['on'], alone, GATE_BARE)}",
        f"wanted a p95 no worse: {verdict(p95_off, p95_on, 1.0)} (no batching / batching)",
    )
    console.print("\n".join(lines), highlight=False)


def verdict(values: Sequence[float], others: Sequence[float], wanted: float) -> str:
    """Whether the median of the ratios is at least `wanted`."""
    middle = statistics.median(value / other for value, other in zip(values, others, strict=True))
    return f"{'met' if middle >= wanted else 'not met'}, {ratio(values, others)}"


if __name__ == "__main__":
    main()
