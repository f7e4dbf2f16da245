"""The executor contract: ragged rows, rollback, epochs, and what happens when memory runs out."""

import numpy as np
import pytest
from table_engine import TableEngine, table_logits

from tandem import run_ahead
from tandem.executor import Executor
from tandem.kv_cache import Retention
from tandem.sampling import SamplingParams
from tandem.step import OpenSequence, RowStatus, StepRequest, StepResult, StepRow

GREEDY = SamplingParams()


def best_token(history: list[int], vocab_size: int = 32) -> int:
    return int(table_logits(history, vocab_size).argmax())


def opened(*sequences: int) -> list[OpenSequence]:
    return [OpenSequence(sequence, 2, GREEDY) for sequence in sequences]


def test_ragged_rows_choose_behind_their_last_token() -> None:
    executor = Executor(TableEngine(), epoch=7)
    result = executor.step(
        StepRequest([StepRow(1, 0, [3, 4, 5], 1), StepRow(2, 0, [6, 7], 9), StepRow(3, 0, [8], 0)], opened(1, 2, 3))
    )
    assert result.epoch == 7
    assert result.chosen.tolist() == [best_token([3, 4, 5]), best_token([6, 7])]
    assert result.counts.tolist() == [1, 1, 0]
    assert result.lengths.tolist() == [3, 2, 1]


@pytest.mark.parametrize("keep", [1, 3, 4, 5, 8])
def test_rollback_leaves_no_trace(keep: int) -> None:
    executor = Executor(TableEngine(), epoch=1)
    history = [5, 1, 4, 2, 8, 5, 7, 9]
    executor.step(StepRequest([StepRow(1, 0, history, 1)], opened(1)))
    result = executor.step(StepRequest([StepRow(1, keep, [11, 12], 1)]))
    assert result.chosen.tolist() == [best_token([*history[:keep], 11, 12])]


def test_passes_go_on_with_the_chosen_token_until_an_end_id() -> None:
    history = [3, 4]
    for _ in range(4):
        history.append(best_token(history))
    ends = SamplingParams(end_ids=(history[4],))
    opens = [OpenSequence(1, 2, GREEDY), OpenSequence(2, 2, ends)]
    executor = Executor(TableEngine(), epoch=1)
    result = executor.step(StepRequest([StepRow(1, 0, [3, 4], 9), StepRow(2, 0, [3, 4], 9)], opens, passes=4))
    stopped = history[2 : history.index(history[4]) + 1]
    assert result.counts.tolist() == [4, len(stopped)]
    assert result.chosen.tolist() == [*history[2:], *stopped]
    assert result.lengths.tolist() == [5, 1 + len(stopped)], "the last chosen token is not in the cache"


def test_passes_end_with_what_a_row_may_choose_and_with_its_blocks() -> None:
    executor = Executor(TableEngine(num_blocks=3), epoch=1)
    rows = [StepRow(1, 0, [3, 4], 2), StepRow(2, 0, [3, 4], 9)]
    result = executor.step(StepRequest(rows, opened(1, 2), passes=9))
    assert result.counts.tolist() == [2, 7], "eight positions of two blocks, the newest token is outside"
    assert result.status.tolist() == [RowStatus.OK, RowStatus.OK]
    assert result.lengths.tolist() == [3, 8]
    assert result.pass_rows.tolist() == [2, 2, 1, 1, 1, 1, 1]


def ran_ahead(*sequences: int) -> tuple[Executor, TableEngine, StepResult]:
    """An executor that decoded [3, 4] of each sequence for two passes, and then ran ahead."""
    engine = TableEngine()
    executor = Executor(engine, epoch=1)
    rows = [StepRow(sequence, 0, [3, 4], 20) for sequence in sequences]
    result = executor.step(StepRequest(rows, opened(*sequences), passes=2))
    assert executor.can_run_ahead
    executor.run_ahead()
    assert not executor.can_run_ahead
    assert len(engine.steps) == 3
    return executor, engine, result


def continuing(result: StepResult, index: int, sequence: int) -> StepRow:
    return StepRow(sequence, int(result.lengths[index]), [int(result.chosen[2 * index + 1])], 18)


def greedy_answer(count: int) -> list[int]:
    history = [3, 4]
    while len(history) < count + 2:
        history.append(best_token(history))
    return history[2:]


def test_what_ran_ahead_is_not_computed_again() -> None:
    executor, engine, result = ran_ahead(1, 2)
    found = executor.step(StepRequest([continuing(result, 0, 1), continuing(result, 1, 2)], passes=3))
    assert len(engine.steps) == 5, "two passes of three"
    assert found.chosen.tolist() == greedy_answer(5)[2:] * 2
    assert found.pass_rows.tolist() == [2, 2, 2]
    assert found.lengths.tolist() == [6, 6]


def test_what_ran_ahead_is_used_by_row() -> None:
    """One sequence ends, one goes on, and one comes: only the new one has a first pass."""
    executor, engine, result = ran_ahead(1, 2)
    rows = [continuing(result, 1, 2), StepRow(3, 0, [3, 4], 20)]
    found = executor.step(StepRequest(rows, opened(3), closes=[1]))
    assert [len(row.tokens) for row in engine.steps[-1]] == [2]
    assert found.chosen.tolist() == [greedy_answer(3)[-1], greedy_answer(1)[-1]]
    assert not executor.can_run_ahead, "a call of one pass is no sign that another will follow"
    executor.step(StepRequest(closes=[2, 3]))
    assert executor.kv_cache.free_blocks == executor.kv_cache.num_blocks


@pytest.mark.parametrize(("keep", "tokens", "choices"), [(3, [9], 18), (2, [9], 18), (2, [9, 9], 18), (3, None, 1)])
def test_what_ran_ahead_is_rolled_back_where_something_else_is_asked_for(
    keep: int, tokens: list[int] | None, choices: int
) -> None:
    executor, engine, result = ran_ahead(1)
    tokens = tokens or [int(result.chosen[1])]
    found = executor.step(StepRequest([StepRow(1, keep, tokens, choices)]))
    history = [3, 4, *greedy_answer(1)][:keep]
    assert found.chosen.tolist() == [best_token([*history, *tokens])]
    assert len(engine.steps) == 4
    assert found.lengths.tolist() == [keep + len(tokens)]


def test_control_taking_whatever_ran_ahead_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_ahead.Ahead, "is_asked_for", lambda self, row: True)
    with pytest.raises(AssertionError):
        test_what_ran_ahead_is_rolled_back_where_something_else_is_asked_for(3, [9], 18)


def test_a_sequence_opened_anew_does_not_go_on_with_what_ran_ahead() -> None:
    executor, _, _ = ran_ahead(1)
    found = executor.step(StepRequest([StepRow(1, 0, [7], 1)], opened(1)))
    assert found.chosen.tolist() == [best_token([7])]


def test_penalties_follow_a_rollback() -> None:
    """Tokens that were rolled back must not count for penalties."""
    sampling = SamplingParams(frequency_penalty=50.0)
    fresh, rolled = Executor(TableEngine(), epoch=1), Executor(TableEngine(), epoch=1)
    prompt, liked = [1, 2], best_token([1, 2])
    for executor in (fresh, rolled):
        executor.step(StepRequest([StepRow(1, 0, prompt, 1)], [OpenSequence(1, 2, sampling)]))
    rolled.step(StepRequest([StepRow(1, 2, [liked, liked], 1)]))
    expected = fresh.step(StepRequest([StepRow(1, 2, [9], 1)]))
    assert rolled.step(StepRequest([StepRow(1, 2, [9], 1)])).chosen.tolist() == expected.chosen.tolist()


def test_closing_frees_every_block() -> None:
    engine = TableEngine(num_blocks=4)
    executor = Executor(engine, epoch=1)
    executor.step(StepRequest([StepRow(1, 0, list(range(16)), 0)], opened(1)))
    result = executor.step(StepRequest([StepRow(2, 0, list(range(16)), 1)], opened(2), closes=[1]))
    assert result.status.tolist() == [RowStatus.OK]
    assert executor.step(StepRequest(closes=[2, 99])).free_blocks == 4


def test_a_row_without_memory_does_not_run_and_others_do() -> None:
    executor = Executor(TableEngine(num_blocks=3), epoch=1)
    rows = [StepRow(1, 0, list(range(8)), 1), StepRow(2, 0, list(range(8)), 1), StepRow(3, 0, [1], 1)]
    result = executor.step(StepRequest(rows, opened(1, 2, 3)))
    assert result.status.tolist() == [RowStatus.OK, RowStatus.OUT_OF_BLOCKS, RowStatus.OK]
    assert result.chosen.tolist() == [best_token(list(range(8))), best_token([1])]
    assert result.lengths.tolist() == [8, 0, 1]


def test_a_new_process_knows_no_sequence() -> None:
    result = Executor(TableEngine(), epoch=2).step(StepRequest([StepRow(1, 0, [1], 1)]))
    assert result.status.tolist() == [RowStatus.UNKNOWN_SEQUENCE]
    assert len(result.chosen) == 0


def test_opening_again_starts_empty() -> None:
    executor = Executor(TableEngine(), epoch=1)
    executor.step(StepRequest([StepRow(1, 0, [1, 2, 3], 1)], opened(1)))
    with pytest.raises(ValueError, match="keep 3 of 0"):
        executor.step(StepRequest([StepRow(1, 3, [4], 1)], opened(1)))
    assert executor.step(StepRequest()).free_blocks == executor.kv_cache.num_blocks


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([StepRow(1, 0, [32], 1)], "token ids must be in 0 .. 31"),
        ([StepRow(1, 0, [-1], 1)], "token ids must be in 0 .. 31"),
        ([StepRow(1, 1, [1], 1)], "keep 1 of 0 cached tokens"),
        ([StepRow(1, 0, [1], 1), StepRow(1, 0, [1], 1)], "one row in a step"),
    ],
)
def test_impossible_rows_are_refused(rows: list[StepRow], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Executor(TableEngine(), epoch=1).step(StepRequest(rows, opened(1)))


def test_requests_survive_the_wire() -> None:
    sampling = SamplingParams(0.7, 5, 0.9, 0.1, 2**64 - 1, 1.1, 0.2, 0.3, 4, (1, 2), ((3, 4), (5,)), True)
    opens = [OpenSequence(1, 7, sampling, "auto", 3, "tenant", Retention(70, True))]
    request = StepRequest([StepRow(2**40, 3, [1, 2, 3], 2), StepRow(1, 0, [9], 0, 4)], opens, [5], 7, [3], True)
    assert StepRequest.from_arrays(request.to_arrays()) == request
    assert StepRequest.from_arrays(StepRequest().to_arrays()) == StepRequest([], [], [])


def test_results_survive_the_wire() -> None:
    executor = Executor(TableEngine(), epoch=2**60)
    result = executor.step(StepRequest([StepRow(1, 0, [1, 2], 2), StepRow(9, 0, [1], 1)], opened(1)))
    again = StepResult.from_arrays(result.to_arrays())
    assert (again.epoch, again.free_blocks, again.total_blocks, again.block_size) == (2**60, 63, 64, 4)
    rows = ("status", "lengths", "cached", "counts", "drafted")
    for name in (*rows, "chosen", "origins", "log_probs", "pass_rows", "positions", "cache", "tiers"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.array([1], np.int32)}, "tokens holds 1 ids, rows announce 2"),
        ({"rows": np.array([[0, 2, -1, 0]], np.int32)}, ": no valid row"),
        ({"rows": np.array([[1, 2, 1, 2]], np.int32)}, ": no valid row"),
        ({"rows": np.array([[0, 2, 1]], np.int32)}, "must be"),
        ({"sequences": np.array([1, 2], np.int64)}, "must be"),
    ],
)
def test_contradictory_arrays_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    arrays = StepRequest([StepRow(1, 0, [1, 2], 1)]).to_arrays() | change
    with pytest.raises(ValueError, match=message):
        StepRequest.from_arrays(arrays)
