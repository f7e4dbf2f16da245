"""Plans of TensorRT on the real server: one text alone, in a batch, with and without drafters, after a reload."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client import Client
from launcher.server import Options, TritonServer
from perf import mt_bench

pytestmark = pytest.mark.gpu

TOKENS, STREAMS = 48, 8


@pytest.fixture(scope="module")
def served(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    env = {"TANDEM_TARGET_ENGINE": str(plan), "TANDEM_KV_CACHE_MB": "2048"}
    log = tmp_path_factory.mktemp("served") / "server.log"
    with TritonServer(Options(models=("target", "generate"), env=env, log=log)) as running:
        yield running


def texts(server: TritonServer, streams: int, drafter: str, temperature: float) -> list[str]:
    with Client(server.grpc_url) as client, ThreadPoolExecutor(streams) as pool:

        def ask(item: tuple[int, str]) -> str:
            seed, prompt = item
            return client.generate(
                prompt,
                max_tokens=TOKENS,
                min_length=TOKENS,
                temperature=temperature,
                random_seed=seed,
                drafter=drafter,
                cache_salt=f"{streams} {drafter}",
            ).text

        return list(pool.map(ask, enumerate(mt_bench.prompts(STREAMS))))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_neither_neighbours_nor_drafters_change_a_text(served: TritonServer, temperature: float) -> None:
    alone = texts(served, 1, "none", temperature)
    assert len(set(alone)) == STREAMS
    assert texts(served, STREAMS, "none", temperature) == alone
    assert texts(served, 1, "auto", temperature) == alone
    assert texts(served, STREAMS, "auto", temperature) == alone


def test_a_text_goes_on_when_the_target_is_killed(served: TritonServer) -> None:
    with Client(served.grpc_url) as client:
        whole = client.generate("Once upon a time", max_tokens=200, min_length=200).text
        stream = client.stream("Once upon a time", max_tokens=200, min_length=200, cache_salt="killed")
        next(stream)
        served.kill_stub("target")
        assert stream.result().text == whole
