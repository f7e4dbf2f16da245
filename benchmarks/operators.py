"""Where a step's time goes, operator by operator: `make profile`, docs/operators.md.

For requests as they come: a prompt of 512 tokens, decoding with 1, 8 and 16 streams, and one stream that has drafts
verified, with as many in every step and behind steps of another width. Noting the times makes a step a few percent
longer; read the shares. docs/bottleneck.md finds something with it.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from benchmarks.environment import ENGINE, machine, use_huge_pages
from tandem.engines import EngineOptions, Row, load_engine
from tandem.engines.openvino import OpenVinoEngine

CONTEXT = 192  # tokens in the cache of each stream that decodes
PROMPT = 512
STREAMS = (1, 8, 16)
DRAFTS = 4
KV_CACHE_MB = 256
LEAST_SHARE = 0.01  # operators below it are summed up


@dataclass(frozen=True)
class Case:
    """Steps of one kind."""

    title: str
    rows: Sequence[Row]
    before: Sequence[Row] = ()  # a step that comes in front of each, and is not measured


@dataclass(frozen=True)
class Entry:
    """All operators of one kind and kernel in a step."""

    kind: str
    kernel: str
    count: int
    ms: float  # mean over the rounds


@dataclass(frozen=True)
class Profile:
    """One case, measured."""

    title: str
    step_ms: float  # median over the rounds, outside of the engine
    entries: list[Entry]

    @property
    def total_ms(self) -> float:
        return sum(entry.ms for entry in self.entries)

    @property
    def outside_ms(self) -> float:
        return max(0.0, self.step_ms - self.total_ms)


def cases(engine: OpenVinoEngine) -> list[Case]:
    """The steps to look at."""
    each = -(-(CONTEXT + 1) // engine.block_size)
    prompt = Row([5] * PROMPT, 0, range(-(-PROMPT // engine.block_size)))
    decoding = [
        Case(
            f"decoding, {count} stream{'s' if count > 1 else ''}",
            [Row([5], CONTEXT, range(n * each, (n + 1) * each), 1, 1) for n in range(count)],
        )
        for count in STREAMS
    ]
    tokens = [5] * (1 + DRAFTS)
    verified = [Row(tokens, CONTEXT, range(-(-(CONTEXT + len(tokens)) // engine.block_size)), len(tokens), len(tokens))]
    title = f"decoding, 1 stream, {DRAFTS} drafts verified"
    return [
        Case(f"a prompt of {PROMPT} tokens", [prompt]),
        *decoding,
        Case(title, verified),
        Case(f"{title}, each behind a step without drafts", verified, decoding[0].rows),
    ]


def measure(engine: OpenVinoEngine, case: Case, rounds: int) -> Profile:
    """Times of a case; its first step warms up."""
    engine.forward(case.rows)
    engine.operator_times()  # from here on
    steps: list[float] = []
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    counts: Counter[tuple[str, str]] = Counter()
    for _ in range(rounds):
        if case.before:
            engine.forward(case.before)
            engine.operator_times()  # not to be counted
        started = time.perf_counter()
        engine.forward(case.rows)
        steps.append(time.perf_counter() - started)
        sums: Counter[tuple[str, str]] = Counter()
        counts.clear()
        for operator in engine.operator_times():
            key = operator.kind, operator.kernel
            sums[key] += operator.seconds  # type: ignore[assignment]  # a Counter of seconds
            counts[key] += 1
        for key, seconds in sums.items():
            times[key].append(seconds)
    entries = [Entry(*key, counts[key], 1000 * statistics.fmean(values)) for key, values in times.items()]
    entries.sort(key=lambda entry: -entry.ms)
    return Profile(case.title, 1000 * statistics.median(steps), entries)


def page(profiles: Sequence[Profile], command: str) -> str:
    """The tables as Markdown."""
    lines = [
        "# Where a step's time goes",
        "",
        f"{machine()}, `{command}`; of steps the median, of operators the mean.",
        "",
    ]
    lines += ["| step | ms | in operators | outside of them |", "|---|---:|---:|---:|"]
    lines += [f"| {p.title} | {p.step_ms:.1f} | {p.total_ms:.1f} | {p.outside_ms:.1f} |" for p in profiles]
    lines.append("")
    for profile in profiles:
        lines += [f"## {profile.title}: {profile.step_ms:.1f} ms", ""]
        lines += ["| operator | kernel | number | ms | share |", "|---|---|---:|---:|---:|"]
        rest = 0.0
        for entry in profile.entries:
            share = entry.ms / profile.total_ms
            if share < LEAST_SHARE:
                rest += entry.ms
                continue
            lines.append(f"| {entry.kind} | {entry.kernel} | {entry.count} | {entry.ms:.2f} | {share:.0%} |")
        outside = profile.outside_ms
        lines += [f"| others | | | {rest:.2f} | {rest / profile.total_ms:.0%} |", ""]
        lines += [f"Outside of the operators: {outside:.2f} ms.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=ENGINE, help="engine directory (default: the target's)")
    parser.add_argument("--graph-memory-mb", type=int, default=0, help="as the setting of the server: graphs of fixed "
                        "widths, where 0 has one for all (default: %(default)s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/operators.md"), help="default: %(default)s")
    arguments = parser.parse_args()
    use_huge_pages("benchmarks.operators")
    options = EngineOptions(kv_cache_mb=KV_CACHE_MB, graph_memory_mb=arguments.graph_memory_mb, operator_times=True)
    engine = load_engine(arguments.engine, options)
    if not isinstance(engine, OpenVinoEngine):
        parser.error(f"{arguments.engine} is not an OpenVINO engine: only those note the times of operators")
    profiles = [measure(engine, case, arguments.rounds) for case in track(cases(engine), "steps")]
    text = page(profiles, shlex.join(["python", "-m", "benchmarks.operators", *sys.argv[1:]]))
    arguments.output.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
