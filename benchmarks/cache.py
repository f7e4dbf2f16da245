"""What KV-cache reuse brings, on the real server over gRPC, with and without it in turns.

1. TTFT of a long prompt that is cached against the same one under a new salt, which is cold.
2. The TTFTs of a chat of ten turns together, with reuse and with a new salt for each turn.
3. Tokens/s of requests that share nothing: those that skip the cache against those that use it, on one server, as two
   differ by themselves by more than what is looked for. And the same on one engine in this process, a step of the ones
   and a step of the others in turns, with the share of the time that is spent in the cache.
4. Second turns of chats, with the first turn cached and without: how many read otherwise.
5. TTFT against how much of the prompt is shared, and the hit rate of the cache against the size of its pool on a
   Zipf-distributed trace (the cache itself, without an engine), as a plot.
"""

from __future__ import annotations

import argparse
import random
import secrets
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cache_cost import Turn, turns
from benchmarks.cache_trace import hit_rate, ideal_hit_rate, pool_sizes, zipf_trace
from benchmarks.cache_turns import second_turns
from benchmarks.environment import ENGINE, machine
from benchmarks.serving import served_rate
from benchmarks.spread import median_certain, with_range
from benchmarks.workloads import jobs
from client import Client, Message
from launcher.server import Options, TritonServer
from tandem.engines import EngineOptions, load_engine
from tandem.prompt import PromptEncoder
from tandem.settings import TargetSettings

PLOT = Path("docs") / "cache.svg"
COST_POOL_MB = 256  # of the default model's blocks 350: full after some rounds, and more than a processor's cache
PARTS = ("long-prompt", "chats", "nothing-shared", "one-engine", "second-turns", "plot")
SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


class Texts:
    """Real text (MT-Bench questions in random order) of a wanted length in tokens."""

    def __init__(self) -> None:
        self._encoder = PromptEncoder(ENGINE.resolve())
        self._sources = [job.message for job in jobs("mt-bench")]
        self._rng = random.Random(2)

    def of_length(self, tokens: int) -> str:
        ids: list[int] = []
        while len(ids) < tokens:
            ids += self._encoder.encode(self._rng.choice(self._sources) + "\n\n", special_tokens=False)
        return str(self._encoder.tokenizer.decode(ids[:tokens]))

    def ids_of_length(self, tokens: int) -> list[int]:
        """Token ids of such a text; a few more or fewer, because a text that was cut is divided otherwise."""
        return self._encoder.encode(self.of_length(tokens), special_tokens=False)


def ttft(client: Client, prompt: str, salt: str) -> float:
    """Seconds to the first token of a two-token answer."""
    seconds = client.stream(prompt, max_tokens=2, min_length=2, cache_salt=salt).result().timing.ttft_s
    assert seconds is not None
    return seconds


def long_prompt(client: Client, texts: Texts, tokens: int, rounds: int) -> list[tuple[float, float]]:
    """TTFT of a cold prompt and of the same one cached, in turns."""
    pairs = []
    for _ in range(rounds):
        prompt, salt = texts.of_length(tokens), secrets.token_hex(8)
        pairs.append((ttft(client, prompt, salt), ttft(client, prompt, salt)))
    return pairs


def chat(client: Client, questions: Sequence[str], salts: Sequence[str]) -> float:
    """The TTFTs of a chat together; each turn has its salt."""
    messages: list[Message] = []
    total = 0.0
    for question, salt in zip(questions, salts, strict=True):
        messages.append({"role": "user", "content": question})
        result = client.stream(messages=messages, max_tokens=48, cache_salt=salt).result()
        messages.append({"role": "assistant", "content": result.text})
        assert result.timing.ttft_s is not None
        total += result.timing.ttft_s
    return total


def chats(client: Client, rounds: int, turns: int = 10) -> list[tuple[float, float]]:
    """The sum of the TTFTs without reuse and with it, in turns."""
    questions = [job.message for job in jobs("mt-bench")]
    pairs = []
    for number in range(rounds):
        asked = [questions[(number * turns + turn) % len(questions)] for turn in range(turns)]
        without = chat(client, asked, [secrets.token_hex(8) for _ in asked])
        pairs.append((without, chat(client, asked, [secrets.token_hex(8)] * turns)))
    return pairs


def nothing_shared(client: Client, texts: Texts, rounds: int, streams: int, tokens: int) -> list[tuple[float, float]]:
    """Tokens/s of requests that skip the cache and of those that use it, in turns, each time for new prompts."""
    pairs = []
    for number in range(rounds):
        rates = {}
        for skips in (True, False) if number % 2 else (False, True):  # which is first takes turns too
            prompts = [texts.of_length(100) for _ in range(streams)]
            rates[skips] = served_rate(client, prompts, tokens, cache_skip=skips)
        pairs.append((rates[True], rates[False]))
    return pairs


def on_one_engine(texts: Texts, rounds: int, streams: int, tokens: int) -> list[Turn]:
    """Requests that share nothing, half of which skip the cache, on one engine."""
    options = EngineOptions(kv_cache_mb=COST_POOL_MB, graph_memory_mb=TargetSettings().graph_memory_mb)
    engine = load_engine(ENGINE.resolve(), options)
    batches = [
        # A token of its own first, so that no prompt begins like another.
        [[number, *texts.ids_of_length(100)[:90]] for number in range(at, at + streams)]
        for at in range(1000, 1000 + 2 * rounds * streams, streams)
    ]
    return turns(engine, batches, tokens)


def by_shared_length(client: Client, texts: Texts, tokens: int, rounds: int) -> dict[int, list[float]]:
    """TTFT of a prompt of which so many tokens are cached."""
    lengths = [tokens * step // 8 for step in range(9)]
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(rounds):
        salt, base = secrets.token_hex(8), texts.of_length(tokens)
        ttft(client, base, salt)
        for length in lengths:
            cut = len(base) * length // tokens
            prompt = base if length == tokens else base[:cut] + texts.of_length(tokens - length)
            seconds[length].append(ttft(client, prompt, salt))
    return seconds


def row(table: Table, name: str, pairs: Sequence[tuple[float, float]], unit: str, scale: float, wanted: str) -> None:
    """Medians of both sides and of their ratio, with its spread."""
    ratios = [b / a for a, b in pairs]
    before, after = (statistics.median(side) * scale for side in zip(*pairs, strict=True))
    table.add_row(name, f"{before:.0f} {unit}", f"{after:.0f} {unit}", with_range(ratios, 3), wanted)


def draw(
    path: Path, tokens: int, seconds: dict[int, list[float]], trace_points: list[tuple[float, float, float]]
) -> None:
    """Both plots side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tandem"  # equal data gives an equal file
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    lengths = sorted(seconds)
    medians = [statistics.median(seconds[length]) * 1000 for length in lengths]
    left.fill_between(
        lengths,
        [min(seconds[length]) * 1000 for length in lengths],
        [max(seconds[length]) * 1000 for length in lengths],
        alpha=0.2,
    )
    left.plot(lengths, medians, marker="o")
    left.set(xlabel=f"cached tokens of a prompt of {tokens}", ylabel="TTFT, ms", ylim=(0, None))
    left.set_title("Time to first token")
    shares = [share * 100 for share, _, _ in trace_points]
    right.plot(shares, [ours * 100 for _, ours, _ in trace_points], marker="o", label="prefix cache")
    right.plot(shares, [ideal * 100 for _, _, ideal in trace_points], linestyle="--", label="ideal LRU of prompts")
    right.set(xlabel="pool, % of all prompts", ylabel="tokens found, %", ylim=(0, 100))
    right.set_title("Hit rate, Zipf-distributed prompts")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


class Report:
    """The table, and what is said below it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        columns = ("what", "without reuse", "with reuse", "ratio, median (min-max)", "wanted")
        self.table = Table(*columns, title=machine())
        self.notes: list[str] = []

    def long_prompt(self, on: Client, texts: Texts) -> None:
        pairs = long_prompt(on, texts, self._arguments.tokens, self._arguments.rounds)[1:]
        row(self.table, f"TTFT, prompt of {self._arguments.tokens} tokens", pairs, "ms", 1000, "at most 0.1")

    def chats(self, on: Client, texts: Texts) -> None:
        pairs = chats(on, max(3, self._arguments.rounds // 2))[1:]
        row(self.table, "TTFTs of a chat of 10 turns together", pairs, "ms", 1000, "at most 0.25")

    def nothing_shared(self, on: Client, texts: Texts) -> None:
        rounds, streams, tokens = (getattr(self._arguments, name) for name in ("rounds", "streams", "answer"))
        pairs = nothing_shared(on, texts, 6 * rounds, streams, tokens)[2:]
        row(self.table, f"tokens/s, {streams} streams that share nothing", pairs, "", 1, "at least 0.99")
        certain = median_certain((after / before for before, after in pairs), 3)
        self.notes.append(f"nothing shared, {len(pairs)} pairs: the ratio's median is {certain} with 95 % certainty")

    def one_engine(self, on: Client, texts: Texts) -> None:
        """The same without a server, whose process waits meanwhile."""
        rounds, streams, tokens = (getattr(self._arguments, name) for name in ("rounds", "streams", "answer"))
        one_engine = on_one_engine(texts, 3 * rounds, streams, tokens)[1:]
        made = streams * tokens
        one_rates = [(made / turn.without, made / turn.with_cache) for turn in one_engine]
        row(self.table, "the same on one engine, step by step in turns", one_rates, "", 1, "at least 0.99")
        within = [(turn.within_without / turn.without, turn.within_with / turn.with_cache) for turn in one_engine]
        before, after = (statistics.median(side) for side in zip(*within, strict=True))
        certain = median_certain((after / before for before, after in one_rates), 3)
        self.notes.append(f"the same on one engine, {len(one_rates)} turns: {certain}")
        self.table.add_row("of that, time in the cache", f"{before:.2%}", f"{after:.2%}", "", "")

    def second_turns(self, on: Client, texts: Texts) -> None:
        answer = self._arguments.answer
        questions = [job.message for job in jobs("mt-bench")]
        again = second_turns(on, list(pairwise(questions)), answer)
        self.notes.append(
            f"second turns of {answer} tokens that read otherwise with the first turn cached: {again.differ} of "
            f"{again.asked}; without it, a second time: {again.differ_without}"
        )

    def plot(self, on: Client, texts: Texts) -> None:
        tokens, path = self._arguments.tokens, self._arguments.plot
        seconds = by_shared_length(on, texts, tokens, 3)
        trace = zipf_trace(500, 10_000)
        points = [
            (share, hit_rate(trace, blocks), ideal_hit_rate(trace, blocks))
            for share, blocks in zip(SHARES, pool_sizes(trace, SHARES), strict=True)
        ]
        found = ", ".join(f"{share:.0%}: {ours:.1%} (ideal {ideal:.1%})" for share, ours, ideal in points)
        draw(path, tokens, seconds, points)
        self.notes += [f"tokens found by the pool's share of all prompts: {found}", f"plot: {path}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="of each comparison; the first is not counted")
    parser.add_argument("--tokens", type=int, default=1500, help="of the long prompt")
    parser.add_argument("--streams", type=int, default=8, help="that share nothing")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each of those")
    parser.add_argument("--plot", type=Path, default=PLOT, help="where the plot goes")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error("--rounds must be at least 3: with fewer the pool of the part one-engine is never full")
    report, texts = Report(arguments), Texts()
    with (
        TritonServer(Options()) as server,
        Client(server.grpc_url) as client,
        Progress(transient=True) as progress,
    ):
        task = progress.add_task("", total=len(arguments.parts))
        for part in arguments.parts:
            progress.update(task, description=part.replace("-", " "))
            getattr(report, part.replace("-", "_"))(client, texts)
            progress.advance(task)
    console = Console(width=max(120, Console().width))
    console.print(report.table)
    for note in report.notes:
        console.print(note)


if __name__ == "__main__":
    main()
