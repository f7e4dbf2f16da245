"""What the server costs: tokens/s through gRPC against the bare engine in a loop, interleaved A B B A.

Both decode the same prompts with the same engine and settings, greedily, to the same length, prefill included and
speculation off. The bare loop has no server, no sampling but argmax, no detokenizer and no clients.
"""

from __future__ import annotations

import argparse
import secrets
import threading
import time
from pathlib import Path
from typing import Unpack

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.environment import ENGINE, use_huge_pages
from benchmarks.spread import with_quartiles
from client import Client, Parameters
from launcher.server import Options, TritonServer
from tandem.engines import Engine, EngineOptions, Row, load_engine
from tandem.prompt import PromptEncoder
from tandem.settings import TargetSettings

SUBJECTS = (
    "dog", "cat", "river", "mountain", "king", "queen", "robot", "planet",
    "garden", "train", "ship", "tree", "wolf", "lion", "school", "city",
)  # fmt: skip


def prompts_for(streams: int) -> list[str]:
    return [f"Write a long story about a {SUBJECTS[i % len(SUBJECTS)]} number {i}." for i in range(streams)]


def bare_rate(engine: Engine, prompts: list[list[int]], new_tokens: int) -> float:
    """Tokens/s of the engine alone: one ragged prefill step, then one token per sequence and step."""
    per_sequence = -(-(max(map(len, prompts)) + new_tokens + 1) // engine.block_size)
    blocks = [list(range(i * per_sequence, (i + 1) * per_sequence)) for i in range(len(prompts))]
    started = time.perf_counter()
    rows = [Row(prompt, 0, table) for prompt, table in zip(prompts, blocks, strict=True)]
    for step in range(new_tokens):
        chosen = engine.forward(rows).argmax(axis=1).tolist()
        rows = [
            Row([token], len(prompt) + step, table)
            for token, prompt, table in zip(chosen, prompts, blocks, strict=True)
        ]
    return len(prompts) * new_tokens / (time.perf_counter() - started)


def served_rate(client: Client, prompts: list[str], new_tokens: int, **parameters: Unpack[Parameters]) -> float:
    """Tokens/s of as many concurrent streams as there are prompts; `parameters` are of all of them."""

    def run(prompt: str) -> None:
        salt = secrets.token_hex(8)  # without it, prompts that begin alike would share
        length: Parameters = {"max_tokens": new_tokens, "min_length": new_tokens}
        own: Parameters = {**parameters, **length, "drafter": "none", "cache_salt": salt}
        result = client.stream(prompt, **own).result()
        assert result.generated_tokens == new_tokens

    threads = [threading.Thread(target=run, args=(prompt,)) for prompt in prompts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(prompts) * new_tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16], help="numbers of concurrent streams")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per stream")
    parser.add_argument("--rounds", type=int, default=17, help="rounds of A and B; the first is not counted")
    parser.add_argument("--engine", type=Path, default=ENGINE, help="engine directory")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error("--rounds must be at least 3: two that count have quartiles")
    use_huge_pages("benchmarks.serving")
    engine_directory = arguments.engine.resolve()
    prompt_encoder = PromptEncoder(engine_directory)
    table = Table("streams", "bare engine, tokens/s", "through gRPC, tokens/s", "ratio", title="median (quartiles)")
    # The rounds send the same prompts, and the bare loop reads them anew each time.
    options = Options(env={"TANDEM_TARGET_ENGINE": str(engine_directory), "TANDEM_PREFIX_CACHE": "0"})
    with TritonServer(options) as server, Client(server.grpc_url) as client, Progress(transient=True) as progress:
        engine = load_engine(engine_directory, EngineOptions(graph_memory_mb=TargetSettings().graph_memory_mb))
        task = progress.add_task("measuring", total=len(arguments.streams) * arguments.rounds)
        for streams in arguments.streams:
            texts = prompts_for(streams)
            prompts = [prompt_encoder.encode(text, special_tokens=True) for text in texts]
            bare, served = [], []
            for number in range(arguments.rounds):
                # Which is first takes turns: A B B A.
                if number % 2:
                    served.append(served_rate(client, texts, arguments.tokens))
                bare.append(bare_rate(engine, prompts, arguments.tokens))
                if not number % 2:
                    served.append(served_rate(client, texts, arguments.tokens))
                progress.advance(task)
            bare, served = bare[1:], served[1:]
            ratios = [s / b for s, b in zip(served, bare, strict=True)]
            table.add_row(str(streams), with_quartiles(bare, 1), with_quartiles(served, 1), with_quartiles(ratios, 3))
    Console().print(table)


if __name__ == "__main__":
    main()
