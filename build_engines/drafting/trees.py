"""What a tree of drafts would bring against a chain: from how the drafter ranks the target's choice, and from the cost.

A chain has the drafter's first candidate at every place; a tree has several, and the step that verifies it is as much
wider. For each number of drafts the best tree is the one whose nodes are reached most likely (Chen et al., "Sequoia",
2024): a node of rank r at depth d, below one that is on the way, is the target's choice with a probability that is
measured here on held-out answers; depths count as independent. Verifying a tree is not built; this says whether to.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from build_engines.drafting.shards import Answers
from tandem.noise import gumbel
from tandem.recurrent_drafter import RecurrentDrafter
from tandem.sampling import MIN_TEMPERATURE

DEPTH, RANKS = 5, 8
NODES = (1, 2, 3, 5, 7, 11, 15, 23)
_ROWS = 64

Shares = npt.NDArray[np.float64]


def rank_shares(drafter: RecurrentDrafter, answers: Answers, advance: Callable[[int], object]) -> Shares:
    """How often the target's choice is the drafter's candidate of each rank, [DEPTH, RANKS].

    The drafter follows the answer, so that a depth is seen as from a node that is on the way. At a temperature its
    candidates are ranked with the noise of the answer's seed, as the target's are.
    """
    owner = np.repeat(np.arange(len(answers)), np.diff(answers.starts))
    ends = answers.starts[1:][owner]
    anchors = np.flatnonzero(np.arange(len(owner)) + DEPTH < ends)  # all of its depths lie within the answer
    counts = np.zeros((DEPTH, RANKS), np.int64)
    for at in range(0, len(anchors), _ROWS):
        chunk = anchors[at : at + _ROWS]
        state = drafter.start(answers.features[chunk].astype(np.float32))
        for depth in range(DEPTH):
            logits, state = drafter.step(state, answers.tokens[chunk + depth])
            scores = _scores(logits, drafter.ids, answers, owner[chunk], chunk + depth + 1)
            ranks = _ranks(scores, drafter.ids, answers.tokens[chunk + depth + 1])
            counts[depth] += np.bincount(ranks[ranks < RANKS], minlength=RANKS)
        advance(len(chunk))
    return counts / max(1, len(anchors))


def _scores(
    logits: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int32],
    answers: Answers,
    owners: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
) -> Shares:
    """What the drafter ranks its candidates by for the tokens at `places` of the answers `owners`."""
    scores = logits.astype(np.float64)
    for row, (one, place) in enumerate(zip(owners.tolist(), places.tolist(), strict=True)):
        temperature = float(answers.temperatures[one])
        if temperature >= MIN_TEMPERATURE:
            position = int(answers.prompt_lengths[one]) + place - int(answers.starts[one])
            scores[row] = scores[row] / temperature + gumbel(int(answers.seeds[one]), position, ids)
    return scores


def _ranks(scores: Shares, ids: npt.NDArray[np.int32], tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Place of each row's token among its candidates, 0 for the best; `RANKS` if it cannot be proposed."""
    columns = np.searchsorted(ids, tokens).clip(max=len(ids) - 1)
    own = scores[np.arange(len(tokens)), columns]
    ranks = (scores > own[:, None]).sum(axis=1)
    return np.where(ids[columns] == tokens, ranks, RANKS)


def chain(shares: Shares, nodes: int) -> float:
    """Expected accepted drafts of a chain of so many, or of `DEPTH` if that is less."""
    return float(np.cumprod(shares[:nodes, 0]).sum())


def tree(shares: Shares, nodes: int) -> float:
    """Expected accepted drafts of the best tree of so many."""
    expected, found = 0.0, [(-float(shares[0, 0]), 0, 0)]  # minus a node's probability, its depth, its rank
    for _ in range(nodes):
        if not found:
            break
        negative, depth, rank = heapq.heappop(found)
        expected -= negative
        if rank + 1 < RANKS and negative < 0:  # its next brother
            heapq.heappush(found, (negative / shares[depth, rank] * shares[depth, rank + 1], depth, rank + 1))
        if depth + 1 < DEPTH:  # its first child
            heapq.heappush(found, (negative * float(shares[depth + 1, 0]), depth + 1, 0))
    return expected


def table(results: dict[str, Shares], cost: Callable[[int], float], draft: float) -> str:
    """Markdown: ranks, and tokens for each unit of time by the number of drafts.

    Args:
        results: shares by kind of sampling.
        cost: of a step of the target by its width, in any unit.
        draft: of a step of the drafter, in the same; a tree is drafted level by level, at this price for each.
    """
    lines = ["| the target's choice is the drafter's candidate | 1 | 2 | 3 | 4 |", "|---|---:|---:|---:|---:|"]
    for name, shares in results.items():
        for depth in (0, 1):
            lines.append(
                f"| {name}, place {depth + 1} | " + " | ".join(f"{one:.3f}" for one in shares[depth, :4]) + " |"
            )
    lines += ["", "| drafts in a step | step, of one token's |" + "".join(f" {n}: chain | tree |" for n in results)]
    lines.append("|---:|---:|" + "---:|---:|" * len(results))
    for nodes in NODES:
        width = cost(nodes + 1) / cost(1)
        cells = []
        for shares in results.values():
            for expected, levels in ((chain(shares, nodes), min(nodes, DEPTH)), (tree(shares, nodes), _levels(nodes))):
                speed = (1 + expected) / (width + levels * draft / cost(1))
                cells.append(f"{1 + expected:.2f} / {speed:.2f}")
        lines.append(f"| {nodes} | {width:.2f} | " + " | ".join(cells) + " |")
    lines += ["", "Each cell: tokens per step, and its speed-up over steps of one token, one stream."]
    return "\n".join(lines)


def _levels(nodes: int) -> int:
    """Drafter's steps for a tree; as few as its shape could have, which favours the tree."""
    return min(DEPTH, nodes.bit_length())
