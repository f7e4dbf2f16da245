"""Speculation changes no token, whatever is drafted; and drafts are spent only where they pay."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from coordination import END, VOCAB, LocalTarget, expected_tokens, make_sequence
from guessing import GuessingDrafter, adversaries, eager, linear
from hypothesis import given, settings
from hypothesis import strategies as st
from table_engine import TableEngine, table_logits

from tandem import executor as executor_module
from tandem import speculation as speculation_module
from tandem.decoding import DecodingLoop
from tandem.executor import Executor
from tandem.kv_cache import Retention
from tandem.metrics import Metrics
from tandem.sampling import Choice, SamplingParams
from tandem.scheduler import Scheduler
from tandem.sequence import Sequence as Decoded
from tandem.shared_texts import SharedTexts
from tandem.speculation import Drafts, DraftState, GoesOn, Proposal, Speculation, _model_kind, agreement
from tandem.step import OpenSequence, Origin, StepRequest, StepRow
from tandem.step_cost import WIDTHS, StepCost

ADVERSARIES = adversaries(VOCAB, END)


def run(
    work: Sequence[tuple[Decoded, object]], target: LocalTarget, max_passes: int = 3, limit: int = 3000
) -> DecodingLoop:
    """Decode sequences to their ends."""
    loop = DecodingLoop(target, Scheduler(4, 8, 3, max_passes), Metrics(), 100)
    for sequence, _ in work:
        loop._scheduler.add(sequence)
    for _ in range(limit):
        if all(sink.ended.is_set() for _, sink in work):  # type: ignore[attr-defined]
            loop.cycle()
            return loop
        loop.cycle()
    raise AssertionError("the sequences do not end")


# ------------------------------------------------------------------ exactness


class Decisions:
    """Stands for the target's noise: its choice at (position, context) is one decision, enumerated over all runs.

    Whatever row asks for the same context at the same position gets the same answer, as with shared noise.
    """

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._taken: list[int] = []
        self._at: dict[tuple[int, ...], int] = {}
        self._cursor = 0
        self.weight = 1.0

    def start(self) -> None:
        self._at, self._cursor, self.weight = {}, 0, 1.0

    def next(self) -> bool:
        """Go to the next combination of decisions; False after the last."""
        while self._taken and self._taken[-1] == self._vocab - 1:
            self._taken.pop()
        if not self._taken:
            return False
        self._taken[-1] += 1
        return True

    def of(self, context: tuple[int, ...]) -> int:
        if context not in self._at:
            if self._cursor == len(self._taken):
                self._taken.append(0)
            token = self._taken[self._cursor]
            self._cursor += 1
            self._at[context] = token
            self.weight *= probability(context, token, self._vocab)
        return self._at[context]

    def choose(self, logits: np.ndarray, choices: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray]:
        """Stands in for `tandem.sampling.choose`; checks that every row of logits belongs to its context."""
        tokens = []
        for row, (state, position) in zip(logits, choices, strict=True):
            context = tuple(state.history[:position].tolist())
            np.testing.assert_array_equal(row, table_logits(context, self._vocab))
            tokens.append(self.of(context))
        return np.array(tokens, np.int32), np.zeros(len(tokens), np.float32)


def probability(context: Sequence[int], token: int, vocab: int) -> float:
    logits = table_logits(context, vocab).astype(float)
    return float(np.exp(logits[token] - logits.max()) / np.exp(logits - logits.max()).sum())


def law(guess: Callable[[list[int], DraftState, Decisions], int], tokens: int, vocab: int = 4) -> dict[tuple, float]:
    """The exact joint law of the first `tokens` tokens after the prompt (1,), over all decisions of the target."""
    decisions, result = Decisions(vocab), dict[tuple, float]()
    drafter = GuessingDrafter(lambda history, state: guess(history, state, decisions))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor_module, "choose", decisions.choose)
        while True:
            decisions.start()
            executor = Executor(TableEngine(vocab, num_blocks=8), 1, eager(drafter))
            opened = OpenSequence(1, 1, SamplingParams(), "draft", 2)
            answer = executor.step(StepRequest([StepRow(1, 0, [1], tokens)], [opened], passes=tokens)).chosen.tolist()
            assert len(answer) == tokens
            result[tuple(answer)] = result.get(tuple(answer), 0.0) + decisions.weight
            if not decisions.next():
                assert drafter.proposed > 0
                return result


DRAFTED_LAWS: dict[str, Callable[[list[int], DraftState, Decisions], int]] = {
    "always 3": lambda history, state, decisions: 3,
    "from the context": lambda history, state, decisions: sum(history) % 4,
    "target's own decision": lambda history, state, decisions: decisions.of(tuple(history)),
    "never the decision": lambda history, state, decisions: (decisions.of(tuple(history)) + 1) % 4,
}


def target_law(tokens: int, vocab: int = 4) -> dict[tuple, float]:
    result = {}
    for answer in itertools.product(range(vocab), repeat=tokens):
        result[answer] = float(
            np.prod([probability((1, *answer[:place]), token, vocab) for place, token in enumerate(answer)])
        )
    return result


@pytest.mark.parametrize("name", DRAFTED_LAWS)
def test_the_joint_law_is_exactly_the_targets(name: str) -> None:
    """Exact enumeration over a vocabulary of four tokens, two drafts and the bonus token."""
    found, wanted = law(DRAFTED_LAWS[name], 3), target_law(3)
    assert found.keys() == wanted.keys()
    assert max(abs(found[answer] - wanted[answer]) for answer in wanted) < 1e-12


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_no_drafter_changes_a_token(name: str, temperature: float) -> None:
    drafter = GuessingDrafter(ADVERSARIES[name])
    target = LocalTarget(speculation=lambda: eager(drafter))
    work = []
    for number in range(1, 6):
        sampling = SamplingParams(temperature=temperature, seed=number, end_ids=(END,))
        sequence, sink = make_sequence(number, [number, 4, number], 24, sampling)
        sequence.drafter = "draft"
        work.append((sequence, sink))
    loop = run(work, target)
    for sequence, sink in work:
        assert sink.emitted.token_ids == expected_tokens(sequence)
    accepted, verified = sum(loop._metrics.accepted), sum(loop._metrics.verified)
    assert drafter.proposed > 0
    assert sorted(drafter.closed) == [1, 2, 3, 4, 5]
    if name == "oracle":
        assert accepted == verified > 20
    elif name in ("anti-oracle", "outside"):
        assert accepted == 0
    elif name == "half right":
        assert 0 < accepted < verified
    assert sum(sequence.accepted_drafts for sequence, _ in work) <= accepted
    assert target.executor.kv_cache.free_blocks == target.executor.kv_cache.num_blocks


def test_the_oracle_saves_passes() -> None:
    passes = {}
    for name in ("oracle", "anti-oracle"):
        target = LocalTarget(speculation=lambda name=name: eager(GuessingDrafter(ADVERSARIES[name])))
        sequence, sink = make_sequence(1, [1, 2], 24, SamplingParams())
        sequence.drafter = "draft"
        run([(sequence, sink)], target)
        passes[name] = len(target.engine.steps)
    assert passes["oracle"] < passes["anti-oracle"] / 3


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[list[int], int, dict, str, int]]:
    """(prompt, max_tokens, sampling, drafter, max_drafts) of some requests; small alphabets make suffixes match."""
    tokens = st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=20)
    sampling = st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.9]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "frequency_penalty": st.sampled_from([0.0, 0.5]),
            "min_length": st.sampled_from([0, 6]),
            "bad_words": st.sampled_from([(), ((3, 4), (5,))]),
            "log_probs": st.booleans(),
        }
    )
    drafter = st.sampled_from(["auto", "suffix", "draft", "none"])
    request = st.tuples(tokens, st.integers(1, 30), sampling, drafter, st.integers(0, 16))
    return draw(st.lists(request, min_size=1, max_size=6))


def decode(
    workload: list[tuple[list[int], int, dict, str, int]],
    num_blocks: int,
    failures: frozenset[int],
    speculation: Callable[[], Speculation | None],
) -> list[tuple[list[int], list[float], str, str | None]]:
    target = LocalTarget(num_blocks, failures, speculation=speculation)
    work = []
    for number, (prompt, max_tokens, sampling, drafter, max_drafts) in enumerate(workload, 1):
        params = SamplingParams(**sampling, seed=number, end_ids=(END,))
        sequence, sink = make_sequence(number, prompt, max_tokens, params, stop_words=("DB", "CA"))
        sequence.drafter, sequence.max_drafts = drafter, max_drafts
        work.append((sequence, sink))
    run(work, target)
    assert target.executor.kv_cache.free_blocks == num_blocks, "blocks leaked"
    emitted = [sink.emitted for _, sink in work]
    return [(e.token_ids, e.log_probs, e.text, e.finish_reason) for e in emitted]


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(),
    num_blocks=st.integers(13, 40),
    failure=st.integers(1, 30),
    name=st.sampled_from(sorted(ADVERSARIES)),
)
def test_everything_of_a_request_works_with_speculation(
    workload: list[tuple[list[int], int, dict, str, int]], num_blocks: int, failure: int, name: str
) -> None:
    """Penalties, masks, stop words in a draft, log-probabilities; with preemption, neighbours and a killed target."""
    plain = decode(workload, 64, frozenset(), lambda: None)
    drafted = decode(workload, num_blocks, frozenset({failure}), lambda: eager(GuessingDrafter(ADVERSARIES[name])))
    assert drafted == plain


def test_origins_tell_accepted_drafts_from_the_targets_own_tokens() -> None:
    target = LocalTarget(speculation=lambda: eager(GuessingDrafter(ADVERSARIES["oracle"])))
    sequence, sink = make_sequence(1, [1, 2], 12, SamplingParams())
    sequence.drafter, sequence.max_drafts = "draft", 2
    run([(sequence, sink)], target)
    origins = sink.emitted.origins
    assert origins[:4] == [Origin.TARGET, Origin.DRAFT, Origin.DRAFT, Origin.TARGET]
    assert sequence.accepted_drafts == sum(origin == Origin.DRAFT for origin in origins) == sequence.drafted


def test_drafts_give_way_where_blocks_are_short() -> None:
    """A draft never takes the block that a sequence needs for its own token."""
    target = LocalTarget(num_blocks=3, speculation=lambda: eager(GuessingDrafter(ADVERSARIES["oracle"])))
    sequence, sink = make_sequence(1, [1, 2, 3], 5, SamplingParams())
    sequence.drafter = "draft"
    run([(sequence, sink)], target)
    assert sink.emitted.token_ids == expected_tokens(sequence)


# ------------------------------------------------------------------ control


def state_of(drafter: str = "auto", history: Sequence[int] = (), max_drafts: int = 16) -> DraftState:
    opened = OpenSequence(1, 1, SamplingParams(), drafter, max_drafts)
    state = DraftState(opened, executor_module.SamplingState(opened.sampling, 1))
    state.sampling.append(list(history))
    return state


REPEATING = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5]


def drafted(speculation: Speculation, states: Sequence[DraftState], width: int | None = None) -> list[Proposal]:
    proposals = [Proposal(state, state.opened.max_drafts) for state in states]
    speculation.propose(proposals, width or len(states))
    return proposals


class Coin:
    """A model whose drafts are right now and then; it heeds `goes_on`, as the recurrent head does."""

    wants_features = False
    is_remote = False

    def propose(
        self, states: Sequence[DraftState], counts: Sequence[int], goes_on: GoesOn | None = None
    ) -> list[Drafts]:
        drafts = []
        for state, count in zip(states, counts, strict=True):
            sure = [0.35]
            while len(sure) < count and (goes_on is None or goes_on(state, sure)):
                sure.append(0.35)
            drafts.append(Drafts([7] * len(sure), sure))
        return drafts

    def close(self, state: DraftState) -> None: ...


def passes(profiled: Sequence[float], real: Sequence[float], explore_every: int, count: int = 3000) -> list[int]:
    """Drafts of each pass of one sequence, where steps of 2, 4, 6 tokens take `real` and were profiled otherwise."""
    rng, widths = random.Random(1), [2, 4, 6]
    speculation = Speculation(StepCost(widths, profiled, ready=6), Coin())
    speculation._model_share = 0.08
    state, found = state_of("draft", [1, 2], max_drafts=5), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation_module, "EXPLORE_EVERY", explore_every)
        for _ in range(count):
            (proposal,) = drafted(speculation, [state])
            drafts = len(proposal.tokens)
            accepted = next((place for place in range(drafts) if rng.random() > 0.39), drafts)
            speculation.observe(proposal, accepted)
            speculation._model_share = 0.08  # not what this test takes
            wide = next(index for index, width in enumerate(widths) if width > drafts)
            speculation.cost.observe(1 + drafts, real[wide] * rng.uniform(0.95, 1.1))
            found.append(drafts)
    return found


def test_a_width_that_was_profiled_as_too_dear_is_found_out() -> None:
    """A noisy machine at load: two tokens seemed to cost as much as four. One draft is best, and three are used."""
    found = passes([1.31, 1.31, 1.9], [1.0, 1.31, 1.9], explore_every=50)
    assert found[:20].count(1) == 0
    assert found[-500:].count(1) > 450
    trapped = passes([1.31, 1.31, 1.9], [1.0, 1.31, 1.9], explore_every=10**6)
    assert trapped[-500:].count(1) < 50, "the control: nothing corrects it"


def test_detours_cost_little_where_the_profile_is_right() -> None:
    found = passes([1.0, 1.31, 1.9], [1.0, 1.31, 1.9], explore_every=50)
    assert found.count(1) > 0.95 * len(found)


def test_without_a_match_nothing_is_proposed() -> None:
    assert drafted(eager(), [state_of(history=[1, 2, 3, 4])])[0].tokens == []


def test_a_match_is_continued() -> None:
    (proposal,) = drafted(eager(), [state_of(history=REPEATING)])
    assert proposal.tokens[:4] == [6, 7, 8, 9]
    assert proposal.origin is Origin.SUFFIX


def test_a_drafter_that_was_not_asked_for_stays_silent() -> None:
    model = GuessingDrafter(ADVERSARIES["oracle"])
    assert drafted(eager(model), [state_of("none", REPEATING)])[0].tokens == []
    assert drafted(eager(model), [state_of("suffix", REPEATING)])[0].origin is Origin.SUFFIX
    assert model.proposed == 0
    assert drafted(eager(model), [state_of("draft", REPEATING)])[0].origin is Origin.DRAFT
    assert drafted(eager(), [state_of("draft", REPEATING)])[0].tokens == []


def test_k_is_zero_where_a_wider_step_does_not_pay() -> None:
    """Each token of a step costs as much as a step: what a large batch comes to."""
    proportional = StepCost(WIDTHS, [float(width) for width in WIDTHS])
    assert drafted(Speculation(proportional), [state_of(history=REPEATING)], width=32)[0].tokens == []


def test_k_is_what_is_allowed_where_drafts_are_always_verified() -> None:
    proportional = StepCost(WIDTHS, [float(width) for width in WIDTHS])
    model = GuessingDrafter(ADVERSARIES["anti-oracle"])
    for drafter, rates in (("suffix", None), ("draft", model)):
        speculation = Speculation(proportional, rates, control="always")
        states = [state_of(drafter, [1, 2, 3, 4, 5, 6] * 2, max_drafts=5) for _ in range(3)]
        for _ in range(30):
            proposals = drafted(speculation, states, width=32)
            assert [len(proposal.tokens) for proposal in proposals] == [5, 5, 5]
            speculation.observe(proposals[0], 0)


def test_k_grows_with_acceptance_and_shrinks_with_cost() -> None:
    def k(accepted: int, slope: float) -> int:
        speculation = Speculation(linear(slope))
        state = state_of(history=REPEATING)
        for _ in range(30):
            (proposal,) = drafted(speculation, [state])
            proposal.tokens, proposal.origin, proposal.kinds = [0] * 10, Origin.SUFFIX, [2] * 10
            speculation.observe(proposal, accepted)
        return len(drafted(speculation, [state])[0].tokens)

    assert k(10, 0.05) > k(3, 0.05) > k(0, 0.05)
    assert k(3, 0.02) > k(3, 0.2)
    assert k(0, 0.1) <= 1, "the second token of a step is free"


def test_a_drafter_that_was_given_up_is_tried_again() -> None:
    speculation = Speculation(linear(0.05))
    state = state_of(history=REPEATING)
    for _ in range(40):
        (proposal,) = drafted(speculation, [state])
        speculation.observe(proposal, 0)
    silent = [not drafted(speculation, [state])[0].tokens for _ in range(1500)]
    assert 10 < silent.index(False) < 500, "neither at once nor never"


def test_leaving_a_width_must_pay() -> None:
    """A few drafts do not pay for the change of the width, except where it is that of the step before."""
    speculation = Speculation(linear(0.03, change=2.0))
    state = state_of(history=REPEATING, max_drafts=2)
    speculation.cost.observe(1, 1.0)
    assert len(drafted(speculation, [state])[0].tokens) <= 1
    for _ in range(50):
        speculation.cost.observe(4, 1.06)
    assert len(drafted(speculation, [state])[0].tokens) == 2


@pytest.mark.parametrize("skipped", [False, True])
def test_the_answer_to_a_request_that_skips_the_cache_is_not_drafted_from(skipped: bool) -> None:
    """Its control is the answer to one that does not."""
    speculation = Speculation(linear(0.03), shared=SharedTexts(100))
    answered = state_of(history=[0, *range(1, 12)])
    answered.opened = dataclasses.replace(answered.opened, retention=Retention(skipped=skipped))
    speculation.close(answered)
    (proposal,) = drafted(speculation, [state_of(history=[0, 5, 6, 7, 8])])
    assert proposal.tokens[:1] == ([] if skipped else [9])


def test_now_and_then_a_pass_has_no_drafts_though_a_few_pay() -> None:
    """So that the cost of a plain step stays known; and the control goes on behind it."""
    speculation = Speculation(linear(0.03))
    state = state_of(history=REPEATING, max_drafts=1)
    counts = [len(drafted(speculation, [state])[0].tokens) for _ in range(4 * speculation_module.EXPLORE_EVERY)]
    assert counts.count(0) == 2
    assert set(counts) == {0, 1}


def test_what_reads_a_prompt_tells_nothing_of_a_decoding_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what a prompt takes for the cost of a narrow step, drafts looked cheap (4 streams lost 4 %)."""
    seen: list[int] = []
    monkeypatch.setattr(StepCost, "observe", lambda self, width, seconds: seen.append(width))
    executor = Executor(TableEngine(), 1, Speculation(linear(0.1)))
    opens = [OpenSequence(number, 6, SamplingParams(), "none") for number in (1, 2)]
    first = executor.step(StepRequest([StepRow(1, 0, [1, 2, 3, 4, 5, 6], 1)], opens[:1]))
    assert seen == []
    beside = executor.step(
        StepRequest([StepRow(1, 6, first.chosen.tolist(), 1), StepRow(2, 0, [7, 8, 9, 1, 2, 3], 1)], opens[1:])
    )
    assert seen == []
    executor.step(
        StepRequest([StepRow(1, 7, beside.chosen[:1].tolist(), 1), StepRow(2, 6, beside.chosen[1:].tolist(), 1)])
    )
    assert seen == [2]


def test_drafts_fill_the_width_they_pay_for() -> None:
    state = state_of(history=REPEATING)
    for slope in (0.01, 0.03, 0.05, 0.1):
        tokens = drafted(Speculation(linear(slope)), [state])[0].tokens
        assert 1 + len(tokens) in (1, *WIDTHS, 17)


def test_drafts_go_to_the_sequences_that_accept_them() -> None:
    speculation = Speculation(linear(0.05))
    good, bad = state_of(history=REPEATING), state_of(history=REPEATING)
    for _ in range(20):
        for state, accepted in ((good, 8), (bad, 0)):
            proposal = Proposal(state, 16, [0] * 8, Origin.SUFFIX, [2] * 8)
            speculation.observe(proposal, accepted)
    first, second = drafted(speculation, [good, bad])
    assert len(first.tokens) > len(second.tokens)


def test_the_cost_of_the_drafter_itself_counts() -> None:
    speculation = Speculation(linear(0.002), GuessingDrafter(ADVERSARIES["oracle"]))
    speculation._model_share = 0.05
    cheap = len(drafted(speculation, [state_of("draft", [1, 2])])[0].tokens)
    speculation._model_share = 2.0
    assert cheap > len(drafted(speculation, [state_of("draft", [1, 2])])[0].tokens) == 0


def test_of_a_models_drafts_only_the_sure_ones_are_verified() -> None:
    class Wavering(GuessingDrafter):
        def propose(
            self, states: Sequence[DraftState], counts: Sequence[int], goes_on: GoesOn | None = None
        ) -> list[Drafts]:
            return [Drafts([7] * count, [0.99, 0.99, *[0.05] * count][:count]) for count in counts]

    model = Wavering(ADVERSARIES["oracle"])
    speculation = Speculation(linear(0.1), model)
    speculation._model_share = 0.001
    (proposal,) = drafted(speculation, [state_of("draft", [1, 2])])
    assert len(proposal.tokens) == len(proposal.kinds) == 3, "the third fills up a width"


def test_a_model_drafts_on_only_behind_runs_that_are_worth_it() -> None:
    speculation = Speculation(linear(0.05))
    speculation._model_share = 0.05
    state = state_of("draft", [1, 2])
    alone, batch = speculation._goes_on(1), speculation._goes_on(16)
    assert alone(state, [0.9])
    assert not alone(state, [0.05, 0.05])
    assert not batch(state, [0.05]), "in a batch a further draft costs more than it may bring"
    speculation._model_share = 2.0
    assert not speculation._goes_on(1)(state, [0.99]), "a slow model stops sooner"


def test_greedy_and_sampled_drafts_have_rates_of_their_own() -> None:
    speculation = Speculation(linear(0.05))
    greedy, sampled = state_of("draft", [1, 2]), state_of("draft", [1, 2])
    sampled.sampling = executor_module.SamplingState(SamplingParams(temperature=0.8), 1)
    kinds = [_model_kind(state, 0.95) for state in (greedy, sampled)]
    before = speculation.model_rates.mean(kinds[0]), speculation.model_means.mean(0)
    for _ in range(50):
        speculation.observe(Proposal(sampled, 4, [7], Origin.DRAFT, kinds[1:]), 0)
    assert speculation.model_rates.mean(kinds[1]) < 0.2 < before[0]
    assert (speculation.model_rates.mean(kinds[0]), speculation.model_means.mean(0)) == before


@pytest.mark.parametrize("is_remote", [False, True])
def test_nothing_runs_ahead_where_drafting_calls_another_model(is_remote: bool) -> None:
    """A call that nobody waits for may be under way when the server is stopped, which Triton 2.51 does not survive."""
    drafter = GuessingDrafter(ADVERSARIES["oracle"])
    drafter.is_remote = is_remote
    executor = Executor(TableEngine(VOCAB), 1, eager(drafter))
    opened = OpenSequence(1, 2, SamplingParams(), "none")
    executor.step(StepRequest([StepRow(1, 0, [3, 4], 20)], [opened], passes=2))
    assert executor.can_run_ahead != is_remote


def test_how_sure_a_model_must_be_is_learned() -> None:
    """A model that is always sure and always wrong is soon not verified any more."""
    model = GuessingDrafter(ADVERSARIES["anti-oracle"])
    speculation = Speculation(linear(0.05), model)
    speculation._model_share = 0.001
    state = state_of("draft", [1, 2])
    lengths = []
    for _ in range(60):
        (proposal,) = drafted(speculation, [state])
        lengths.append(len(proposal.tokens))
        speculation.observe(proposal, 0)
    assert lengths[0] > 1
    assert sum(lengths[-10:]) <= 2


@pytest.mark.parametrize(
    ("drafts", "chosen", "accepted"),
    [([], [], 0), ([1], [1], 1), ([1], [2], 0), ([1, 2, 3], [1, 2, 4], 2), ([1, 2, 3], [0, 2, 3], 0)],
)
def test_agreement_is_the_longest_common_beginning(drafts: list[int], chosen: list[int], accepted: int) -> None:
    assert agreement(drafts, chosen) == accepted
