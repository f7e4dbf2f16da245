"""Requests that begin alike share their blocks, and nothing but time tells."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from cache_requests import Requests, best_token, check_skipping
from coordination import LocalTarget, expected_tokens, make_sequence
from table_engine import TableEngine

from tandem.decoding import DecodingLoop
from tandem.executor import Executor
from tandem.kv_cache import KvCache
from tandem.metrics import Metrics
from tandem.sampling import SamplingParams
from tandem.scheduler import Scheduler
from tandem.step import OpenSequence, StepRequest, StepRow
from tandem.tiers import HostTier, TierStack

BLOCK = 4
PROMPT = [(7 * place) % 31 for place in range(24)]


def executor_with(num_blocks: int = 64, host_blocks: int = 0, **options: int) -> Executor:
    engine = TableEngine(num_blocks=num_blocks, block_size=BLOCK)
    tiers = TierStack([HostTier(host_blocks * BLOCK * 8 / 2**20)] if host_blocks else [])
    return Executor(engine, 1, kv_cache=KvCache(num_blocks, BLOCK, engine, tiers, **options))  # type: ignore[arg-type]


# ------------------------------------------------------------------ hits


@pytest.mark.parametrize("shared", range(1, 22))
def test_a_hit_of_any_length_changes_nothing(shared: int) -> None:
    requests = Requests(executor_with())
    requests.run(PROMPT)
    other = [*PROMPT[:shared], *(token + 1 for token in PROMPT[shared:])]
    found = requests.cached(other)
    whole = shared // BLOCK * BLOCK
    assert found == (shared if shared - whole >= 4 else whole)
    assert requests.cached(PROMPT) == len(PROMPT) - 2, "what was there is not damaged"


@pytest.mark.parametrize("length", range(1, 24))
def test_the_same_prompt_again_computes_its_last_tokens_only(length: int) -> None:
    requests = Requests(executor_with())
    prompt = PROMPT[:length]
    requests.run(prompt, answer=9)
    assert requests.cached(prompt, answer=9) == max(0, min(length - 2, length // BLOCK * BLOCK))


def test_a_partly_filled_block_is_found_and_copied() -> None:
    requests = Requests(Executor(TableEngine(num_blocks=16, block_size=8), 1))
    requests.run(PROMPT)
    assert requests.cached([*PROMPT[:13], 30, 30, 30]) == 13
    assert requests.executor.kv_cache.copied_blocks == 1
    assert requests.cached([*PROMPT[:10], 29, 29]) == 8, "two tokens are not worth a copy"
    assert requests.cached(PROMPT) == len(PROMPT) - 2, "what was copied is not damaged"


def test_the_next_turn_of_a_chat_finds_the_answer() -> None:
    requests = Requests(executor_with())
    history = list(PROMPT)
    for _ in range(3):
        result = requests.run(history, answer=8)
        history += [*result.chosen.tolist(), 5, 6, 7]
    assert requests.cached(history) >= len(history) - 3 - BLOCK


def test_answers_can_be_told_apart() -> None:
    requests = Requests(executor_with(tell_answers_apart=True))
    result = requests.run(PROMPT, answer=12)
    history = [*PROMPT, *result.chosen.tolist(), 5]
    assert requests.cached(history) == len(PROMPT)
    assert requests.cached(history) == len(history) - 2, "now it was computed as a prompt"


def test_running_sequences_share_what_a_third_begins_with() -> None:
    executor = executor_with()
    opens = [OpenSequence(n, len(PROMPT), SamplingParams()) for n in (1, 2, 3)]
    executor.step(StepRequest([StepRow(1, 0, PROMPT, 1, 99)], opens[:1]))
    used = executor.kv_cache.free_blocks
    rows = [StepRow(n, 0, [*PROMPT[:20], n, n, n, n], 1, 99) for n in (2, 3)]
    result = executor.step(StepRequest(rows, opens[1:]))
    assert result.cached.tolist() == [20, 20]
    assert used - executor.kv_cache.free_blocks == 2, "one block for each tail"
    assert result.chosen.tolist() == [best_token(row.tokens) for row in rows]
    executor.step(StepRequest(closes=[1]))
    Requests(executor).run([9] * 57 * BLOCK)
    token = int(result.chosen[0])
    result = executor.step(StepRequest([StepRow(2, 24, [token], 1)]))
    assert result.chosen.tolist() == [best_token([*rows[0].tokens, token])]
    executor.step(StepRequest(closes=[2, 3]))
    assert executor.kv_cache.free_blocks == executor.kv_cache.num_blocks


def test_salts_do_not_share() -> None:
    requests = Requests(executor_with(num_blocks=12, host_blocks=64))
    assert requests.cached(PROMPT, "a") == 0
    assert requests.cached(PROMPT, "b") == 0
    assert requests.cached(PROMPT) == 0
    assert requests.cached(PROMPT, "a") == len(PROMPT) - 2, "from the host's memory: the pool is too small for all"
    assert requests.executor.kv_cache.tiers.counts[1].hit_tokens > 0


def test_tokens_that_were_not_committed_are_not_shared() -> None:
    executor = executor_with()
    requests = Requests(executor)
    executor.step(StepRequest([StepRow(99, 0, PROMPT[:6], 10, 6)], [OpenSequence(99, 6, SamplingParams())], passes=10))
    executor.step(StepRequest(closes=[99], committed=[9]))
    history = PROMPT[:6]
    while len(history) < 16:
        history.append(best_token(history))
    assert requests.cached(history) == 8


# ------------------------------------------------------------------ keeping


def test_the_longest_unused_goes_first_and_leaves_before_roots() -> None:
    requests = Requests(executor_with(num_blocks=14))
    one, two = PROMPT, [token + 1 for token in PROMPT]
    requests.run(one)
    requests.run(two)
    requests.run(one)
    requests.run([20] * 16)  # takes four blocks: two are free
    assert requests.executor.kv_cache.evicted_blocks > 0
    assert requests.cached(one) == len(one) - 2
    found = requests.cached(two)
    assert 0 < found < len(two) - 2, "its end is gone, not its beginning"


def test_what_has_a_high_priority_stays() -> None:
    requests = Requests(executor_with(num_blocks=14))
    requests.run(PROMPT, priority=80)
    for seed in range(6):
        requests.run([seed + 1] * 20, priority=20)
    assert requests.cached(PROMPT) == len(PROMPT) - 2


def test_pinned_blocks_stay_until_a_reset_and_are_bounded() -> None:
    requests = Requests(executor_with(num_blocks=20, most_pinned=6))
    requests.run(PROMPT, pinned=1)
    requests.run([3] * 20, pinned=1)  # beyond what may be pinned
    cache = requests.executor.kv_cache
    assert cache.pinned_blocks == 6
    assert requests.run([9] * 4).total_blocks == 14
    for seed in range(9):
        requests.run([seed + 10] * 40)
    assert requests.cached(PROMPT) == len(PROMPT) - 2
    requests.executor.step(StepRequest(reset=True))
    assert (cache.pinned_blocks, cache.cached_blocks, cache.free_blocks) == (0, 0, 20)
    assert requests.cached(PROMPT) == 0


def test_a_sequence_that_needs_the_whole_pool_gets_it() -> None:
    requests = Requests(executor_with(num_blocks=7))
    for _ in range(3):
        requests.run(PROMPT, answer=4)
        requests.run([*PROMPT[:22], 1, 2], answer=4)


def test_a_request_that_skips_the_cache_neither_finds_nor_leaves_anything() -> None:
    check_skipping(executor_with(), PROMPT)


def test_switched_off_nothing_is_kept() -> None:
    engine = TableEngine(num_blocks=16, block_size=BLOCK)
    requests = Requests(Executor(engine, 1, kv_cache=KvCache(16, BLOCK)))
    requests.run(PROMPT)
    assert requests.cached(PROMPT) == 0
    assert requests.executor.kv_cache.cached_blocks == 0


def test_the_hit_rate_is_that_of_an_ideal_lru() -> None:
    """10,000 requests over 500 prompts in a pool for a fifth of them."""
    rng = random.Random(3)
    weights = [1 / rank for rank in range(1, 501)]
    prompts = [[rng.randrange(31) for _ in range(4 * BLOCK)] for _ in weights]
    room = 4 * 100
    requests = Requests(executor_with(num_blocks=room + 6))
    ideal: OrderedDict[int, None] = OrderedDict()
    hits = found = 0
    for _ in range(10_000):
        which = rng.choices(range(500), weights)[0]
        prompt = [*prompts[which], rng.randrange(31), rng.randrange(31)]
        found += requests.cached(prompt)
        if which in ideal:
            hits += 4 * BLOCK
        ideal[which] = None
        ideal.move_to_end(which)
        if len(ideal) > room // 4:
            ideal.popitem(last=False)
    assert hits > 0
    assert found >= 0.95 * hits, f"{found} tokens of {hits}"
    cache = requests.executor.kv_cache
    assert cache.free_blocks == cache.num_blocks, "a block is lost"


# ------------------------------------------------------------------ through the decoding loop


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    target = LocalTarget(num_blocks=14)
    metrics = Metrics()
    loop = DecodingLoop(target, Scheduler(4, 16, 4, 2), metrics, 100)
    work = [make_sequence(n, [n, 2, 3, 4, 5, 6], 26, SamplingParams(0.8, seed=n)) for n in (1, 2, 3)]
    for sequence, _ in work:
        loop._scheduler.add(sequence)
    while not all(sink.ended.is_set() for _, sink in work):
        loop.cycle()
    for sequence, sink in work:
        assert sink.emitted.token_ids == expected_tokens(sequence)
    assert metrics.preemptions > 0
    assert sum(metrics.cache.tiers("hit_tokens")) > 0


def test_a_requests_reused_tokens_are_told_and_not_counted_as_computed() -> None:
    metrics = Metrics()
    loop = DecodingLoop(LocalTarget(), Scheduler(4, 64, 8), metrics, 100)
    reused = []
    for identity in (1, 2):
        sequence, sink = make_sequence(identity, PROMPT, 3)
        loop._scheduler.add(sequence)
        while not sink.ended.is_set():
            loop.cycle()
        reused.append(sequence.reused)
    assert reused == [0, len(PROMPT) - 2]
    assert metrics.prompt_tokens == len(PROMPT) + 2
    assert metrics.cache.cache("queried_tokens") == 2 * len(PROMPT)


# ------------------------------------------------------------------ controls: each bug must be seen


def _no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KvCache, "_shared_block", lambda self, table: None)


def _no_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.executor.root_key", lambda identity, salt: b"")


def _everything_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Executor._publish
    monkeypatch.setattr(Executor, "_publish", lambda self, sequence, committed: publish(self, sequence, 10**6))


def _no_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KvCache, "_hold", lambda self, entry: self._index.hold(entry))


def _roots_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def truncate(self: KvCache, table, length: int) -> None:  # type: ignore[no-untyped-def]
        keep = self.blocks_for(length)
        table.length = length
        del table.keys[length // self.block_size :]
        for block in table.blocks[keep:]:
            self._give_back(block)
        del table.blocks[keep:]

    monkeypatch.setattr(KvCache, "truncate", truncate)


def _one_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.prefix_index.PrefixIndex.rest", _rest_alike)


def _rest_alike(self, entry) -> None:  # type: ignore[no-untyped-def]
    entry.priority = 0
    self._idle.setdefault(0, OrderedDict())[entry] = None
    self.idle_blocks += 1


@pytest.mark.parametrize(
    ("mutate", "test"),
    [
        (_no_copy, test_a_partly_filled_block_is_found_and_copied),
        (_no_salt, test_salts_do_not_share),
        (_everything_committed, test_tokens_that_were_not_committed_are_not_shared),
        (_no_references, test_running_sequences_share_what_a_third_begins_with),
        (_roots_first, test_the_longest_unused_goes_first_and_leaves_before_roots),
        (_one_priority, test_what_has_a_high_priority_stays),
    ],
)
def test_the_tests_can_fail(mutate, test, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    mutate(monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        test()
