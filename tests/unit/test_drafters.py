"""Which drafter a target gets: a draft model before a head, and a head only where it fits."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from coordination import LocalTarget

from tandem.drafter_manifest import DrafterManifest
from tandem.drafters import HEAD_DIRECTORY, HeadDrafter, has_model_drafter, model_drafter_for
from tandem.executor_drafter import ExecutorDrafter
from tandem.manifest import Manifest, ManifestError
from tandem.recurrent_drafter import Proposal
from tandem.sampling import SamplingParams, SamplingState
from tandem.speculation import Drafts, DraftState
from tandem.step import OpenSequence

HIDDEN = 8


def manifest(name: str, tokenizer: str = "t" * 64, vocab: int = 32) -> Manifest:
    return Manifest(
        "language", name, "llama", name, "s", tokenizer, "int8", "f32", "f16", 64, "openvino", "1", vocab, 128, 1, (2,),
        False, "k", {},
    )  # fmt: skip


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """Engine directories of a target, which exists, and of a draft, which does not."""
    target = tmp_path / "target" / "engine"
    target.mkdir(parents=True)
    manifest("target").write(target)
    (target / "config.json").write_text(json.dumps({"hidden_size": HIDDEN}))
    return target, tmp_path / "draft" / "engine"


def head(target: Path, **changes: object) -> None:
    """Put a head beside a target; only its manifest is looked at."""
    directory = target.parent / HEAD_DIRECTORY
    directory.mkdir()
    from importlib import metadata

    made = DrafterManifest(
        "head", "w", "e", "t" * 64, "int8", 16, "openvino", metadata.version("openvino"), HIDDEN, 32, {}
    )
    dataclasses.replace(made, **changes).write(directory)  # type: ignore[arg-type]


def test_without_anything_there_is_no_drafter(directories: tuple[Path, Path]) -> None:
    assert not has_model_drafter(*directories)
    assert model_drafter_for(*directories, LocalTarget()) is None


def test_a_draft_model_is_taken_if_it_is_there(directories: tuple[Path, Path]) -> None:
    target, draft = directories
    head(target)
    draft.mkdir(parents=True)
    manifest("draft").write(draft)
    assert has_model_drafter(target, draft)
    assert isinstance(model_drafter_for(target, draft, LocalTarget()), ExecutorDrafter)


def test_a_draft_model_with_another_tokenizer_is_an_error(directories: tuple[Path, Path]) -> None:
    target, draft = directories
    draft.mkdir(parents=True)
    manifest("draft", tokenizer="u" * 64).write(draft)
    with pytest.raises(ManifestError, match=r"draft in .* cannot draft for target in .*tokenizers differ"):
        model_drafter_for(target, draft, LocalTarget())


def test_a_head_that_fits_is_found(directories: tuple[Path, Path]) -> None:
    head(directories[0])
    assert has_model_drafter(*directories)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer_sha256": "u" * 64}, "does not fit the target"),
        ({"vocab_size": 33}, "does not fit the target"),
        ({"hidden_size": 9}, "it goes on from 9 features, and the target has 8"),
        ({"runtime_version": "0"}, "was built for openvino"),
        ({"files": {"drafter.xml": "0"}}, "drafter.xml is missing"),
    ],
)
def test_a_head_that_does_not_fit_is_passed_over(
    directories: tuple[Path, Path], changes: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The user built another target: its head is an extra that is gone, and no reason not to serve."""
    head(directories[0], **changes)
    with caplog.at_level(logging.WARNING):
        assert not has_model_drafter(*directories)
        assert model_drafter_for(*directories, LocalTarget()) is None
    assert reason in caplog.text


class _Head:
    """Stands for `RecurrentDrafter`: proposes the position and notes what it was given."""

    def warm_up(self) -> None: ...

    def propose(self, features, tokens, positions, sampling, counts, goes_on) -> Proposal:  # type: ignore[no-untyped-def]
        self.given = (features.tolist(), tokens, positions)
        self.goes_on = goes_on
        return Proposal([[place] * n for place, n in zip(positions, counts, strict=True)], [[0.5] * n for n in counts])


def test_a_head_gets_features_newest_token_and_position() -> None:
    """A sequence that was fed again after a preemption has no features yet, and no drafts."""
    states = []
    for sequence, features in ((1, [1.0, 2.0]), (2, None), (3, [3.0, 4.0])):
        opened = OpenSequence(sequence, 2, SamplingParams(), "draft")
        state = DraftState(opened, SamplingState(opened.sampling, 2))
        state.sampling.append([5, 6, sequence])
        state.features = None if features is None else np.array(features, np.float32)
        states.append(state)
    fake = _Head()
    asked = []
    drafts = HeadDrafter(fake).propose(states, [2, 2, 1], lambda state, run: asked.append(state) is None)  # type: ignore[arg-type]
    assert fake.goes_on(1, [0.5])
    assert asked == [states[2]], "the second of those that are ready"
    assert drafts == [Drafts([3, 3], [0.5, 0.5]), Drafts([], []), Drafts([3], [0.5])]
    assert fake.given == ([[1.0, 2.0], [3.0, 4.0]], [1, 3], [3, 3])
