"""How many drafts the target accepts on held-out answers, and what a draft costs.

Every token of every answer is a starting point: the drafter gets the features that chose it and proposes the tokens
after it, with the noise of that answer's seed. A draft is accepted if it is the token that the target chose there, as
in serving.
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
from tandem.recurrent_drafter import RecurrentDrafter
from tandem.sampling import SamplingParams

DEPTH = 5
_ROWS = 64
_PAST = 128  # tokens in the cache of the target's rows while it is timed


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
    owner = np.repeat(np.arange(len(answers)), np.diff(answers.starts))
    ends = answers.starts[1:][owner]
    anchors = np.flatnonzero(np.arange(len(owner)) + 1 < ends)
    matched = np.zeros(len(owner), np.int64)
    for at in range(0, len(anchors), _ROWS):
        chunk = anchors[at : at + _ROWS]
        matched[chunk] = _matches(drafter, answers, owner, ends, chunk, end_ids)
        advance(len(chunk))
    room = np.minimum(ends - np.arange(len(owner)) - 1, DEPTH)
    rates = []
    for position in range(DEPTH):
        tried = (room > position) & (matched >= position)
        rates.append(float((matched[tried] > position).mean()))
    return Acceptance(
        rates,
        [_per_cycle(matched, answers.starts, depth) for depth in range(1, DEPTH + 1)],
        float(np.isin(answers.tokens, drafter.ids).mean()),
        len(owner),
    )


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


def cost(drafter: RecurrentDrafter, engine: Engine, rows: int, rounds: int = 30) -> Cost:
    """Time a step of the drafter against one of the target, both with `rows` rows, at temperature 0."""
    blocks = -(-(_PAST + 1) // engine.block_size)
    batch = [Row([100], _PAST, range(row * blocks, (row + 1) * blocks), 1) for row in range(rows)]
    params = [SamplingParams() for _ in batch]
    draft, target = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        engine.forward(batch)
        stepped = time.perf_counter()
        target.append(stepped - started)
        features = engine.features.copy()
        started = time.perf_counter()
        drafter.propose(features, [100] * rows, [_PAST + 1] * rows, params, [DEPTH] * rows)
        draft.append((time.perf_counter() - started) / DEPTH)
    return Cost(rows, 1e3 * statistics.median(draft), 1e3 * statistics.median(target))


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
