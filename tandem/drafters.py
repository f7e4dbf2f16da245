"""Which model drafts for a target: a smaller language model if an engine of one is there, else a head made for it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tandem.decoding import Target
from tandem.drafter_manifest import DrafterManifest
from tandem.executor_drafter import ExecutorDrafter
from tandem.manifest import FILE_NAME, Manifest, ManifestError
from tandem.recurrent_drafter import RecurrentDrafter
from tandem.speculation import Drafts, DraftState, GoesOn, ModelDrafter

HEAD_DIRECTORY = "drafter"  # beside the target's engine

log = logging.getLogger(__name__)


class HeadDrafter:
    """Implements `tandem.speculation.ModelDrafter`: a recurrent head goes on from the target's hidden states."""

    wants_features = True
    is_remote = False

    def __init__(self, head: RecurrentDrafter) -> None:
        self._head = head
        head.warm_up()

    def propose(
        self, states: Sequence[DraftState], counts: Sequence[int], goes_on: GoesOn | None = None
    ) -> list[Drafts]:
        """See `ModelDrafter.propose`. A sequence that was just fed again has no hidden state yet: no drafts."""
        drafts = [Drafts([], []) for _ in states]
        ready = [(index, state) for index, state in enumerate(states) if state.features is not None]
        if ready:
            proposal = self._head.propose(
                np.stack([state.features for _, state in ready if state.features is not None]),
                [int(state.sampling.history[-1]) for _, state in ready],
                [len(state.sampling) for _, state in ready],
                [state.opened.sampling for _, state in ready],
                [counts[index] for index, _ in ready],
                goes_on and (lambda row, confidences: goes_on(ready[row][1], confidences)),
            )
            for (index, _), tokens, confidences in zip(ready, proposal.tokens, proposal.confidences, strict=True):
                drafts[index] = Drafts(tokens, confidences)
        return drafts

    def close(self, state: DraftState) -> None:
        """Nothing is kept of a sequence."""


def has_model_drafter(target_directory: Path, draft_directory: Path) -> bool:
    """Whether `model_drafter_for` will find one."""
    return _is_built(draft_directory) or _head_of(target_directory) is not None


def model_drafter_for(target_directory: Path, draft_directory: Path, draft: Target) -> ModelDrafter | None:
    """The drafter for the engine in `target_directory`; None if there is none.

    Raises:
        ManifestError: the draft has another tokenizer than the target.
    """
    ours, head = Manifest.read(target_directory), _head_of(target_directory)
    if _is_built(draft_directory):
        theirs = Manifest.read(draft_directory)
        if ours.tokenizer_sha256 != theirs.tokenizer_sha256:
            raise ManifestError(
                f"{theirs.name} in {draft_directory} cannot draft for {ours.name} in {target_directory}: their "
                f"tokenizers differ (sha256 {theirs.tokenizer_sha256[:16]}... and {ours.tokenizer_sha256[:16]}...). "
                "Build a draft with the target's tokenizer, or remove the draft's engine directory"
            )
        return ExecutorDrafter(draft)
    return HeadDrafter(RecurrentDrafter(head)) if head else None


def _is_built(directory: Path) -> bool:
    return (directory / FILE_NAME).is_file()


def _head_of(target_directory: Path) -> Path | None:
    """The head beside a target's engine, if it is sound and was made for this model: it is an extra, so no error."""
    directory = target_directory.parent / HEAD_DIRECTORY
    if not _is_built(directory):
        return None
    try:
        manifest = DrafterManifest.load(directory)
        manifest.require_target(Manifest.read(target_directory))
        hidden = json.loads((target_directory / "config.json").read_text(encoding="utf-8")).get("hidden_size")
        if hidden != manifest.hidden_size:
            raise ManifestError(f"it goes on from {manifest.hidden_size} features, and the target has {hidden}")
    except (OSError, ValueError) as error:
        log.warning("the drafter in %s is not used: %s", directory, error)
        return None
    return directory
