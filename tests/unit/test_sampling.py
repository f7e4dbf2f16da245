"""The sampler against a slow reference, and the promises that speculation and batching rest on."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tandem import noise, sampling_kernels
from tandem.compilation import compiled
from tandem.sampling import NO_TOKEN, Choice, SamplingParams, SamplingState, choose, warm_up

Logits = np.ndarray[Any, np.dtype[np.float32]]


def make_state(params: SamplingParams, prompt: Sequence[int] = (), answer: Sequence[int] = ()) -> SamplingState:
    state = SamplingState(params, len(prompt))
    state.append(prompt)
    state.append(answer)
    return state


def choose_one(logits: Logits, params: SamplingParams, prompt: Sequence[int] = (), answer: Sequence[int] = ()) -> int:
    state = make_state(params, prompt, answer)
    return int(choose(logits[None], [Choice(state, len(state))])[0][0])


# --- the reference: every step over the whole vocabulary, sorted in full ---


def processed(logits: Logits, params: SamplingParams, prompt: list[int], answer: list[int]) -> Logits:
    row = logits.copy()
    history = prompt + answer
    penalty = np.float32(params.repetition_penalty)
    for token in set(history):
        row[token] = row[token] * penalty if row[token] < 0 else row[token] / penalty
    for token, count in Counter(answer).items():
        row[token] -= np.float32(params.frequency_penalty) * np.float32(count)
        row[token] -= np.float32(params.presence_penalty)
    for *before, last in params.bad_words:
        if history[len(history) - len(before) :] == before:
            row[last] = -np.inf
    if len(answer) < params.min_length:
        row[list(params.end_ids)] = -np.inf
    return row


def reference(
    logits: Logits, params: SamplingParams, prompt: list[int], answer: list[int]
) -> tuple[int, float, set[int]]:
    """The chosen token, its log-probability, and all tokens that the filters leave."""
    row = processed(logits, params, prompt, answer).astype(np.float64)
    if np.isneginf(row).all():
        return NO_TOKEN, 0.0, set()
    log_probs = row - row.max() - math.log(np.exp(row - row.max()).sum())
    order = np.lexsort([np.arange(len(row)), -row])
    if params.temperature == 0:
        return int(order[0]), log_probs[order[0]], {int(order[0])}
    z = (row - row.max()) * (1.0 / params.temperature)
    if params.top_k:
        order = order[: params.top_k]
    if params.top_p < 1:
        masses = [int(sampling_kernels.mass(z[token])) for token in order]
        before = np.cumsum([0, *masses[:-1]])
        order = order[(before < params.top_p * float(sum(masses))) | (np.arange(len(order)) == 0)]
    if params.min_p:
        order = order[z[order] >= noise.log(np.array([params.min_p]))[0]]
    kept = np.sort(order)
    scores = z[kept] + noise.gumbel(params.seed, len(prompt) + len(answer), kept)
    token = int(kept[np.argmax(scores)])
    return token, log_probs[token], set(kept.tolist())


def draw_logits(rng: np.random.Generator, vocab: int, style: str) -> Logits:
    row = rng.standard_normal(vocab) * 3
    if style == "ties":
        row = np.round(row)
    elif style == "flat":
        row = np.zeros(vocab) * -1.0
    elif style == "peaked":
        row[rng.integers(vocab)] = 25
    elif style == "masked":
        row[rng.random(vocab) < 0.7] = -np.inf
        row[rng.integers(vocab)] = 1.0
    elif style == "wide":
        row = row * 1e4
    elif style == "narrow":
        row = 7 + row * 1e-6
    return row.astype(np.float32)


STYLES = ["normal", "ties", "flat", "peaked", "masked", "wide", "narrow"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Logits, SamplingParams, list[int], list[int]]:
    vocab = draw(st.sampled_from([1, 2, 5, 63, 64, 65, 130, 700, 5000]))
    ids = st.integers(0, vocab - 1)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    prompt, answer = draw(st.lists(ids, max_size=12)), draw(st.lists(ids, max_size=12))
    bad_words = draw(st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=3))
    if answer and draw(st.booleans()):
        bad_words.append((*answer[-2:], draw(ids)))  # one that does match
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.0, 1e-30, 0.1, 0.8, 1.0, 7.0])),
        top_k=draw(st.sampled_from([0, 1, 2, 3, 10, 50, 1000])),
        top_p=draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])),
        seed=draw(st.integers(0, 2**64 - 1)),
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, -1.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.3, 0.9])),
        min_length=draw(st.integers(0, 14)),
        end_ids=tuple(draw(st.lists(ids, max_size=2))),
        bad_words=tuple(bad_words),
        log_probs=True,
    )
    return draw_logits(rng, vocab, draw(st.sampled_from(STYLES))), params, prompt, answer


@settings(max_examples=400, deadline=None)
@given(cases())
def test_equals_the_reference(case: tuple[Logits, SamplingParams, list[int], list[int]]) -> None:
    logits, params, prompt, answer = case
    before = logits.copy()
    state = make_state(params, prompt, answer)
    tokens, log_probs = choose(logits[None], [Choice(state, len(state))])
    token, log_prob, _ = reference(logits, params, prompt, answer)
    assert tokens[0] == token
    assert log_probs[0] == pytest.approx(log_prob, rel=1e-6, abs=1e-6)
    assert np.array_equal(before, logits)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 50}, {"top_k": 3000}, {"top_p": 0.9}, {"top_p": 0.9, "top_k": 50}, {"min_p": 0.05}]
)
def test_equals_the_reference_with_a_real_vocabulary(style: str, filters: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    for seed, temperature in enumerate([0.3, 0.8, 1.0, 3.0]):
        logits = draw_logits(rng, 49152, style)
        params = SamplingParams(temperature=temperature, seed=seed, **filters)
        assert choose_one(logits, params, [1, 2, 3]) == reference(logits, params, [1, 2, 3], [])[0]


def kept_by_kernels(logits: Logits, scale: float, top_k: int, top_p: float) -> set[int]:
    bits, vocab = logits.view(np.int32), len(logits)
    keys, block_masses = np.empty(-(-vocab // 64), np.int32), np.empty(-(-vocab // 64), np.int64)
    masses, histogram = np.empty(vocab, np.int64), np.empty(256, np.int64)
    candidates = (np.empty(vocab, np.int32), np.empty(vocab, np.int32), np.empty(vocab, np.int64))
    sampling_kernels._block_keys(bits, keys)
    cut = (np.int32(-(2**31) + 1), np.int32(0))
    if top_k:
        cut = sampling_kernels._cut_top_k(bits, keys, top_k, candidates, histogram)
    if top_p < 1:
        top = float(logits.max())
        total = sampling_kernels._masses(bits, keys, top, scale, cut, masses, block_masses)
        cut = sampling_kernels._cut_top_p(bits, total, top_p, masses, block_masses, candidates, histogram)
    all_keys = np.where(bits < 0, -(bits.astype(np.int64) & 0x7FFFFFFF), bits)
    return set(np.flatnonzero((all_keys > cut[0]) | ((all_keys == cut[0]) & (np.arange(vocab) <= cut[1]))).tolist())


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("vocab", [700, 49152])
def test_filters_keep_exactly_the_tokens_of_the_reference(style: str, vocab: int) -> None:
    rng = np.random.default_rng(2)
    for top_k, top_p in [(0, 0.5), (0, 0.9), (0, 0.9999), (40, 1.0), (40, 0.9), (600, 0.3), (600, 0.99)]:
        logits = draw_logits(rng, vocab, style)
        params = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p)
        assert kept_by_kernels(logits, 1 / 0.8, top_k, top_p) == reference(logits, params, [], [])[2]


# --- distribution ---


def chi_square_p_value(chosen: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any]) -> float:
    """Of counts against probabilities; tokens expected fewer than 8 times are counted together."""
    counts = np.bincount(chosen, minlength=len(probabilities))
    expected = probabilities * len(chosen)
    rare = expected < 8
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert counts[expected == 0].sum() == 0
    used = expected > 0
    return float(stats.chisquare(counts[used], expected[used]).pvalue)


def exact_probabilities(logits: Logits, temperature: float, top_k: int, top_p: float) -> np.ndarray[Any, Any]:
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.argsort(-p)
    p[order[top_k or len(p) :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    return p / p.sum()


def draw_tokens(logits: Logits, positions: Sequence[int], **filters: Any) -> np.ndarray[Any, Any]:
    """[20000, len(positions)] tokens, seeds 0 .. 19999."""
    batch = np.repeat(logits[None], 500 * len(positions), axis=0)
    chosen = []
    for start in range(0, 20_000, 500):
        choices = []
        for seed in range(start, start + 500):
            state = make_state(SamplingParams(seed=seed, **filters), [0] * max(positions))
            choices += [Choice(state, position) for position in positions]
        chosen.append(choose(batch, choices)[0].reshape(-1, len(positions)))
    return np.concatenate(chosen)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 50, "top_p": 1.0},
    {"temperature": 0.7, "top_k": 0, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.8},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_20000_seeds_have_the_exact_distribution(setting: dict[str, Any]) -> None:
    logits = draw_logits(np.random.default_rng(3), 600, "normal")
    chosen = draw_tokens(logits, [7], **setting)[:, 0]
    assert chi_square_p_value(chosen, exact_probabilities(logits, **setting)) > 1e-3
    wrong = {**setting, "temperature": setting["temperature"] * 1.06}
    assert chi_square_p_value(chosen, exact_probabilities(logits, **wrong)) < 1e-3  # the test has power


def test_positions_of_a_seed_are_independent() -> None:
    logits = draw_logits(np.random.default_rng(4), 6, "normal") / 3
    chosen = draw_tokens(logits, [10, 11, 11], temperature=1.0)
    table = np.histogram2d(chosen[:, 0], chosen[:, 1], bins=6)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    shared = np.histogram2d(chosen[:, 1], chosen[:, 2], bins=6)[0]  # the same position twice: shared noise
    assert stats.chi2_contingency(shared + 1).pvalue < 1e-9


# --- promises ---


def test_a_row_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(5)
    logits = np.stack([draw_logits(rng, 1000, style) for style in STYLES])
    states = [
        make_state(
            SamplingParams(
                temperature=0.5 * row, top_k=10 * (row % 3), top_p=1 - 0.1 * (row % 2), seed=row,
                repetition_penalty=1 + 0.1 * (row % 4), log_probs=row % 2 == 0,
            ),
            rng.integers(0, 1000, 20).tolist(),
        )
        for row in range(len(STYLES))
    ]  # fmt: skip
    choices = [Choice(state, 20) for state in states]
    together = choose(logits, choices)
    for row in (range(len(STYLES)), reversed(range(len(STYLES)))):
        for index in row:
            alone = choose(logits[index : index + 1], [choices[index]])
            assert (alone[0][0], alone[1][0]) == (together[0][index], together[1][index])
    again = choose(logits, choices)
    assert np.array_equal(together[0], again[0])
    assert np.array_equal(together[1], again[1])


@given(st.lists(st.integers(0, 19), min_size=1, max_size=30), st.data())
@settings(deadline=None)
def test_tokens_after_the_position_do_not_matter(tokens: list[int], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(tokens)))
    prompt_length = data.draw(st.integers(0, position))
    params = SamplingParams(
        temperature=0.9, seed=data.draw(st.integers(0, 9)), repetition_penalty=1.5, presence_penalty=0.5,
        frequency_penalty=0.4, min_length=5, end_ids=(0, 1), bad_words=((2,), (3, 4), (4, 4, 5)), log_probs=True,
    )  # fmt: skip
    logits = draw_logits(np.random.default_rng(data.draw(st.integers(0, 99))), 20, "normal")[None]
    longer, exact = SamplingState(params, prompt_length), SamplingState(params, prompt_length)
    longer.append(tokens)
    exact.append(tokens[:position])
    want = choose(logits, [Choice(exact, position)])
    got = choose(logits, [Choice(longer, position)])
    assert (got[0][0], got[1][0]) == (want[0][0], want[1][0])
    longer.truncate(position)
    longer.append([19] * 3)
    longer.truncate(position)
    got = choose(logits, [Choice(longer, position)])
    assert (got[0][0], got[1][0]) == (want[0][0], want[1][0])


@given(st.lists(st.tuples(st.floats(0, 1), st.lists(st.integers(0, 99), max_size=90)), max_size=6))
def test_history_follows_rollback(steps: list[tuple[float, list[int]]]) -> None:
    state, history = SamplingState(SamplingParams(), 0), list[int]()
    for share, tokens in steps:
        keep = int(share * len(history))
        state.truncate(keep)
        state.append(tokens)
        history = history[:keep] + tokens
        assert state.history.tolist() == history
        assert len(state) == len(history)


def test_history_before_the_position_matters() -> None:
    logits = np.array([3.0, 2.9, 0.0], np.float32)
    params = SamplingParams(repetition_penalty=1.5)
    assert choose_one(logits, params, [], []) == 0
    assert choose_one(logits, params, [], [0]) == 1
    assert choose_one(logits, params, [0], []) == 1


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = np.array([3.0, 2.9, 0.0], np.float32)
    for params in (SamplingParams(presence_penalty=0.2), SamplingParams(frequency_penalty=0.1)):
        assert choose_one(logits, params, [0, 0], []) == 0
        assert choose_one(logits, params, [], [0, 0]) == 1


def test_end_ids_wait_for_min_length() -> None:
    logits = np.array([0.0, 5.0, 1.0], np.float32)
    params = SamplingParams(min_length=2, end_ids=(1, 99))  # 99 is outside the vocabulary
    assert [choose_one(logits, params, [0], [0] * n) for n in range(4)] == [2, 2, 1, 1]


def test_bad_words() -> None:
    logits = np.array([0.0, 5.0, 4.0, 3.0], np.float32)
    assert choose_one(logits, SamplingParams(bad_words=((1,), (77,)))) == 2
    word = SamplingParams(bad_words=((3, 3, 1),))
    assert [choose_one(logits, word, history) for history in ([], [3], [3, 3], [3, 3, 0])] == [1, 1, 2, 1]
    assert choose_one(logits, word, [3], [3]) == 2  # a word may begin in the prompt


def test_ties_go_to_the_lowest_id() -> None:
    logits = np.array([-1.0, -0.0, 0.0, 0.0] * 50, np.float32)
    assert choose_one(logits, SamplingParams()) == 1
    for seed in range(20):
        assert choose_one(logits, SamplingParams(temperature=1.0, top_k=1, seed=seed)) == 1
        assert choose_one(logits, SamplingParams(temperature=1.0, top_p=0.0, seed=seed)) == 1
    chosen = {choose_one(logits, SamplingParams(temperature=1.0, top_k=3, seed=seed)) for seed in range(60)}
    assert chosen == {1, 2, 3}


@pytest.mark.parametrize("broken", [np.nan, -np.nan, np.inf])
def test_a_broken_row_is_marked_and_harms_no_other(broken: float) -> None:
    logits = np.zeros((3, 300), np.float32)
    logits[:, 123] = 2.0
    logits[1, 299] = broken
    for temperature in (0.0, 1e-9):
        state = make_state(SamplingParams(temperature=temperature))
        assert choose(logits, [Choice(state, 0)] * 3)[0].tolist() == [123, NO_TOKEN, 123]


def test_a_row_with_every_token_masked_is_marked() -> None:
    assert choose_one(np.full(70, -np.inf, np.float32), SamplingParams(temperature=1.0)) == NO_TOKEN
    assert choose_one(np.zeros(2, np.float32), SamplingParams(bad_words=((0,), (1,)))) == NO_TOKEN


def test_a_masked_token_is_never_chosen() -> None:
    logits = np.full(200, -np.inf, np.float32)
    logits[[3, 150]] = [0.0, -20.0]
    for top_k in (0, 2, 100):
        chosen = {choose_one(logits, SamplingParams(temperature=9.0, seed=s, top_k=top_k)) for s in range(100)}
        assert chosen == {3, 150}


def test_log_probs_are_those_before_temperature_and_filters() -> None:
    logits = draw_logits(np.random.default_rng(6), 300, "normal")
    exact = np.log(exact_probabilities(logits, 1.0, 0, 1.0))
    for params in (SamplingParams(log_probs=True), SamplingParams(temperature=3.0, top_k=5, log_probs=True)):
        tokens, log_probs = choose(logits[None], [Choice(make_state(params), 0)])
        assert log_probs[0] == pytest.approx(exact[tokens[0]], abs=1e-6)
    assert choose(logits[None], [Choice(make_state(SamplingParams()), 0)])[1].tolist() == [0.0]


# --- kernels ---


def test_compiled_noise_is_the_defined_noise() -> None:
    words = np.random.default_rng(7).integers(0, 2**64, 5000, np.uint64)
    words[:2] = [0, 2**64 - 1]
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    expected = -noise.log(-noise.log(uniform))
    assert [sampling_kernels.noise(word) for word in words] == expected.tolist()


def test_noise_bounds_hold_and_are_tight() -> None:
    for i, bound in enumerate(sampling_kernels.NOISE_BOUNDS.tolist()):
        at_least = sampling_kernels.MIN_NOISE + i / sampling_kernels.NOISE_STEPS
        if bound:
            below = sampling_kernels.noise(np.uint64(bound - 1))
            assert below < at_least
            assert below > at_least - 0.01 or at_least > 25
        else:
            assert at_least < -3.5


def test_mass_is_the_rounded_exponential_and_nearly_monotone() -> None:
    z = -np.sort(np.random.default_rng(8).random(20_000) * 32)
    masses = np.array([int(sampling_kernels.mass(value)) for value in z])
    exact = np.where(z > sampling_kernels.MASS_END, np.exp(z) * 2.0**44, 0)
    assert np.all(np.abs(masses - exact) < 1.5)
    assert sampling_kernels.mass(0.0) == 2**44
    assert sampling_kernels.mass(-np.inf) == 0
    close = np.nextafter(z, -np.inf)
    assert all(int(sampling_kernels.mass(lower)) <= mass + 1 for lower, mass in zip(close, masses, strict=True))


def test_compilation_works_where_no_cache_can_be_written() -> None:
    scope: dict[str, Any] = {}
    exec("def double(x): return 2 * x", scope)  # a function without a file has no place for a cache
    assert compiled(scope["double"])(21) == 42


# --- the interface ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_p", 1.01),
        ("top_p", math.nan), ("min_p", -0.1), ("seed", -1), ("seed", 2**64), ("repetition_penalty", 0.0),
        ("presence_penalty", math.nan), ("frequency_penalty", math.inf), ("min_length", -1), ("bad_words", ((),)),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_parameters_cross_process_boundaries() -> None:
    params = SamplingParams(seed=2**64 - 1, bad_words=((1, 2),))
    assert pickle.loads(pickle.dumps(params)) == params


def test_wrong_shapes_and_positions_are_refused() -> None:
    state = make_state(SamplingParams(), [1, 2])
    logits = np.zeros((1, 8), np.float32)
    with pytest.raises(ValueError, match="logits: "):
        choose(logits, [Choice(state, 2)] * 2)
    for position in (-1, 3):
        with pytest.raises(ValueError, match="position: "):
            choose(logits, [Choice(state, position)])
    with pytest.raises(ValueError, match="length: "):
        state.truncate(3)


def test_read_only_and_strided_logits_are_accepted() -> None:
    logits = draw_logits(np.random.default_rng(9), 200, "normal")
    params = SamplingParams(temperature=1.0, presence_penalty=0.1)
    want = choose_one(logits, params)
    logits.setflags(write=False)
    assert choose_one(logits, params) == want
    assert choose_one(np.repeat(logits, 2)[::2], params) == want


def test_no_rows() -> None:
    tokens, log_probs = choose(np.empty((0, 100), np.float32), [])
    assert (tokens.shape, log_probs.shape) == ((0,), (0,))


def test_warm_up_leaves_nothing_to_compile() -> None:
    warm_up(100)
    compiled_before = len(sampling_kernels.choose_rows.signatures)
    choose_one(np.zeros(100, np.float32), SamplingParams(temperature=0.7, top_p=0.3, bad_words=((1,),)), [1], [2])
    assert len(sampling_kernels.choose_rows.signatures) == compiled_before
