"""Data and training of drafters: prompts, answers, shards, and a training that can be interrupted anywhere."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from table_engine import TableEngine, table_logits

from build_engines.drafting import foldoc, prompts, shards, training
from build_engines.drafting.answers import Question, answer
from build_engines.drafting.shards import Answers
from build_engines.drafting.training import Plan, train
from build_engines.drafting.vocabulary import candidates, most_frequent
from build_engines.drafting.windows import Sampler
from build_engines.errors import BuildError

VOCABULARY, HIDDEN = 40, 16
TERMS = [("compiler", "A program that turns source text into machine code."), ("byte", "Eight bits, mostly.")]
PLAN = Plan(
    inner=(24, 16),
    vocabulary=32,
    steps=2,
    windows=8,
    length=8,
    candidates=24,
    rate=1e-2,
    bfloat16=False,
    total_steps=60,
)


@pytest.fixture(scope="module")
def table() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(VOCABULARY, HIDDEN)


@pytest.fixture(scope="module")
def answers(table: torch.Tensor) -> Answers:
    """A target whose next token follows from the last one, so that there is something to learn."""
    source = np.random.default_rng(0)
    following = source.permutation(VOCABULARY)
    tokens, starts = [], [0]
    for _ in range(20):
        token = int(source.integers(VOCABULARY))
        for _ in range(30):
            tokens.append(token)
            token = int(following[token])
        starts.append(len(tokens))
    features = 2 * table[tokens].numpy() + source.normal(size=(len(tokens), HIDDEN)) * 0.1
    return Answers(
        np.array(tokens, np.int32), features.astype(np.float16), np.array(starts, np.int32),
        np.arange(60, dtype=np.int32) % 7,
        np.full(20, 3, np.int32), np.zeros(20, np.float32), np.arange(20, dtype=np.int64),
    )  # fmt: skip


def test_prompts_are_the_same_every_time_and_all_different() -> None:
    made = prompts.generated(500, TERMS)
    assert made == prompts.generated(500, TERMS)
    assert len(set(made)) == 500
    assert made != prompts.generated(500, TERMS, seed=8)
    assert not [prompt for prompt in made if "{" in prompt or "}" in prompt]


def test_prompts_that_repeat_held_out_text_are_left_out() -> None:
    held_out = ["Compose an engaging travel blog post about a recent trip to Hawaii, highlighting experiences."]
    given = ["Why?", "please compose an ENGAGING travel blog post about a recent walk", "an engaging travel blog post"]
    assert prompts.disjoint(given, held_out) == ["Why?", "an engaging travel blog post"]
    assert prompts.disjoint(held_out, held_out) == []


def test_generated_prompts_share_nothing_with_mt_bench() -> None:
    """Two of its questions by heart, so that this needs no download; `data.training_prompts` filters against all."""
    known = [
        "Write a persuasive email to convince your introverted friend, who dislikes public speaking, to volunteer as a "
        "guest speaker at a local event. Use compelling arguments and address potential objections. Please be concise.",
        "The vertices of a triangle are at points (0, 0), (-1, 1), and (3, 3). What is the area of the triangle?",
    ]
    made = prompts.generated(2000, TERMS)
    assert prompts.disjoint(made, known) == made


def test_published_prompts_are_read() -> None:
    assert prompts.ifbench('{"prompt": " Why? "}\n') == ["Why?"]
    assert prompts.human_eval('{"prompt": "def f():\\n"}\n') == ["Complete this Python function:\n\ndef f():"]
    assert prompts.mt_bench('{"turns": ["One", "Two"]}\n') == ["One"]


def test_dictionary_entries_are_read() -> None:
    body = "word " * 50
    text = f"\n\nalpha beta\n\n   <tool> {body}{{link}} (1999-01-31)\n\nshort\n\n   Too short.\n\ngamma\n\n   {body}"
    entries = foldoc.parse(text)
    assert [head for head, _ in entries] == ["alpha beta", "gamma"]
    assert entries[0][1] == (body + "link").strip()


class FeatureEngine(TableEngine):
    """A table engine whose features are the first logits."""

    def forward(self, rows):  # type: ignore[no-untyped-def]
        self.features = super().forward(rows)
        return self.features


def test_answers_are_the_targets_and_come_with_what_chose_them() -> None:
    engine = FeatureEngine(num_blocks=400)
    questions = [Question([index, 1, 2], 0.8 * (index % 2), index, 4 + index % 5) for index in range(70)]
    parts = dict(answer(engine, questions, 32, (), lambda done: None))
    assert sorted(parts) == [0, 1, 2]
    assert [len(parts[part]) for part in range(3)] == [32, 32, 6]
    joined = shards.joined([parts[part] for part in range(3)])
    assert np.diff(joined.starts).tolist() == [question.length for question in questions]
    for index in (0, 1, 40, 69):
        history = list(questions[index].prompt)
        assert joined.prompts[3 * index : 3 * index + 3].tolist() == history
        for at in range(joined.starts[index], joined.starts[index + 1]):
            expected = table_logits(history, engine.vocab_size)
            np.testing.assert_array_equal(joined.features[at], expected.astype(np.float16))
            if index % 2 == 0:
                assert joined.tokens[at] == expected.argmax()
            history.append(int(joined.tokens[at]))


def test_a_shard_is_read_as_written_and_damage_is_seen(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "00000.safetensors"
    shards.write(path, answers, "engine a")
    found = shards.read(path, "engine a")
    for name in Answers.__slots__:
        np.testing.assert_array_equal(getattr(found, name), getattr(answers, name))
    with pytest.raises(BuildError, match="made from engine a, not from engine b"):
        shards.read(path, "engine b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + b"???")
    with pytest.raises(BuildError, match=r"00000\.safetensors is damaged: expected sha256"):
        shards.read(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BuildError, match="is damaged"):
        shards.read(path)


def test_vocabulary_is_frequent_and_candidates_hold_the_batch() -> None:
    tokens = np.array([5, 5, 9, 9, 9, 30], np.int32)
    ids = most_frequent(tokens, 6, 40, always=[2])
    assert ids.tolist() == [2, 9, 5, 30, 0, 1]
    chosen = candidates(np.array([30, 39]), ids, 5, np.random.default_rng(0))
    assert {30, 2, 9} <= set(chosen.tolist()) <= set(ids.tolist())
    assert len(set(chosen.tolist())) == len(chosen) == 5


def test_windows_do_not_reach_over_the_end_of_an_answer(answers: Answers) -> None:
    windows = Sampler(answers, 1, count=50, length=12, steps=3).batch(4)
    ends = answers.starts[1:]
    again = Sampler(answers, 1, count=50, length=12, steps=3).batch(4)
    assert torch.equal(windows.tokens, again.tokens)
    inside = [int(valid.sum()) for valid in windows.valid]
    assert inside[0] > inside[1] > inside[2]
    assert len(ends) == 20


def test_training_learns(answers: Answers, table: torch.Tensor, tmp_path: Path) -> None:
    state = train(tmp_path, PLAN, answers, answers, table, (2,))
    start = training._begin(PLAN, answers, table, (2,))
    check = Sampler(answers, PLAN.seed, count=48, length=PLAN.length, steps=PLAN.steps).evenly()
    before = training.measure(start, PLAN, check, table)
    assert before[0] < 0.7  # what the regression knows
    assert state.agreement[0] > 0.9


@pytest.mark.parametrize("stop", [7, 50])
def test_an_interrupted_training_ends_with_the_same_weights(
    answers: Answers, table: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = train(tmp_path / "whole", PLAN, answers, answers, table, (2,))
    step, done = training._step, []

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        done.append(step(*arguments))
        if len(done) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return done[-1]

    monkeypatch.setattr(training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"checkpoint of step {stop} is kept"):
        train(tmp_path / "parts", PLAN, answers, answers, table, (2,))
    resumed = train(tmp_path / "parts", PLAN, answers, answers, table, (2,))
    assert len(done) == PLAN.total_steps
    for left, right in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_checkpoint_of_other_settings_is_refused(answers: Answers, table: torch.Tensor, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, total_steps=1)
    train(tmp_path, plan, answers, answers, table, (2,))
    with pytest.raises(BuildError, match="other settings"):
        train(tmp_path, dataclasses.replace(plan, rate=1.0), answers, answers, table, (2,))
