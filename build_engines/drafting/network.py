"""The drafter as torch computes it: a recurrent head on the target's last hidden state.

After ReDrafter (Cheng et al., "Recurrent Drafter for Fast Speculative Decoding in Large Language Models", 2024) and
Hydra (Ankner et al., "Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding", 2024). With h the input of the
target's LM head at the position that chose the newest token, e(t) the target's embedding of token t, and per-feature
scales c measured on the training data:

    s_0 = h / c
    x_j = [norm(s_j), norm(e(t_{j+1}))]
    s_{j+1} = s_j + A x_j + block(x_j),    logits of draft token j + 1 = W (c * s_{j+1})

W are the rows of the target's LM head for a part of its vocabulary, frozen as e is. A starts from a ridge regression of
the next features; the first block is a SwiGLU, and blocks after it see the state alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a drafter."""

    hidden: int  # of the target
    inner: tuple[int, ...]  # width of each block

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Block(nn.Module):
    """RMS norm, then SwiGLU; `inputs` features in, `hidden` out."""

    def __init__(self, inputs: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, inner, bias=False)
        self.up = nn.Linear(inputs, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        inner = F.dropout(F.silu(self.gate(x)) * self.up(x), dropout, self.training)
        result: torch.Tensor = self.down(inner)
        return result


class Network(nn.Module):
    """One step: state float [n, hidden] and embedding float [n, hidden] to the next state.

    `dropout` applies in training mode only.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.dropout = dropout
        self.state_norm = nn.Parameter(torch.ones(shape.hidden))
        self.token_norm = nn.Parameter(torch.ones(shape.hidden))
        self.later_norms = nn.ParameterList([nn.Parameter(torch.ones(shape.hidden)) for _ in shape.inner[1:]])
        self.linear = nn.Linear(2 * shape.hidden, shape.hidden, bias=False)
        inputs = [2 * shape.hidden, *(shape.hidden for _ in shape.inner[1:])]
        self.blocks = nn.ModuleList(
            Block(width, inner, shape.hidden) for width, inner in zip(inputs, shape.inner, strict=True)
        )
        self.register_buffer("scale", torch.ones(shape.hidden))

    def start(self, features: torch.Tensor) -> torch.Tensor:
        """The state before the first step, from what the LM head saw."""
        return features / self.scale

    def inputs(self, state: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """What `linear` and the first block see, [n, 2 * hidden]."""
        return torch.cat([_normed(state, self.state_norm), _normed(embedding, self.token_norm)], dim=-1)

    def forward(self, state: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        both = F.dropout(self.inputs(state, embedding), self.dropout, self.training)
        state = state + self.linear(both) + self.blocks[0](both, self.dropout)
        for block, weight in zip(list(self.blocks)[1:], self.later_norms, strict=True):
            state = state + block(_normed(state, weight), self.dropout)
        return state

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight
