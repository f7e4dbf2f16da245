"""KV slots: who begins alike gets a copy, or the slot itself; nothing but time tells."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cache_requests import Requests, best_token, check_skipping
from coordination import LocalTarget, expected_tokens, make_sequence
from table_engine import SlotTableEngine

from tandem.decoding import DecodingLoop
from tandem.engine_profile import profile_engine
from tandem.executor import Executor
from tandem.metrics import Metrics
from tandem.sampling import SamplingParams
from tandem.scheduler import Capacity, Scheduler
from tandem.sequence_cache import cache_of
from tandem.slot_cache import SlotCache
from tandem.step import OpenSequence, RowStatus, StepRequest, StepRow
from tandem.tiers import HostTier, TierStack

PROMPT = [(7 * place) % 31 for place in range(24)]


def executor_with(slots: int = 6, size: int = 64, **options: int) -> Executor:
    engine = SlotTableEngine(slot_size=size, slots=slots)
    return Executor(engine, 1, kv_cache=SlotCache(slots, size, engine, **options))  # type: ignore[arg-type]


def test_an_executor_gives_an_engine_with_slots_their_cache() -> None:
    assert isinstance(Executor(SlotTableEngine(), 1).kv_cache, SlotCache)
    with pytest.raises(ValueError, match=r"host_cache_mb, disk_cache_dir and redis_url .*--runtime openvino"):
        cache_of(SlotTableEngine(), tiers=TierStack([HostTier(1)]))


# ------------------------------------------------------------------ hits


@pytest.mark.parametrize("shared", range(1, 22))
def test_a_hit_of_any_length_changes_nothing(shared: int) -> None:
    requests = Requests(executor_with())
    requests.run(PROMPT)
    other = [*PROMPT[:shared], *(token + 1 for token in PROMPT[shared:])]
    assert requests.cached(other) == (shared if shared >= 4 else 0)
    assert requests.cached(PROMPT) == len(PROMPT) - 2, "what was there is not damaged"


def test_the_next_turn_of_a_chat_goes_on_in_the_same_slot() -> None:
    executor = executor_with()
    requests = Requests(executor)
    history = list(PROMPT)
    for _ in range(3):
        result = requests.run(history, answer=8)
        history += [*result.chosen.tolist(), 5, 6, 7]
    assert requests.cached(history) == len(history) - 4, "all but the newest token of the answer and what came new"
    assert executor.kv_cache.copied_blocks == 0
    assert executor.kv_cache.cached_blocks == 1


def test_what_others_may_still_want_is_copied_not_taken() -> None:
    requests = Requests(executor_with())
    requests.run(PROMPT)
    requests.run([*PROMPT[:12], 30, 30])
    assert requests.executor.kv_cache.copied_blocks == 1
    assert requests.cached(PROMPT) == len(PROMPT) - 2


def test_without_another_slot_the_slot_itself_is_taken() -> None:
    executor = executor_with(slots=2)
    requests = Requests(executor)
    requests.run(PROMPT)
    executor.step(StepRequest([StepRow(1, 0, [9], 0)], [OpenSequence(1, 1, SamplingParams())]))
    assert requests.cached([*PROMPT[:12], 30, 30]) == 12
    assert executor.kv_cache.copied_blocks == 0


def test_running_sequences_are_forked() -> None:
    executor = executor_with()
    opens = [OpenSequence(n, len(PROMPT), SamplingParams()) for n in (1, 2, 3)]
    executor.step(StepRequest([StepRow(1, 0, PROMPT, 1, 99)], opens[:1]))
    rows = [StepRow(n, 0, [*PROMPT[:20], n, n, n, n], 1, 99) for n in (2, 3)]
    result = executor.step(StepRequest(rows, opens[1:]))
    assert result.cached.tolist() == [20, 20]
    assert result.chosen.tolist() == [best_token(row.tokens) for row in rows]
    following = [StepRow(n, 24, [n], 1) for n in (1, 2, 3)]
    result = executor.step(StepRequest(following))
    texts = [PROMPT, *(list(row.tokens) for row in rows)]
    assert result.chosen.tolist() == [best_token([*text, n]) for n, text in zip((1, 2, 3), texts, strict=True)]
    executor.step(StepRequest(closes=[1, 2, 3]))
    assert executor.kv_cache.free_blocks == 6


def test_salts_do_not_share() -> None:
    requests = Requests(executor_with())
    for salt in ("a", "b", ""):
        assert requests.cached(PROMPT, salt) == 0
    assert requests.cached(PROMPT, "a") == len(PROMPT) - 2


def test_tokens_that_were_not_committed_are_not_shared() -> None:
    executor = executor_with()
    executor.step(StepRequest([StepRow(99, 0, PROMPT[:6], 10, 6)], [OpenSequence(99, 6, SamplingParams())], passes=10))
    executor.step(StepRequest(closes=[99], committed=[9]))
    history = PROMPT[:6]
    while len(history) < 16:
        history.append(best_token(history))
    assert Requests(executor).cached(history) == 9


def test_what_is_rolled_back_is_not_shared_any_more() -> None:
    executor = executor_with()
    executor.step(StepRequest([StepRow(1, 0, PROMPT, 0)], [OpenSequence(1, len(PROMPT), SamplingParams())]))
    executor.step(StepRequest([StepRow(1, 10, [30, 30], 1)]))
    assert Requests(executor).cached(PROMPT) == 10


def test_answers_can_be_told_apart() -> None:
    requests = Requests(executor_with(tell_answers_apart=True))
    result = requests.run(PROMPT, answer=12)
    history = [*PROMPT, *result.chosen.tolist(), 5]
    assert requests.cached(history) == len(PROMPT)
    assert requests.cached(history) == len(history) - 2, "now it was computed as a prompt"


# ------------------------------------------------------------------ keeping


def test_the_longest_unused_goes_first() -> None:
    requests = Requests(executor_with(slots=3))
    one, two, three = ([seed, *PROMPT] for seed in (1, 2, 3))
    requests.run(one)
    requests.run(two)
    assert requests.cached(one) == len(one) - 2  # a copy, in the third slot, which its original is kept instead of
    requests.run(three)
    requests.run([4] * 9)
    assert requests.executor.kv_cache.evicted_blocks == 1
    assert requests.cached(one) == len(one) - 2
    assert requests.cached(two) == 0


def test_what_has_a_high_priority_stays() -> None:
    requests = Requests(executor_with(slots=3))
    requests.run(PROMPT, priority=80)
    for seed in range(6):
        requests.run([seed + 1] * 20, priority=20)
    assert requests.cached(PROMPT) == len(PROMPT) - 2


def test_the_same_text_is_kept_once() -> None:
    requests = Requests(executor_with())
    for _ in range(4):
        requests.run(PROMPT, answer=5)
    assert requests.executor.kv_cache.cached_blocks == 1


def test_pinned_slots_stay_until_a_reset_and_are_bounded() -> None:
    executor = executor_with(slots=4, most_pinned=1)
    requests = Requests(executor)
    requests.run(PROMPT, pinned=1)
    requests.run(PROMPT, pinned=1)  # is pinned already
    requests.run([3] * 20, pinned=1)  # beyond what may be pinned
    cache = executor.kv_cache
    assert (cache.pinned_blocks, requests.run([9] * 4).total_blocks) == (1, 3)
    for seed in range(9):
        requests.run([seed + 10] * 40)
    assert requests.cached(PROMPT) == len(PROMPT) - 2
    executor.step(StepRequest(reset=True))
    assert (cache.pinned_blocks, cache.cached_blocks, cache.free_blocks) == (0, 0, 4)
    assert requests.cached(PROMPT) == 0


def test_a_reset_forgets_what_a_running_sequence_had() -> None:
    executor = executor_with()
    executor.step(StepRequest([StepRow(1, 0, PROMPT, 9)], [OpenSequence(1, len(PROMPT), SamplingParams())]))
    executor.step(StepRequest(reset=True))
    result = executor.step(StepRequest([StepRow(1, len(PROMPT), [7], 9)]))
    executor.step(StepRequest(closes=[1], committed=[int(result.lengths[0])]))
    requests = Requests(executor)
    assert requests.cached(PROMPT) == 0
    assert requests.cached(PROMPT) == len(PROMPT) - 2


def test_a_request_that_skips_the_cache_neither_finds_nor_leaves_anything() -> None:
    check_skipping(executor_with(), PROMPT)


def test_switched_off_nothing_is_kept() -> None:
    engine = SlotTableEngine()
    requests = Requests(Executor(engine, 1, kv_cache=cache_of(engine, reuse=False)))
    requests.run(PROMPT)
    assert requests.cached(PROMPT) == 0
    assert requests.executor.kv_cache.cached_blocks == 0


# ------------------------------------------------------------------ when slots run out


@pytest.mark.parametrize("size", [64, 128, 2048])
def test_what_steps_cost_is_measured_within_a_slot(size: int) -> None:
    engine = SlotTableEngine(slot_size=size, slots=2)
    engine.memory[:] = 0
    assert profile_engine(engine)(8) > 0
    ends = [row.past + len(row.tokens) for rows in engine.steps for row in rows]
    assert 0 < max(ends) <= size


def test_a_row_without_a_slot_does_not_run_and_others_do() -> None:
    executor = executor_with(slots=2)
    rows = [StepRow(n, 0, [n, 2, 3], 1) for n in (1, 2, 3)]
    result = executor.step(StepRequest(rows, [OpenSequence(n, 3, SamplingParams()) for n in (1, 2, 3)]))
    assert result.status.tolist() == [RowStatus.OK, RowStatus.OK, RowStatus.OUT_OF_BLOCKS]
    assert result.chosen.tolist() == [best_token([1, 2, 3]), best_token([2, 2, 3])]


def test_a_full_slot_takes_no_drafts_and_no_more_tokens() -> None:
    executor = executor_with(size=8)
    opened = [OpenSequence(1, 3, SamplingParams())]
    result = executor.step(StepRequest([StepRow(1, 0, [1, 2, 3], 20)], opened, passes=20))
    assert result.counts.tolist() == [6], "eight positions, the newest token is outside"


def test_sequences_wait_for_slots_and_all_of_them_are_used() -> None:
    scheduler = Scheduler(8, 64, 64)
    for n in range(5):
        scheduler.add(make_sequence(n, [1, 2, 3], 20)[0])
    assert len(scheduler.plan(Capacity(3, 3, 64)).batch) == 3, "a sequence in a slot needs no room to grow into"
    assert len(scheduler.waiting) == 2


def test_more_requests_than_slots_all_end_with_their_tokens() -> None:
    class SlotTarget(LocalTarget):
        def _load(self) -> None:
            super()._load()
            self.executor = executor_with(slots=3)

    metrics = Metrics()
    loop = DecodingLoop(SlotTarget(), Scheduler(8, 16, 8, 2), metrics, 100)
    work = [make_sequence(n, [n, 2, 3, 4, 5, 6], 26, SamplingParams(0.8, seed=n)) for n in range(7)]
    for sequence, _ in work:
        loop._scheduler.add(sequence)
    while not all(sink.ended.is_set() for _, sink in work):
        loop.cycle()
    for sequence, sink in work:
        assert sink.emitted.token_ids == expected_tokens(sequence)


# ------------------------------------------------------------------ controls: each bug must be seen


def _no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotTableEngine, "copy_prefix", lambda self, source, target, tokens: None)


def _always_the_slot_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: SlotCache, source: int, tokens: int) -> int:
        self._owned.add(source)
        return source

    monkeypatch.setattr(SlotCache, "_slot_with", take)


def _no_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.executor.root_key", lambda identity, salt: b"")


def _everything_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Executor._publish
    monkeypatch.setattr(Executor, "_publish", lambda self, sequence, committed: publish(self, sequence, 10**6))


def _nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def reserve(self: SlotCache, table, tokens: int) -> None:  # type: ignore[no-untyped-def]
        if not table.blocks:
            table.blocks.append(self._take())

    monkeypatch.setattr(SlotCache, "reserve", reserve)


def _any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = SlotCache._idle
    monkeypatch.setattr(SlotCache, "_idle", lambda self: sorted(idle(self), reverse=True))


def _room_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.scheduler._Planning._may_grow", lambda self, sequence: True)


@pytest.mark.parametrize(
    ("mutate", "test"),
    [
        (_no_copy, test_running_sequences_are_forked),
        (_always_the_slot_itself, test_what_others_may_still_want_is_copied_not_taken),
        (_always_the_slot_itself, test_running_sequences_are_forked),
        (_no_salt, test_salts_do_not_share),
        (_everything_committed, test_tokens_that_were_not_committed_are_not_shared),
        (_nothing_is_cut, test_what_is_rolled_back_is_not_shared_any_more),
        (_any_order, test_the_longest_unused_goes_first),
        (_room_to_grow, test_sequences_wait_for_slots_and_all_of_them_are_used),
    ],
)
def test_the_tests_can_fail(
    mutate: Callable[[pytest.MonkeyPatch], None], test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        test()
