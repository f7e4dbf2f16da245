"""Sampled tokens follow the model's own distribution: one forward pass of the real model, then 20,000 seeds."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from guessing import eager
from scipy.stats import chi2
from served_engine import default_engine, pool_mb

from client import Client, Parameters
from tandem.engines import EngineOptions, Row, load_engine
from tandem.executor import Executor
from tandem.prompt import PromptEncoder
from tandem.request import parse_request
from tandem.sampling import Choice, SamplingParams, SamplingState, choose
from tandem.step import OpenSequence, StepRequest, StepRow

ENGINE = default_engine()
PROMPT = "My favourite animal is the"  # hundreds of tokens are possible next
SEEDS = 20_000
SERVED = 400
ROWS = 40  # seeds in one call of `choose`

SETTINGS: tuple[Parameters, ...] = (
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 1.3, "top_k": 200, "top_p": 0.9},
)
IDS = ["temperature", "top-k", "top-k and top-p"]

# The seeds are fixed: what passes once passes always on the same machine; on others the logits differ a little.
ACCEPTED, REJECTED = 1e-3, 1e-9
LEAST_EXPECTED = 5.0  # tokens that are expected less often are counted together

Floats = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]


def as_on_the_wire(parameters: Parameters) -> dict[str, list[Any]]:
    """The fields as the server reads them from the tensors of a request, whose reals are float32."""
    fields = {name: [np.float32(v).item() if isinstance(v, float) else v] for name, v in parameters.items()}
    return {"text_input": [PROMPT.encode()], **fields}


def sampling_params(parameters: Parameters) -> SamplingParams:
    request = parse_request(as_on_the_wire(parameters), max_prompt_bytes=1000)
    return SamplingParams(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return PromptEncoder(ENGINE).encode(PROMPT, special_tokens=True)


@pytest.fixture(scope="module")
def logits(prompt) -> npt.NDArray[np.float32]:
    """Logits of the first token of the answer, [vocab], by the engine that `server` runs."""
    engine = load_engine(ENGINE, EngineOptions(kv_cache_mb=int(pool_mb(16, slots=2))))
    return engine.forward([Row(prompt, 0, [0])])[0].copy()


def sample(
    logits: npt.NDArray[np.float32], prompt: Sequence[int], params: SamplingParams, seeds: Sequence[int]
) -> Int32s:
    """The token that each seed chooses."""
    tokens = []
    for start in range(0, len(seeds), ROWS):
        choices = []
        for seed in seeds[start : start + ROWS]:
            state = SamplingState(replace(params, seed=seed), len(prompt))
            state.append(prompt)
            choices.append(Choice(state, len(prompt)))
        tokens.append(choose(np.tile(logits, (len(choices), 1)), choices)[0])
    return np.concatenate(tokens)


def distribution(logits: npt.NDArray[np.float32], temperature: float, top_k: int = 0, top_p: float = 1.0) -> Floats:
    """Softmax at the temperature; of its `top_k` largest, the shortest prefix with the share `top_p`, renormalized."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")[: top_k or None]
    share = np.cumsum(weights[order]) / weights[order].sum()
    kept = order[: int(np.searchsorted(share, top_p)) + 1] if top_p < 1 else order
    probabilities = np.zeros_like(weights)
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


def p_value(tokens: Int32s, probabilities: Floats, bins: int = 20) -> float:
    """Pearson's chi-square test: how often a sample from the distribution would fit worse than this one."""
    observed = np.bincount(tokens, minlength=len(probabilities))
    if observed[probabilities == 0].any():
        return 0.0
    expected = probabilities * len(tokens)
    rare = expected < LEAST_EXPECTED
    bins_observed = np.append(observed[~rare], observed[rare].sum())
    bins_expected = np.append(expected[~rare], expected[rare].sum())
    filled = bins_expected > 0
    difference = bins_observed[filled] - bins_expected[filled]
    assert filled.sum() > bins, "too few bins to tell distributions apart"
    return float(chi2.sf((difference**2 / bins_expected[filled]).sum(), filled.sum() - 1))


@pytest.mark.parametrize("parameters", SETTINGS, ids=IDS)
def test_first_tokens_follow_the_softmax(parameters, prompt, logits):
    params = sampling_params(parameters)
    tokens = sample(logits, prompt, params, range(SEEDS))
    assert p_value(tokens, distribution(logits, params.temperature, params.top_k, params.top_p)) > ACCEPTED
    # The test would notice another temperature, and no filter or a narrower one where there is one.
    wrong = [distribution(logits, params.temperature * 1.1, params.top_k, params.top_p)]
    if params.top_k:
        wrong.append(distribution(logits, params.temperature, params.top_k + 10, params.top_p))
        wrong.append(distribution(logits, params.temperature, params.top_k - 10, params.top_p))
    if params.top_p < 1:
        wrong.append(distribution(logits, params.temperature, params.top_k, params.top_p + 0.02))
        wrong.append(distribution(logits, params.temperature, params.top_k, params.top_p - 0.02))
    assert max(p_value(tokens, probabilities) for probabilities in wrong) < REJECTED


# A text in which the suffix drafter finds what to propose: " the" and " cat". What is before it fills a KV block, which
# is computed once.
PREFACE = "It rained all day, the train was late, and there was a lot of time to talk: "
COPIED = PREFACE + "My favourite animal is the cat. What is yours? My favourite animal is"
DRAFTED_SEEDS = 1_920
TOGETHER = 32
DRAFTED_TEMPERATURE = 1.3


def test_tokens_that_were_verified_as_drafts_follow_the_softmax():
    """On the real engine, the first token and, where the first draft was accepted, the second."""
    engine = load_engine(ENGINE, EngineOptions(kv_cache_mb=int(pool_mb(128, slots=TOGETHER + 1))))
    text = PromptEncoder(ENGINE).encode(COPIED, special_tokens=True)
    executor = Executor(engine, 1, eager())
    first, second, the = [], [], text[text.index(text[-1]) + 1]
    for start in range(0, DRAFTED_SEEDS, TOGETHER):
        seeds = range(start, start + TOGETHER)
        # The text's last token counts as the first of the answer, so that drafts may follow it.
        opens = [
            OpenSequence(s, len(text) - 1, SamplingParams(temperature=DRAFTED_TEMPERATURE, seed=s), "suffix", 2)
            for s in seeds
        ]
        read = [StepRow(seed, 0, text[:-1], 0, len(text) - 1) for seed in seeds]
        found = executor.step(StepRequest(read, opens))
        assert not start or min(found.cached) > len(text) / 2
        result = executor.step(StepRequest([StepRow(seed, len(text) - 1, text[-1:], 3) for seed in seeds]))
        assert result.drafted.tolist() == [2] * TOGETHER
        answers = np.split(result.chosen, np.cumsum(result.counts)[:-1])
        first += [answer[0] for answer in answers]
        second += [answer[1] for answer in answers if answer[0] == the]
        executor.step(StepRequest(closes=list(seeds)))
    assert len(second) > 300, "the draft was hardly ever accepted"
    blocks = range(-(-(len(text) + 1) // engine.block_size))
    engine.forward([Row(text[:-1], 0, blocks)])
    logits = engine.forward([Row([text[-1], the], len(text) - 1, blocks, 2, answer=2)]).copy()
    laws = [distribution(row, DRAFTED_TEMPERATURE) for row in logits]
    assert p_value(np.array(first), laws[0], bins=5) > ACCEPTED
    assert p_value(np.array(second), laws[1], bins=5) > ACCEPTED
    assert p_value(np.array(first), laws[1], bins=5) < REJECTED
    assert p_value(np.array(second), laws[0], bins=5) < REJECTED


def test_the_server_chooses_the_same_tokens(server, prompt, logits):
    """What the test above says of `choose` holds for answers: same seed, same token."""

    def ask(number: int) -> int:
        result = client.generate(
            PROMPT, max_tokens=1, random_seed=number, return_token_ids=True, **SETTINGS[number % len(SETTINGS)]
        )
        assert result.token_ids is not None
        return result.token_ids[0]

    with Client(server.grpc_url) as client, ThreadPoolExecutor(16) as threads:
        served = np.array(list(threads.map(ask, range(SERVED))))
    for kind, parameters in enumerate(SETTINGS):
        numbers = range(kind, SERVED, len(SETTINGS))
        expected = sample(logits, prompt, sampling_params(parameters), numbers)
        assert served[list(numbers)].tolist() == expected.tolist()
    assert len(set(served.tolist())) > 50, "nearly every request got the same token"
