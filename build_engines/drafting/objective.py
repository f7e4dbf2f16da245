"""What a drafter is trained for, over a choice of candidate tokens, and how well it does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from build_engines.drafting.network import Network

STEP_WEIGHTS = (1.0, 0.8, 0.6, 0.5, 0.4)  # later drafts count only where the earlier ones were accepted
REGRESSION = 0.1  # weight of the distance to the target's own features, after EAGLE (Li et al., 2024)
TEMPERATURE = 0.8  # at which acceptance is maximized


def unrolled(network: Network, features: torch.Tensor, embeddings: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """States of `steps` steps from every position of windows; all states but the first are the drafter's own.

    Args:
        features: float [windows, length + steps, hidden].
        embeddings: the same, of the tokens that these features chose.

    Returns:
        `steps` tensors [windows, length, hidden]; number j predicts the token j + 1 after the one it started from.
    """
    length = features.shape[1] - steps
    state = network.start(features[:, :length])
    states = []
    for step in range(steps):
        state = network(state, embeddings[:, step : step + length])
        states.append(state)
    return states


def loss(
    states: Sequence[torch.Tensor], features: torch.Tensor, head: torch.Tensor, scale: torch.Tensor,
    valid: Sequence[torch.Tensor], acceptance: bool,
) -> torch.Tensor:  # fmt: skip
    """Mean loss per position, summed over steps.

    Args:
        states: of `unrolled`.
        features: as for `unrolled`.
        head: float [candidates, hidden], rows of the LM head.
        scale: float [hidden], `Network.scale`.
        valid: per step bool [windows, length], False where the answer is over.
        acceptance: minimize `-log sum min(p, q)`, what shared noise accepts at least, instead of the KL divergence.
    """
    length = states[0].shape[1]
    with torch.no_grad():
        target = F.linear(features[:, 1:], head).float()
        scaled = features / scale
    scaled_head = head * scale
    total = states[0].new_zeros(())
    for step, state in enumerate(states):
        logits = F.linear(state, scaled_head).float()
        each = distance(logits, target[:, step : step + length], acceptance)
        if not acceptance:
            each = each + REGRESSION * feature_distance(state, scaled[:, step + 1 : step + 1 + length])
        total = total + STEP_WEIGHTS[step] * (each * valid[step]).sum() / valid[step].sum().clamp_min(1)
    return total


def distance(logits: torch.Tensor, target: torch.Tensor, acceptance: bool) -> torch.Tensor:
    """How far a drafter's logits are from the target's, float [..., candidates], at each place [...].

    The KL divergence (but for the target's entropy); or, for `acceptance`, the mean of `-log sum min(p, q)` at
    `TEMPERATURE` and of the cross-entropy with the target's greedy token.
    """
    flat = logits.flatten(0, -2)
    if not acceptance:
        p = target.softmax(-1).flatten(0, -2)
        return F.cross_entropy(flat, p, reduction="none").view(logits.shape[:-1])
    p, q = (target / TEMPERATURE).softmax(-1), (logits / TEMPERATURE).softmax(-1)
    sampled = -torch.minimum(p, q).sum(-1).clamp_min(1e-6).log()
    greedy = F.cross_entropy(flat, target.argmax(-1).flatten(), reduction="none").view_as(sampled)
    return 0.5 * (sampled + greedy)


def feature_distance(scaled: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over the features of the smooth distance; both [..., hidden] and scaled to the same size."""
    return F.smooth_l1_loss(scaled.float(), target.float(), reduction="none").mean(-1)


@torch.no_grad()
def agreement(
    states: Sequence[torch.Tensor], features: torch.Tensor, head: torch.Tensor, scale: torch.Tensor,
    valid: Sequence[torch.Tensor],
) -> list[float]:  # fmt: skip
    """Share of positions whose most likely token is the target's, per step, among those where all earlier ones were.

    Arguments as for `loss`; `head` should hold the whole vocabulary of the drafter.
    """
    length = states[0].shape[1]
    best = torch.stack([(window @ head.T).argmax(-1) for window in features[:, 1:]])
    accepted = torch.ones_like(valid[0])
    shares = []
    for step, state in enumerate(states):
        drafted = torch.stack([((window * scale) @ head.T).argmax(-1) for window in state])
        reached = accepted & valid[step]
        accepted = reached & (drafted == best[:, step : step + length])
        shares.append(float(accepted.sum() / reached.sum().clamp_min(1)))
    return shares
