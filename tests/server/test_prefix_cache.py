"""The prefix cache on the real server: a hit gives what a miss gives, within one tenant, from every tier."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from redis_process import RedisProcess, redis_process
from served_engine import HAS_SLOTS
from serving import BOUND_S, idle_reading, stub_pids, wait_until
from small_disk import can_mount, small_disk
from tokenizers import Tokenizer

from client import Client, Parameters, Result
from client.__main__ import main
from client.cache import CacheState, cache_state
from launcher.server import REPOSITORY, Options, TritonServer
from perf import mt_bench

BLOCK = 32
MIN_COPIED = 4
TOKENS = 8
KINDS: dict[str, Parameters] = {
    "greedy": {},
    "greedy, no drafts": {"drafter": "none"},
    "sampled": {"temperature": 0.8, "random_seed": 5},
}
TEXT = " ".join(mt_bench.prompts(12))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(REPOSITORY / "target" / "1" / "engine" / "tokenizer.json"))


def ask(server: TritonServer, prompt: str, salt: str, **parameters: object) -> Result:
    wanted = {"max_tokens": TOKENS, "min_length": TOKENS, "return_token_ids": True, "cache_salt": salt, **parameters}
    with Client(server.grpc_url) as client:
        return client.generate(prompt, **wanted)  # type: ignore[arg-type]


def contents(result: Result) -> tuple[object, ...]:
    return result.token_ids, result.text


def state(server: TritonServer) -> CacheState:
    return cache_state(idle_reading(server))


def expected_hit(shared: int, length: int) -> int:
    """Tokens of a prompt that are found if its first `shared` are in the pool."""
    whole = min(shared // BLOCK * BLOCK, length - 2)
    rest = min(shared, length - 2) - whole
    return whole + (rest if rest >= MIN_COPIED else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_gives_what_a_miss_gives(server, tokenizer, kind):
    """For prompts that part at every place around the ends of blocks."""
    parameters = KINDS[kind]
    ids = tokenizer.encode(TEXT).ids[:140]
    ask(server, tokenizer.decode(ids), f"hit {kind}", **parameters)
    held = tokenizer.encode(tokenizer.decode(ids)).ids
    hits = set()
    for shared in (30, 31, 32, 33, 37, 64, 65, 97):
        prompt = tokenizer.decode(held[:shared]) + " However, nobody knew that"
        own = tokenizer.encode(prompt).ids
        common = next(place for place, (a, b) in enumerate(zip(own, held, strict=False)) if a != b)
        missed = ask(server, prompt, f"miss {kind} {shared}", **parameters)
        found = ask(server, prompt, f"hit {kind}", **parameters)
        assert contents(found) == contents(missed), f"{shared} shared tokens"
        assert missed.cached_prompt_tokens == 0
        assert found.cached_prompt_tokens >= expected_hit(common, len(own))
        hits.add(found.cached_prompt_tokens % BLOCK)
    assert len(hits) > 3, "only whole blocks were tried"


def test_the_same_prompt_again(server):
    first, second = (ask(server, TEXT[:900], "again") for _ in range(2))
    assert contents(first) == contents(second)
    assert first.cached_prompt_tokens == 0
    assert second.cached_prompt_tokens >= second.prompt_tokens - BLOCK - 2


def test_a_request_that_skips_the_cache_leaves_nothing_and_finds_nothing(server):
    prompt = TEXT[100:1000]
    first = ask(server, prompt, "skipped", cache_skip=True)
    second = ask(server, prompt, "skipped")
    third = ask(server, prompt, "skipped", cache_skip=True)
    fourth = ask(server, prompt, "skipped")
    found = [result.cached_prompt_tokens for result in (first, second, third, fourth)]
    assert found[:3] == [0, 0, 0]
    assert found[3] >= fourth.prompt_tokens - BLOCK - 2
    assert contents(first) == contents(second) == contents(third) == contents(fourth)


def test_requests_at_the_same_time_share_and_diverge(server):
    prompts = [f"{TEXT[:700]} Part {number}: the" for number in range(8)]
    alone = [ask(server, prompt, f"alone {number}") for number, prompt in enumerate(prompts)]
    ask(server, TEXT[:700], "together")
    with ThreadPoolExecutor(len(prompts)) as threads:
        together = list(threads.map(lambda prompt: ask(server, prompt, "together"), prompts))
    assert list(map(contents, together)) == list(map(contents, alone))
    assert all(result.cached_prompt_tokens > 64 for result in together)


def test_the_next_turn_of_a_chat_begins_at_its_new_words(server):
    messages = [{"role": "user", "content": "Tell me about rivers in two sentences."}]
    with Client(server.grpc_url) as client:
        for question in ("And lakes?", "And seas?"):
            answer = client.generate(messages=messages, max_tokens=60, cache_salt="chat")
            messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]
        last = client.generate(messages=messages, max_tokens=4, cache_salt="chat")
    assert last.prompt_tokens - last.cached_prompt_tokens < BLOCK + 24, "the answers were not computed again"


def test_tenants_do_not_share(server):
    for salt in ("tenant one", "tenant two"):
        assert ask(server, TEXT[:600], salt).cached_prompt_tokens == 0
    assert ask(server, TEXT[:600], "tenant one").cached_prompt_tokens > 64


def test_the_command_line_shows_the_cache_and_resets_it(server, capsys):
    ask(server, TEXT[100:700], "reset")
    assert ask(server, TEXT[100:700], "reset").cached_prompt_tokens > 64
    before = state(server)
    assert 0 < before.hit_tokens < before.queried_tokens
    addresses = ["--url", server.grpc_url, "--metrics-url", server.metrics_url]
    assert main(["cache", *addresses]) == 0
    assert "Prompt tokens reused" in capsys.readouterr().out
    assert main(["cache", "--reset", *addresses]) == 0
    assert main(["cache", "--json", *addresses]) == 0
    assert ask(server, TEXT[100:700], "reset").cached_prompt_tokens == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tiers"]["pool"]["hit_tokens"] >= before.hit_tokens
    assert state(server).cached_blocks < before.cached_blocks


# ------------------------------------------------------------------ tiers and faults

LONG = [TEXT[start : start + 700] for start in range(0, 3000, 500)]  # together more than the pool and the host hold


@pytest.fixture(scope="module")
def fleet_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with redis_process(tmp_path_factory.mktemp("redis")) as process:
        yield process


def tiered(directory: Path, log: Path, **more: str) -> Options:
    env = {
        "TANDEM_KV_CACHE_MB": "9",  # a dozen blocks
        "TANDEM_HOST_CACHE_MB": "4",
        "TANDEM_DISK_CACHE_DIR": str(directory),
        "TANDEM_DISK_CACHE_MB": "200",
        "TANDEM_GRAPH_MEMORY_MB": "0",  # loads faster
        **more,
    }
    return Options(models=("target", "generate"), env=env, log=log)


@pytest.mark.skipif(HAS_SLOTS, reason="tiers keep blocks, and this engine has slots")
def test_every_tier_gives_back_what_was_computed_and_no_fault_reaches_a_request(tmp_path):
    directory = tmp_path / "cache"
    with TritonServer(tiered(directory, tmp_path / "log")) as server:
        missed = [contents(ask(server, prompt, f"miss {number}")) for number, prompt in enumerate(LONG)]

        def answers() -> list[tuple[object, ...]]:
            """Forwards, then backwards: what was given up last is in the host's memory still."""
            there = [contents(ask(server, prompt, "hit")) for prompt in LONG]
            back = [contents(ask(server, prompt, "hit")) for prompt in reversed(LONG)]
            assert there == back[::-1]
            return there

        for _ in range(2):
            assert answers() == missed
        tiers = state(server).tiers
        assert tiers["host"].hit_tokens > 0
        assert tiers["disk"].hit_tokens > 0
        assert tiers["disk"].faults == 0
        # every file is damaged
        for path in directory.rglob("*.kv"):
            content = path.read_bytes()
            path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        assert answers() == missed
        faults = state(server).tiers["disk"].faults
        assert faults > 0
        # the disk cannot be written to: a file is where the directory was
        shutil.rmtree(directory)
        directory.write_text("in the way")
        assert answers() == missed
        wait_until(lambda: state(server).tiers["disk"].faults > faults, "the faults are counted")
        directory.unlink()
        # the executor dies
        before = stub_pids(server)["target"]
        server.kill_stub("target")
        assert answers() == missed
        assert stub_pids(server)["target"] != before
        assert answers() == missed
    assert list(directory.rglob("*.kv")), "what was kept is on disk when the server has ended"
    with TritonServer(tiered(directory, tmp_path / "log2", TANDEM_ANSWER_CACHE_MB="1")) as server:
        again = ask(server, LONG[-1], "hit")
        assert contents(again) == missed[-1]
        assert again.cached_prompt_tokens > 0
        assert state(server).tiers["disk"].hit_tokens > 0
        kept = ask(server, LONG[-1], "hit", drafter="none")  # the whole answer
        assert contents(kept) == missed[-1]
        assert kept.cached_prompt_tokens == kept.prompt_tokens > again.cached_prompt_tokens
        assert ask(server, LONG[-1], "miss").cached_prompt_tokens == 0
        assert (state(server).answer_hits, state(server).answer_misses) == (1, 2)
        assert main(["cache", "--reset", "--url", server.grpc_url]) == 0
        assert ask(server, LONG[-1], "hit").cached_prompt_tokens == 0


@pytest.mark.skipif(HAS_SLOTS, reason="tiers keep blocks, and this engine has slots")
def test_a_full_disk_costs_hits_and_no_request(tmp_path):
    """A real file system with room for two blocks, which then has some again."""
    directory = tmp_path / "full"
    if not can_mount(directory):
        pytest.skip("mounting a small file system is not allowed here; a unit test has a disk that says it is full")
    with (
        small_disk(directory, 2),
        TritonServer(tiered(directory, tmp_path / "log", TANDEM_HOST_CACHE_MB="0")) as server,
    ):
        missed = [contents(ask(server, prompt, f"miss {number}")) for number, prompt in enumerate(LONG)]
        for _ in range(2):
            assert [contents(ask(server, prompt, "hit")) for prompt in LONG] == missed
        wait_until(lambda: state(server).tiers["disk"].faults > 0, "the faults are counted")
        assert shutil.disk_usage(directory).free < 2**20
        assert not list(directory.rglob("*.kv-new")), "no half of a block stays"
        subprocess.run(["mount", "-o", "remount,size=200m", str(directory)], check=True)
        kept = len(list(directory.rglob("*.kv")))
        assert [contents(ask(server, prompt, "hit")) for prompt in LONG] == missed
        wait_until(lambda: len(list(directory.rglob("*.kv"))) > kept + 5, "blocks are written again")


@pytest.mark.skipif(HAS_SLOTS, reason="tiers keep blocks, and this engine has slots")
def test_a_fleet_shares_by_redis_and_the_gateway_tells_tenants_apart(fleet_redis, tmp_path):
    shared = {"TANDEM_REDIS_URL": fleet_redis.url, "TANDEM_SALT_PARAMETER": "tenant"}

    def post(server: TritonServer, **more: object) -> dict[str, object]:
        sent = {"text_input": LONG[0], "max_tokens": 4, **more}
        url = f"http://{server.http_url}/v2/models/generate/generate"
        return requests.post(url, json=sent, timeout=BOUND_S).json()

    with TritonServer(tiered(tmp_path / "one", tmp_path / "one.log", **shared)) as first:
        answer = post(first, tenant="a")
        assert answer["cached_prompt_tokens"] == 0
        assert post(first)["error"].startswith("[INVALID_ARG] tenant: this server needs this request parameter")
        assert post(first, tenant="b")["cached_prompt_tokens"] == 0, "another tenant's"
        assert post(first, tenant="b", cache_salt='["a", ""]')["cached_prompt_tokens"] == 0
        assert post(first, tenant="a")["cached_prompt_tokens"] > 64
        wait_until(lambda: fleet_redis.client().dbsize() >= 8, "the prompts' blocks are in Redis")
    with TritonServer(tiered(tmp_path / "two", tmp_path / "two.log", **shared)) as second:
        found = post(second, tenant="a")
        assert found["cached_prompt_tokens"] > 64
        assert found["text_output"] == answer["text_output"]
        assert state(second).tiers["redis"].hit_tokens > 0
        assert post(second, tenant="c")["cached_prompt_tokens"] == 0
        fleet_redis.stop()
        for tenant in ("d", "e", "a"):
            assert post(second, tenant=tenant)["text_output"] == answer["text_output"]
        assert state(second).tiers["redis"].faults > 0
