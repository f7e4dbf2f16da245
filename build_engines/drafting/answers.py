"""Let the target answer prompts, and keep what its LM head saw for every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from build_engines.drafting.shards import Answers
from tandem.engines import Engine, Row
from tandem.kv_cache import BlockTable, KvCache
from tandem.sampling import NO_TOKEN, Choice, SamplingParams, SamplingState, choose

ROWS = 48  # sequences in a step: more is hardly faster on two cores
PROMPT_TOKENS = 384  # longer prompts are cut: they are rare, and only their answers count
NEW_PROMPTS = 4  # prompts in a step, so that their length stays bounded


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and how its answer is chosen."""

    prompt: Sequence[int]
    temperature: float
    seed: int
    length: int  # tokens of the answer, at most


@dataclass(slots=True)
class _Running:
    index: int
    question: Question
    state: SamplingState
    table: BlockTable = field(default_factory=BlockTable)
    tokens: list[int] = field(default_factory=list)
    features: list[npt.NDArray[np.float16]] = field(default_factory=list)


def answer(
    engine: Engine, questions: Sequence[Question], size: int, end_ids: Sequence[int], advance: Callable[[int], object]
) -> Iterator[tuple[int, Answers]]:
    """Answer all questions in a batch that is refilled as answers end, and hand them out `size` at a time.

    Args:
        engine: made with `EngineOptions.features`.
        size: answers in a part; parts are numbered in the order of the questions, and come as they are complete.
        advance: is told the number of tokens after each step.
    """
    cache = KvCache(engine.num_blocks, engine.block_size)
    running: list[_Running] = []
    done: dict[int, _Running] = {}
    following = 0
    while following < len(questions) or running:
        fresh = min(NEW_PROMPTS, ROWS - len(running), len(questions) - following)
        for index in range(following, following + fresh):
            running.append(_start(index, questions[index], end_ids))
        following += fresh
        _step(engine, cache, running)
        advance(len(running))
        ended = [one for one in running if _is_over(one)]
        running = [one for one in running if not _is_over(one)]
        for one in ended:
            cache.release(one.table)
            done[one.index] = one
        for part in sorted({one.index // size for one in ended}):
            members = range(part * size, min((part + 1) * size, len(questions)))
            if all(index in done for index in members):
                yield part, _collect([done.pop(index) for index in members])


def _start(index: int, question: Question, end_ids: Sequence[int]) -> _Running:
    prompt = question.prompt[-PROMPT_TOKENS:]
    params = SamplingParams(temperature=question.temperature, seed=question.seed, end_ids=tuple(end_ids))
    state = SamplingState(params, len(prompt))
    state.append(prompt)
    return _Running(index, question, state)


def _step(engine: Engine, cache: KvCache, running: Sequence[_Running]) -> None:
    rows = []
    for one in running:
        past = one.table.length
        tokens = one.state.history[past:].tolist()
        cache.reserve(one.table, past + len(tokens))
        rows.append(Row(tokens, past, one.table.blocks, 1))
    logits = engine.forward(rows)
    features = engine.features.astype(np.float16)
    chosen, _ = choose(logits, [Choice(one.state, len(one.state)) for one in running])
    for one, token, feature in zip(running, chosen.tolist(), features, strict=True):
        assert token != NO_TOKEN, "the target's logits hold NaN"
        one.table.length = len(one.state)
        one.state.append([token])
        one.tokens.append(token)
        one.features.append(feature)


def _is_over(one: _Running) -> bool:
    return one.tokens[-1] in one.state.params.end_ids or len(one.tokens) >= one.question.length


def _collect(ended: Sequence[_Running]) -> Answers:
    return Answers(
        tokens=np.array([token for one in ended for token in one.tokens], np.int32),
        features=np.stack([feature for one in ended for feature in one.features]),
        starts=np.cumsum([0, *(len(one.tokens) for one in ended)]).astype(np.int32),
        prompts=np.concatenate([one.state.history[: one.state.prompt_length] for one in ended]).astype(np.int32),
        prompt_lengths=np.array([one.state.prompt_length for one in ended], np.int32),
        temperatures=np.array([one.question.temperature for one in ended], np.float32),
        seeds=np.array([one.question.seed for one in ended], np.int64),
    )
