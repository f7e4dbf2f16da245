"""How many drafts the target accepts on held-out answers, and what a draft costs.

Every token of every answer is a starting point: the drafter gets the features that chose it and proposes the tokens
after it, with the noise of that answer's seed. A draft is accepted if it is the token that the target chose there, as
in serving. An ordinary model that drafts is measured in the same way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from build_engines.drafting.shards import Answers
from tandem.engines import Engine, Row
from tandem.noise import gumbel
from tandem.recurrent_drafter import RecurrentDrafter
from tandem.sampling import MIN_TEMPERATURE, SamplingParams

DEPTH = 5
_ROWS = 64
_PAST = 128  # tokens in the cache of the rows while they are timed
_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What was accepted on one set of answers."""

    rates: list[float]  # per position, among the starting points whose earlier drafts were all accepted
    lengths: list[float]  # for k = 1 .. DEPTH drafts in every cycle: accepted drafts per cycle, mean
    coverage: float  # share of the answers' tokens that the drafter can propose at all
    tokens: int


def acceptance(
    drafter: RecurrentDrafter, answers: Answers, end_ids: tuple[int, ...], advance: Callable[[int], object]
) -> Acceptance:
    """Draft from every token of `answers`; `advance` is told the number of starting points done."""
    owner, ends = _owners(answers)
    anchors = np.flatnonzero(np.arange(len(owner)) + 1 < ends)
    matched = np.zeros(len(owner), np.int64)
    for at in range(0, len(anchors), _ROWS):
        chunk = anchors[at : at + _ROWS]
        matched[chunk] = _matches(drafter, answers, owner, ends, chunk, end_ids)
        advance(len(chunk))
    return _summary(matched, answers, float(np.isin(answers.tokens, drafter.ids).mean()))


def acceptance_of_model(draft: Engine, answers: Answers, advance: Callable[[int], object]) -> Acceptance:
    """The same for an ordinary model: what it chooses after the true tokens is what it drafts after accepted ones."""
    ids = np.arange(draft.vocab_size, dtype=np.int32)
    prompt_starts = np.cumsum([0, *answers.prompt_lengths])
    agrees = np.zeros(len(answers.tokens), np.bool_)
    for one, (start, end) in enumerate(zip(answers.starts[:-1].tolist(), answers.starts[1:].tolist(), strict=True)):
        prompt = answers.prompts[prompt_starts[one] : prompt_starts[one + 1]].tolist()
        tokens = prompt + answers.tokens[start : end - 1].tolist()
        blocks = range(-(-len(tokens) // draft.block_size))
        scores = draft.forward([Row(tokens, 0, blocks, end - start)]).astype(np.float64)
        temperature = float(answers.temperatures[one])
        if temperature >= MIN_TEMPERATURE:
            for place in range(end - start):
                noise = gumbel(int(answers.seeds[one]), len(prompt) + place, ids)
                scores[place] = scores[place] / temperature + noise
        agrees[start:end] = scores.argmax(-1) == answers.tokens[start:end]
        advance(end - start)
    owner, ends = _owners(answers)
    matched = np.zeros(len(owner), np.int64)
    for at in range(len(owner) - 2, -1, -1):  # a run of drafts ends at the first that is not the target's
        if at + 1 < ends[at] and agrees[at + 1]:
            matched[at] = min(matched[at + 1] + 1, DEPTH)
    return _summary(matched, answers, 1.0)


def _owners(answers: Answers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """For each token the answer that it belongs to, and where that ends."""
    owner = np.repeat(np.arange(len(answers)), np.diff(answers.starts))
    return owner, answers.starts[1:][owner]


def _summary(matched: npt.NDArray[np.int64], answers: Answers, coverage: float) -> Acceptance:
    """From how many drafts behind each token are accepted, at most `DEPTH`."""
    _, ends = _owners(answers)
    room = np.minimum(ends - np.arange(len(matched)) - 1, DEPTH)
    rates = []
    for position in range(DEPTH):
        tried = (room > position) & (matched >= position)
        rates.append(float((matched[tried] > position).sum() / max(1, tried.sum())))
    lengths = [_per_cycle(matched, answers.starts, depth) for depth in range(1, DEPTH + 1)]
    return Acceptance(rates, lengths, coverage, len(matched))


def _matches(
    drafter: RecurrentDrafter, answers: Answers, owner: npt.NDArray[np.int64], ends: npt.NDArray[np.int32],
    anchors: npt.NDArray[np.int64], end_ids: tuple[int, ...],
) -> list[int]:  # fmt: skip
    """How many drafts from each of `anchors` are the answer's own next tokens."""
    owners = owner[anchors]
    params = [
        SamplingParams(temperature=float(answers.temperatures[one]), seed=int(answers.seeds[one]), end_ids=end_ids)
        for one in owners
    ]
    positions = answers.prompt_lengths[owners] + anchors - answers.starts[owners] + 1
    counts = np.minimum(ends[anchors] - anchors - 1, DEPTH)
    proposal = drafter.propose(
        answers.features[anchors].astype(np.float32),
        answers.tokens[anchors].tolist(),
        positions.tolist(),
        params,
        counts.tolist(),
    )
    found = []
    for anchor, drafts in zip(anchors.tolist(), proposal.tokens, strict=True):
        truth = answers.tokens[anchor + 1 : anchor + 1 + len(drafts)]
        wrong = np.flatnonzero(truth != drafts)
        found.append(int(wrong[0]) if len(wrong) else len(drafts))
    return found


def _per_cycle(matched: npt.NDArray[np.int64], starts: npt.NDArray[np.int32], depth: int) -> float:
    """Accepted drafts per cycle when answers are decoded with `depth` drafts in every cycle."""
    cycles = accepted = 0
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        at = start
        while at + 1 < end:
            gained = min(int(matched[at]), depth)
            cycles += 1
            accepted += gained
            at += gained + 1
    return accepted / max(1, cycles)


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians of interleaved rounds, in milliseconds."""

    rows: int
    draft: float  # one step of the drafter
    target: float  # one step of the target with a token per row


def cost(drafter: RecurrentDrafter, engine: Engine, rows: int) -> Cost:
    """Time a step of the drafter against one of the target, both with `rows` rows, at temperature 0."""
    params = [SamplingParams() for _ in range(rows)]

    def draft() -> None:
        features = engine.features.copy()
        drafter.propose(features, [100] * rows, [_PAST + 1] * rows, params, [DEPTH] * rows)

    return _cost(rows, draft, DEPTH, engine)


def cost_of_model(draft: Engine, engine: Engine, rows: int) -> Cost:
    """The same for an ordinary model."""
    batch = _batch(draft, rows)
    return _cost(rows, lambda: draft.forward(batch), 1, engine)


def _cost(rows: int, draft: Callable[[], object], steps: int, engine: Engine) -> Cost:
    batch, drafts, targets = _batch(engine, rows), [], []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        engine.forward(batch)
        stepped = time.perf_counter()
        targets.append(stepped - started)
        draft()
        drafts.append((time.perf_counter() - stepped) / steps)
    return Cost(rows, 1e3 * statistics.median(drafts), 1e3 * statistics.median(targets))


def _batch(engine: Engine, rows: int) -> list[Row]:
    blocks = -(-(_PAST + 1) // engine.block_size)
    return [Row([100], _PAST, range(row * blocks, (row + 1) * blocks), 1) for row in range(rows)]


def table(results: dict[str, Acceptance], costs: list[Cost]) -> str:
    """Markdown: acceptance per position, accepted drafts per cycle, and cost."""
    head = " | ".join(f"{number}" for number in range(1, DEPTH + 1))
    lines = [f"| acceptance, given that all before were accepted | {head} |", "|---|" + "---:|" * DEPTH]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{rate:.3f}" for rate in result.rates) + " |")
    lines += ["", f"| accepted drafts per cycle with k drafts, k = | {head} |", "|---|" + "---:|" * DEPTH]
    for name, result in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{length:.2f}" for length in result.lengths) + " |")
    lines += ["", "Tokens measured, and the share of them that the drafter can propose: "]
    lines[-1] += "; ".join(f"{name} {result.tokens}, {result.coverage:.2%}" for name, result in results.items()) + "."
    lines += ["", "| sequences | drafter's step, ms | target's step, ms | c |", "|---:|---:|---:|---:|"]
    for one in costs:
        lines.append(f"| {one.rows} | {one.draft:.2f} | {one.target:.1f} | {one.draft / one.target:.3f} |")
    return "\n".join(lines)
