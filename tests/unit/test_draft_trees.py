"""What a tree of drafts would bring: its shape against all shapes, and ranks against a drafter that is known."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from build_engines.drafting import trees
from build_engines.drafting.shards import Answers
from tandem.noise import gumbel


def all_trees(nodes, ranks, depth):
    """Every set of paths that holds the parent of each of its members."""
    paths = [()]
    everything = []
    for _ in range(depth):
        paths = [(*path, rank) for path in paths for rank in range(ranks)]
        everything += paths
    for some in combinations(everything, nodes):
        chosen = set(some)
        if all((len(path) == 1 or path[:-1] in chosen) for path in some):
            yield some


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_no_tree_is_better(monkeypatch, nodes):
    shares = np.array([[0.5, 0.2, 0.1], [0.45, 0.3, 0.05]])
    monkeypatch.setattr(trees, "DEPTH", 2)
    monkeypatch.setattr(trees, "RANKS", 3)
    best = max(
        sum(np.prod([shares[depth, rank] for depth, rank in enumerate(path)]) for path in some)
        for some in all_trees(nodes, 3, 2)
    )
    assert trees.tree(shares, nodes) == pytest.approx(best)
    assert trees.tree(shares, nodes) >= trees.chain(shares, nodes)


def test_a_chain_is_the_product_of_its_first_candidates():
    shares = np.zeros((trees.DEPTH, trees.RANKS))
    shares[:, 0] = 0.5
    assert trees.chain(shares, 2) == pytest.approx(0.75)
    assert trees.chain(shares, 100) == pytest.approx(sum(0.5**k for k in range(1, trees.DEPTH + 1)))
    assert trees.tree(shares, 100) == trees.chain(shares, 100), "other candidates are never right"


@dataclass
class Counting:
    """A drafter that expects 10 more than the newest token: it gives ids by their distance from that."""

    ids = np.arange(0, 400, 2, dtype=np.int32)  # it can propose even ones only

    def start(self, features):
        return features

    def step(self, state, tokens):
        return -np.abs(self.ids[None, :] - (tokens[:, None] + 10)).astype(np.float32), state


def answers_of(tokens, temperature=0.0, seed=3):
    one = np.array([temperature], np.float32), np.array([seed], np.int64)
    starts, features = np.array([0, len(tokens)], np.int32), np.zeros((len(tokens), 4), np.float16)
    prompt, length = np.arange(7, dtype=np.int32), np.array([7], np.int32)
    return Answers(np.array(tokens, np.int32), features, starts, prompt, length, *one)


def test_ranks_are_counted_along_the_answer():
    tokens = [0, 10, 20, 30, 41, 51, 61, 71, 84]  # an odd one cannot be proposed; the last is third, behind 80 and 82
    shares = trees.rank_shares(Counting(), answers_of(tokens), lambda _: None)
    assert shares[0].tolist() == [3 / 4] + [0] * (trees.RANKS - 1), "from 0, 10, 20 and not from 30"
    assert shares[4].tolist() == [0, 0, 1 / 4] + [0] * (trees.RANKS - 3)


def test_candidates_are_ranked_with_the_noise_that_the_target_has():
    drafter, seed, temperature = Counting(), 3, 20.0
    tokens, position = [100], 7 + 1
    for _ in range(12):
        scores = drafter.step(None, np.array(tokens[-1:]))[0][0] / temperature + gumbel(seed, position, drafter.ids)
        tokens.append(int(drafter.ids[scores.argmax()]))
        position += 1
    shares = trees.rank_shares(drafter, answers_of(tokens, temperature, seed), lambda _: None)
    assert shares[:, 0].tolist() == [1.0] * trees.DEPTH
    other = trees.rank_shares(drafter, answers_of(tokens, temperature, seed + 1), lambda _: None)
    assert other[:, 0].max() < 1


def test_the_table_weighs_tokens_against_the_cost_of_wider_steps():
    shares = np.zeros((trees.DEPTH, trees.RANKS))
    shares[:, :2] = 0.5, 0.25
    text = trees.table({"greedy": shares}, lambda width: 2.0 * width, 0.0)
    row = next(line for line in text.splitlines() if line.startswith("| 3 |"))
    assert row == "| 3 | 4.00 | 1.88 / 0.47 | 2.00 / 0.50 |"
