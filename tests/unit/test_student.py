"""A student: its layers are the target's, its batches line up, it learns, it resumes, it is an ordinary model."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from table_engine import TableEngine
from transformers import AutoModelForCausalLM, LlamaConfig

from build_engines.drafting import evaluation, student
from build_engines.drafting.answers import Question, answer
from build_engines.drafting.shards import Answers
from build_engines.drafting.student import Batches, StudentPlan, train
from build_engines.errors import BuildError

PLAN = StudentPlan(layers=2, rows=4, vocabulary=64, candidates=64, rate=2e-3, total_steps=60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = tiny_models.config(LlamaConfig, num_hidden_layers=4, initializer_range=0.2)
    return tiny_models.save(tiny_models.random_model(settings), tmp_path_factory.mktemp("student") / "target")


@pytest.fixture(scope="module")
def target(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
@torch.no_grad()
def answers(target: Any) -> Answers:
    """Greedy answers of the target, with what its LM head saw."""
    source = np.random.default_rng(0)
    prompts, tokens, features, starts, lengths = [], [], [], [0], []
    for index in range(12):
        prompt = source.integers(3, 60, 3 + index % 4).tolist()
        history = list(prompt)
        for _ in range(8 + index % 5):
            hidden = target.model(torch.tensor([history])).last_hidden_state[0, -1]
            features.append(hidden.numpy())
            history.append(int(target.lm_head(hidden).argmax()))
            tokens.append(history[-1])
        prompts += prompt
        lengths.append(len(prompt))
        starts.append(len(tokens))
    return Answers(
        np.array(tokens, np.int32), np.array(features, np.float16), np.array(starts, np.int32),
        np.array(prompts, np.int32), np.array(lengths, np.int32), np.zeros(12, np.float32), np.arange(12),
    )  # fmt: skip


@torch.no_grad()
def test_batches_line_up_with_what_the_target_saw(target: Any, answers: Answers) -> None:
    """The target itself, in the student's place, sees in a batch the stored features and chooses the stored tokens."""
    batch = Batches(answers, seed=1, rows=4).draw(3)
    hidden = student._hidden(target, batch)
    torch.testing.assert_close(hidden, batch.features, rtol=2e-3, atol=2e-3)  # they were stored in fp16
    assert torch.equal(target.lm_head(hidden).argmax(-1), batch.answers)
    assert student.agreement(target, Batches(answers, 1, 4), len(answers)) > 0.98
    again = Batches(answers, seed=1, rows=4).draw(3)
    assert torch.equal(batch.tokens, again.tokens)


def test_a_student_starts_from_layers_at_even_distances(checkpoint: Path, target: Any) -> None:
    for layers, kept in ((1, [3]), (2, [0, 3]), (3, [0, 2, 3])):
        model = student._begin(checkpoint, dataclasses.replace(PLAN, layers=layers)).model
        assert model.config.num_hidden_layers == layers
        for own, theirs in enumerate(kept):
            expected = target.model.layers[theirs].self_attn.q_proj.weight
            assert torch.equal(model.model.layers[own].self_attn.q_proj.weight, expected)
    for layers in (0, 4):
        with pytest.raises(BuildError, match=f"of {layers} layers: the target has 4"):
            student._begin(checkpoint, dataclasses.replace(PLAN, layers=layers))


def test_a_student_learns_and_is_saved_as_an_ordinary_model(
    checkpoint: Path, answers: Answers, target: Any, tmp_path: Path
) -> None:
    before = student.agreement(student._begin(checkpoint, PLAN).model, Batches(answers, 1, 4), len(answers))
    state = train(tmp_path / "work", PLAN, answers, answers, checkpoint, (2,))
    assert state.agreement[0] > before + 0.2
    student.save(tmp_path / "model", state.model, checkpoint)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert student.agreement(loaded, Batches(answers, 1, 4), len(answers)) == pytest.approx(
        state.agreement[0], abs=0.03
    )
    assert torch.equal(loaded.get_input_embeddings().weight, target.get_input_embeddings().weight.half().float())
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def test_an_interrupted_training_ends_with_the_same_weights(
    checkpoint: Path, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(PLAN, total_steps=12)
    whole = train(tmp_path / "whole", plan, answers, answers, checkpoint, (2,))
    step, done = student._step, []

    def interrupted(*arguments: Any) -> float:
        done.append(step(*arguments))
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return done[-1]

    monkeypatch.setattr(student, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="checkpoint of step 5 is kept"):
        train(tmp_path / "parts", plan, answers, answers, checkpoint, (2,))
    resumed = train(tmp_path / "parts", plan, answers, answers, checkpoint, (2,))
    assert len(done) == 12
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    with pytest.raises(BuildError, match="other settings"):
        train(tmp_path / "parts", dataclasses.replace(plan, rate=1.0), answers, answers, checkpoint, (2,))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_that_is_the_target_is_always_accepted(temperature: float) -> None:
    """And one that is another is not: the acceptance is that of the model, prompt and noise included."""
    engine = FeatureEngine(num_blocks=400)
    questions = [Question([index, 1, 2], temperature, index, 20) for index in range(6)]
    answers = next(part for _, part in answer(engine, questions, 6, (), lambda done: None))
    told: list[int] = []
    same = evaluation.acceptance_of_model(TableEngine(), answers, told.append)
    assert same.rates == [1.0] * evaluation.DEPTH
    assert same.lengths[0] > 0.9
    assert sum(told) == same.tokens == len(answers.tokens)
    shifted = dataclasses.replace(answers, prompts=answers.prompts[::-1].copy())
    other = evaluation.acceptance_of_model(TableEngine(), shifted, told.append)
    assert other.rates[0] < 0.5


class FeatureEngine(TableEngine):
    """A table engine whose features are the last logits."""

    def forward(self, rows, width=0):  # type: ignore[no-untyped-def]
        self.features = super().forward(rows, width)
        return self.features
