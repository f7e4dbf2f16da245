"""Tokens per second of the default model's engines against each other, bare, interleaved in one run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.environment import ENGINE, use_huge_pages
from benchmarks.spread import with_quartiles
from tandem.engines import Engine, EngineOptions, Row, load_engine

CACHE = Path(".cache/engines")
ENGINES = (ENGINE, *(CACHE / f"onnxruntime{weights}" for weights in ("", "-w8a8", "-int4")))
CACHED = 256  # tokens in the cache of every sequence
STREAMS = (1, 16)
DRAFTS = 4
PREFILL = 256
POOL_MB = 1024


def rows_of(engine: Engine, sequences: int, past: int, tokens: int, logits: int) -> list[Row]:
    """Rows of so many new tokens for sequences that hold `past`, each in blocks or a slot of its own."""
    each = -(-(past + tokens) // engine.block_size)
    return [
        Row([5] * tokens, past, range(index * each, (index + 1) * each), logits, min(tokens, past))
        for index in range(sequences)
    ]


def seconds(engine: Engine, rows: Sequence[Row]) -> float:
    started = time.perf_counter()
    engine.forward(rows)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind, in turn")
    parser.add_argument(
        "--engines", type=Path, nargs="+", default=ENGINES, help="engine directories; ratios to the first"
    )
    arguments = parser.parse_args()
    use_huge_pages("benchmarks.engines")
    engines = {path: load_engine(path, EngineOptions(kv_cache_mb=POOL_MB)) for path in arguments.engines}
    kinds = {f"{count} streams": (count, CACHED, 1, 1) for count in STREAMS}
    kinds |= {f"1 stream, {DRAFTS} drafts verified": (1, CACHED, 1 + DRAFTS, 1 + DRAFTS)}
    kinds |= {f"prompt of {PREFILL}": (1, 0, PREFILL, 1)}
    times: dict[tuple[str, Path], list[float]] = {}
    for number in track(range(arguments.rounds + 1), "measuring", transient=True):
        for kind, (count, past, tokens, logits) in kinds.items():
            for path, engine in engines.items():
                taken = seconds(engine, rows_of(engine, count, past, tokens, logits))
                if number:  # the first round warms up
                    times.setdefault((kind, path), []).append(taken)
    table = Table("step", *(f"{path.name}, tokens/s" for path in engines), *(f"{path.name}, ratio" for path in engines))
    for kind, (count, _, tokens, _) in kinds.items():
        speeds = [[count * tokens / value for value in times[kind, path]] for path in engines]
        ratios = [[one / first for one, first in zip(speed, speeds[0], strict=True)] for speed in speeds]
        table.add_row(
            kind, *(with_quartiles(speed, 1) for speed in speeds), *(with_quartiles(ratio, 2) for ratio in ratios)
        )
    Console().print(table)


if __name__ == "__main__":
    main()
