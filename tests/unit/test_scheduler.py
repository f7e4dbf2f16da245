"""Who runs next, with how many tokens, and who gives way when memory runs out."""

import pytest
from coordination import make_sequence

from tandem.scheduler import Capacity, Plan, Scheduler
from tandem.sequence import Sequence
from tandem.step import StepRow

PLENTY = Capacity(free_blocks=1000, total_blocks=1000, block_size=4)


def scheduler_with(*sequences: Sequence, max_running: int = 8, step: int = 16, mixed: int = 4) -> Scheduler:
    scheduler = Scheduler(max_running, step, mixed)
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler


def sequence_of(identity: int, length: int, **kwargs: int) -> Sequence:
    return make_sequence(identity, [1] * length, **kwargs)[0]


def computed(row: StepRow) -> int:
    """Tokens that the executor computes if it has none of them in its prefix cache."""
    return row.limit or len(row.tokens)


def chooses(row: StepRow) -> bool:
    return row.choices > 0 and computed(row) == len(row.tokens)


def carry_out(plan: Plan) -> None:
    """What the decoding loop does after a step in which every row ran."""
    for sequence, row in zip(plan.batch, plan.request.rows, strict=True):
        sequence.cached = row.keep + computed(row)
        if chooses(row):
            sequence.tokens.append(2)


def shapes(plan: Plan) -> list[tuple[int, int, int]]:
    """Sequence, tokens, and whether it is to choose, of every row."""
    return [(row.sequence, computed(row), int(chooses(row))) for row in plan.request.rows]


def test_a_long_prompt_comes_in_chunks_and_chooses_only_at_its_end() -> None:
    scheduler = scheduler_with(sequence_of(1, 40))
    seen = []
    for _ in range(4):
        plan = scheduler.plan(PLENTY)
        seen += shapes(plan)
        carry_out(plan)
    assert seen == [(1, 16, 0), (1, 16, 0), (1, 8, 1), (1, 1, 1)]


@pytest.mark.parametrize("length", range(1, 40))
def test_no_chunk_of_a_longer_prompt_has_a_single_token(length: int) -> None:
    """Kernels for one row per sequence round differently: chunks of one token would make the chunking visible."""
    scheduler = scheduler_with(sequence_of(1, length), step=5)
    chunks = []
    while not chunks or sum(chunks) < length:
        plan = scheduler.plan(PLENTY)
        chunks.append(computed(plan.request.rows[0]))
        carry_out(plan)
    assert sum(chunks) == length
    assert length == 1 or 1 not in chunks


def test_prompt_tokens_beside_running_streams_are_bounded() -> None:
    scheduler = scheduler_with(sequence_of(1, 2))
    carry_out(scheduler.plan(PLENTY))
    scheduler.add(sequence_of(2, 10))
    scheduler.add(sequence_of(3, 10))
    seen = []
    for _ in range(4):
        plan = scheduler.plan(PLENTY)
        seen.append(shapes(plan))
        carry_out(plan)
    assert seen == [
        [(1, 1, 1), (2, 4, 0)],
        [(1, 1, 1), (2, 4, 0)],
        [(1, 1, 1), (2, 2, 1), (3, 2, 0)],
        [(1, 1, 1), (2, 1, 1), (3, 4, 0)],
    ]


def test_a_new_sequence_joins_at_the_next_step() -> None:
    scheduler = scheduler_with(sequence_of(1, 2))
    carry_out(scheduler.plan(PLENTY))
    scheduler.add(sequence_of(2, 3))
    assert shapes(scheduler.plan(PLENTY)) == [(1, 1, 1), (2, 3, 1)]


def test_max_running_bounds_the_batch() -> None:
    scheduler = scheduler_with(*(sequence_of(i, 1) for i in range(1, 6)), max_running=3)
    assert len(scheduler.plan(PLENTY).batch) == 3
    assert len(scheduler.waiting) == 2


def test_higher_priority_is_admitted_first_then_earlier_arrival() -> None:
    sequences = [sequence_of(1, 2), sequence_of(2, 2), sequence_of(3, 2, priority=5)]
    scheduler = scheduler_with(*sequences, max_running=2)
    assert {s.id for s in scheduler.plan(PLENTY).batch} == {3, 1}


def test_the_youngest_gives_way_and_returns_with_all_its_tokens() -> None:
    old, young = sequence_of(1, 7), sequence_of(2, 6)
    scheduler = scheduler_with(old, young)
    carry_out(scheduler.plan(Capacity(8, 8, 4)))
    carry_out(scheduler.plan(Capacity(1, 4, 4)))  # old takes the ninth position's block; young still fits its second
    assert len(old.tokens) == 9
    plan = scheduler.plan(Capacity(0, 4, 4))
    if not plan.preempted:  # both fit one more step
        carry_out(plan)
        plan = scheduler.plan(Capacity(0, 4, 4))
    assert plan.preempted == [young]
    assert plan.request.closes == [2]
    assert [s.id for s in plan.batch] == [1]
    carry_out(plan)
    scheduler.remove(old)
    again = scheduler.plan(Capacity(4, 4, 4))
    assert shapes(again) == [(2, 6, 0)]
    assert [opened.sequence for opened in again.request.opens] == [2]
    assert again.request.opens[0].prompt_length == 6


def test_an_answer_is_fed_again_in_chunks_of_its_own() -> None:
    sequence, other = sequence_of(1, 6, max_tokens=30), sequence_of(2, 2)
    sequence.tokens += [2] * 11
    scheduler = scheduler_with(other, step=16, mixed=4)
    carry_out(scheduler.plan(PLENTY))
    scheduler.add(sequence)
    seen = []
    for _ in range(6):
        plan = scheduler.plan(PLENTY)
        seen += [shape[1:] for shape in shapes(plan) if shape[0] == 1]
        carry_out(plan)
    assert seen == [(4, 0), (2, 0), (4, 0), (4, 0), (3, 1), (1, 1)]
    assert {row.sequence: row.choices for row in plan.request.rows}[1] == 30 - 12


def test_a_row_may_choose_what_is_left_of_its_answer() -> None:
    scheduler = scheduler_with(sequence_of(1, 3, max_tokens=9))
    for left in (9, 8, 7):
        plan = scheduler.plan(PLENTY)
        assert plan.request.rows[0].choices == left
        carry_out(plan)


def test_blocks_of_ended_sequences_count_as_free() -> None:
    first, second = sequence_of(1, 8), sequence_of(2, 8)
    scheduler = scheduler_with(first, second)
    carry_out(scheduler.plan(Capacity(10, 10, 4)))
    scheduler.remove(second)
    plan = scheduler.plan(Capacity(0, 10, 4))
    assert not plan.preempted
    assert plan.request.closes == [2]
    assert [s.id for s in plan.batch] == [1]


def test_a_prompt_waits_until_all_of_it_fits() -> None:
    scheduler = scheduler_with(sequence_of(1, 2))
    carry_out(scheduler.plan(PLENTY))
    scheduler.add(sequence_of(2, 30))
    assert shapes(scheduler.plan(Capacity(8, 10, 4))) == [(1, 1, 1)]
    assert shapes(scheduler.plan(Capacity(9, 10, 4))) == [(1, 1, 1), (2, 4, 0)]


def test_drop_returns_what_it_removed_and_frees_it() -> None:
    running, waiting = sequence_of(1, 2), sequence_of(2, 2)
    scheduler = scheduler_with(running, waiting, max_running=1)
    carry_out(scheduler.plan(PLENTY))
    assert scheduler.drop(lambda s: True) == [running, waiting]
    plan = scheduler.plan(PLENTY)
    assert plan.request.closes == [1], "only the opened one has something to free"
    assert not scheduler.has_work


def test_after_a_new_process_everything_is_opened_and_fed_again() -> None:
    scheduler = scheduler_with(sequence_of(1, 5), sequence_of(2, 3))
    carry_out(scheduler.plan(PLENTY))
    scheduler.forget_caches()
    plan = scheduler.plan(PLENTY)
    assert shapes(plan) == [(1, 5, 0), (2, 3, 0)]
    assert [opened.sequence for opened in plan.request.opens] == [1, 2]


@pytest.mark.parametrize("free", range(12))
def test_planned_rows_never_need_more_blocks_than_are_free(free: int) -> None:
    sequences = [sequence_of(i, 3 * i) for i in range(1, 5)]
    scheduler = scheduler_with(*sequences)
    plan = scheduler.plan(Capacity(free, 12, 4))
    assert sum(-(-len(row.tokens) // 4) for row in plan.request.rows) <= free
