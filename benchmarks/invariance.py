"""What independence of the batch costs: time of a step with each `invariance`, interleaved in one run.

`tandem.engines.INVARIANCES` says what each of them promises.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.environment import ENGINE, use_huge_pages
from benchmarks.spread import with_quartiles
from tandem.engines import INVARIANCES, Engine, EngineOptions, Row, load_engine

CACHED = 256  # tokens in the cache of every sequence


SHAPES = ((1, 0), (1, 4), (8, 0), (8, 2), (16, 0))  # sequences, drafts of each


def step_ms(engine: Engine, sequences: int, drafts: int) -> float:
    """Milliseconds of one step in which each of the sequences gets one token, and verifies so many drafts."""
    per_sequence, tokens = -(-(CACHED + 1 + drafts) // engine.block_size), 1 + drafts
    rows = [
        Row([5] * tokens, CACHED, range(i * per_sequence, (i + 1) * per_sequence), tokens, tokens)
        for i in range(sequences)
    ]
    started = time.perf_counter()
    engine.forward(rows)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.invariance", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="steps of each kind, in turn")
    parser.add_argument("--engine", type=Path, default=ENGINE, help="engine directory")
    arguments = parser.parse_args()
    use_huge_pages("benchmarks.invariance")
    engines = {
        name: load_engine(arguments.engine, EngineOptions(invariance=name, kv_cache_mb=256)) for name in INVARIANCES
    }
    times: dict[tuple[str, tuple[int, int]], list[float]] = {}
    for _ in track(range(arguments.rounds), "measuring", transient=True):
        for shape in SHAPES:
            for name, engine in engines.items():
                times.setdefault((name, shape), []).append(step_ms(engine, *shape))
    columns = ("sequences", "drafts of each", *(f"{name}, ms a step" for name in INVARIANCES))
    table = Table(*columns, title="median (quartiles)")
    for shape in SHAPES:
        table.add_row(*map(str, shape), *(with_quartiles(times[name, shape], 1) for name in INVARIANCES))
    Console().print(table)


if __name__ == "__main__":
    main()
