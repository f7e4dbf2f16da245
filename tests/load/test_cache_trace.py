"""10,000 requests over 500 prompts on the real server, whose pool is too small for them: hits, no error, no leak.

`make test-load` runs it; on two cores it takes about ten minutes. TRACE_REQUESTS sets another number.
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.progress import track
from serving import idle_reading
from tokenizers import Tokenizer

from benchmarks.cache_trace import Trace, hit_rate, ideal_hit_rate
from client import Client
from client.cache import CacheState, cache_state
from launcher.server import REPOSITORY, Options, TritonServer
from perf import mt_bench

PROMPTS = 500
REQUESTS = int(os.environ.get("TRACE_REQUESTS", "10000"))
STREAMS = 8
WORDS = (30, 110)  # of a prompt
KV_CACHE_MB = 500  # of the default model's blocks about 700: two fifths of what the prompts have
AT_LEAST = 0.95  # of the hits of an ideal LRU


def make_prompts(seed: int) -> list[str]:
    """Texts that begin differently, of words that people write."""
    rng = random.Random(seed)
    words = " ".join(mt_bench.prompts(80)).split()
    return [f"{number}. " + " ".join(rng.choices(words, k=rng.randint(*WORDS))) for number in range(PROMPTS)]


@pytest.mark.load
@pytest.mark.timeout(3600)
def test_hits_of_many_requests_in_a_small_pool(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(REPOSITORY / "target" / "1" / "engine" / "tokenizer.json"))
    texts = make_prompts(1)
    weights = [1 / rank for rank in range(1, PROMPTS + 1)]
    order = random.Random(2).choices(range(PROMPTS), weights, k=REQUESTS)
    trace = Trace([tokenizer.encode(text).ids for text in texts], order)
    env = {"TANDEM_KV_CACHE_MB": str(KV_CACHE_MB), "TANDEM_MAX_QUEUE_SIZE": str(STREAMS), "TANDEM_GRAPH_MEMORY_MB": "0"}
    options = Options(models=("target", "generate"), env=env, log=tmp_path / "server.log")
    with TritonServer(options) as server, Client(server.grpc_url) as client:
        before = cache_state(idle_reading(server))

        def ask(which: int) -> tuple[int, int]:
            result = client.generate(texts[which], max_tokens=1)
            assert result.prompt_tokens == len(trace.prompts[which])
            return result.cached_prompt_tokens, result.prompt_tokens

        with ThreadPoolExecutor(STREAMS) as pool:
            counts = list(track(pool.map(ask, order), "requests", total=REQUESTS))
        after: CacheState = cache_state(idle_reading(server))  # waits until no block is in use
    rate = sum(cached for cached, _ in counts) / sum(total for _, total in counts)
    blocks = after.total_blocks
    ideal, alone = ideal_hit_rate(trace, blocks), hit_rate(trace, blocks)
    whole = sum(-(-len(prompt) // 32) for prompt in trace.prompts)
    print(f"{REQUESTS} requests, {blocks} blocks for {whole} of the prompts: {rate:.1%} of the tokens were found")
    print(f"an ideal LRU finds {ideal:.1%}, the cache alone {alone:.1%}; {after.evicted_blocks} blocks given up")
    assert blocks < 0.6 * whole, "the pool is not too small"
    assert after.evicted_blocks - before.evicted_blocks > blocks
    assert rate >= AT_LEAST * ideal
    assert after.cached_blocks <= blocks
