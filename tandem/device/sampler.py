"""Choice and acceptance for logits on the device: `tandem.sampling.choose` and `tandem.speculation.agreement` there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from tandem.device.acceptance import accept_kernel
from tandem.device.choice import choose_kernel
from tandem.device.penalties import penalize_kernel
from tandem.sampling import MAX_VOCAB, Choice, edits, kernel_arguments

BLOCK = 1024  # tokens that a program handles at a time
_FILL = -2  # in place of an end id where a sequence has fewer than others
Tokens = Sequence[Sequence[int]]


def choose(logits: torch.Tensor, choices: Sequence[Choice], block: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a token for every row of logits: the same as `tandem.sampling.choose`, on the logits' device.

    Args:
        logits: float32 [n, vocab], rows contiguous; changed in place where penalties or masks say so.
        choices: n of them.
        block: tokens a program handles at a time, a power of two.

    Returns:
        Token ids, int32 [n], -1 as there, and natural log-probabilities, float32 [n], 0 where not asked for.

    Raises:
        ValueError: shapes contradict each other, or a position is beyond the history.
    """
    count, vocab = logits.shape
    if count != len(choices) or not 0 < vocab <= MAX_VOCAB or logits.dtype != torch.float32 or logits.stride(1) != 1:
        raise ValueError(f"logits: {logits.dtype} {tuple(logits.shape)} does not fit {len(choices)} choices")
    for state, position in choices:
        if not 0 <= position <= len(state):
            raise ValueError(f"position: {position} is beyond the history of {len(state)} tokens")
    device = logits.device
    tokens = torch.empty(count, dtype=torch.int32, device=device)
    log_probs = torch.empty(count, dtype=torch.float32, device=device)
    if not count:
        return tokens, log_probs
    _edit(logits, choices, block)
    reals, integers, seeds = kernel_arguments(choices)
    choose_kernel[(count,)](
        logits.view(torch.int32),
        _on(device, reals),
        _on(device, integers),
        _on(device, seeds.view(np.int64)),
        torch.empty((count, vocab), dtype=torch.int32, device=device),
        torch.empty((count, vocab), dtype=torch.int64, device=device),
        tokens,
        log_probs,
        vocab,
        logits.stride(0),
        BLOCK=block,
        enable_fp_fusion=False,
    )
    return tokens, log_probs


def _edit(logits: torch.Tensor, choices: Sequence[Choice], block: int) -> None:
    """Apply penalties and masks."""
    changes = [edits(choice, logits.shape[1]) for choice in choices]
    sizes = [len(change.tokens) for change in changes]
    if not sum(sizes):
        return
    device = logits.device
    penalize_kernel[(-(-sum(sizes) // block),)](
        logits,
        _on(device, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)),
        _on(device, np.concatenate([change.tokens for change in changes])),
        _on(device, np.concatenate([change.counts for change in changes])),
        _on(device, np.stack([change.penalties for change in changes])),
        sum(sizes),
        logits.stride(0),
        BLOCK=block,
        enable_fp_fusion=False,
    )


def accept(chosen: torch.Tensor, drafts: Tokens, end_ids: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each sequence's draft is kept.

    Args:
        chosen: int32 [rows], of `choose`: for each sequence in turn a row for each draft and one more.
        drafts: of each sequence, the draft tokens that those rows verified.
        end_ids: of each sequence, the tokens behind which nothing follows.

    Returns:
        int32 [n] each: the drafts that are the choice, up to the first that is not; and how many of a sequence's
        chosen tokens are kept, which is one more, or fewer if an end, or a row without a choice, comes before.

    Raises:
        ValueError: there are more or fewer rows than drafts ask for.
    """
    sizes = [len(draft) + 1 for draft in drafts]
    if sum(sizes) != len(chosen) or len(end_ids) != len(drafts):
        raise ValueError(f"chosen: {len(chosen)} rows do not fit drafts that need {sum(sizes)}")
    device, count = chosen.device, len(drafts)
    accepted, lengths = (torch.empty(count, dtype=torch.int32, device=device) for _ in range(2))
    if not count:
        return accepted, lengths
    width = max(1, *(len(ids) for ids in end_ids))
    ends = np.array([[*ids, *[_FILL] * (width - len(ids))] for ids in end_ids], np.int32)
    accept_kernel[(count,)](
        chosen,
        _on(device, np.cumsum([0, *sizes]).astype(np.int32)),
        _on(device, np.array([token for draft in drafts for token in draft] or [_FILL], np.int32)),
        _on(device, ends),
        accepted,
        lengths,
        ENDS=width,
        BLOCK=1 << max(sizes).bit_length(),
    )
    return accepted, lengths


def _on(device: torch.device, array: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
