"""Every supported architecture as a tiny model with random weights, and what torch says to a text.

What tells the architectures apart is active in them: sliding windows shorter than the text, softcapping that
saturates, two rotary bases, scaled rotary frequencies, normalized queries and keys, shared and separate embeddings, one
to four query heads per key head. For each there is a control: the same weights without that feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tiny_models import VOCABULARY, config, neutral
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tandem.engines import Engine, Row

LENGTH = 100
# Largest difference seen is 1e-5 of the largest logit; without the feature in question it is above 2e-2.
EXACT, DIFFERENT = 1e-4, 1e-2


@dataclass(frozen=True)
class Case:
    kind: Callable[..., PretrainedConfig]
    settings: dict[str, Any]
    without: dict[str, Any] | str
    """The control: other settings, or a part of the names of weights that are set to their neutral value."""


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 500000.0}
ONE_ROPE = {kind: {"rope_type": "default", "rope_theta": 1e6} for kind in ("full_attention", "sliding_attention")}
GEMMA2 = {"sliding_window": 16, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}
CASES = {
    "llama": Case(LlamaConfig, {"num_key_value_heads": 4, "tie_word_embeddings": False}, "norm"),
    "llama3-rope": Case(
        LlamaConfig, {"num_key_value_heads": 1, "rope_parameters": LLAMA3_ROPE}, {"rope_parameters": PLAIN_ROPE}
    ),
    "mistral": Case(MistralConfig, {"sliding_window": 16, "tie_word_embeddings": False}, {"sliding_window": None}),
    "qwen2": Case(Qwen2Config, {}, "bias"),
    "qwen2-window": Case(
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": False},
    ),
    "qwen3": Case(Qwen3Config, {"head_dim": 32}, "q_norm"),
    "gemma2": Case(
        Gemma2Config,
        GEMMA2 | {"final_logit_softcapping": 20.0},
        {"attn_logit_softcapping": None},
    ),
    "gemma2-window": Case(
        Gemma2Config, GEMMA2, {"sliding_window": 512}
    ),
    "gemma3_text": Case(
        Gemma3TextConfig, {"num_hidden_layers": 6, "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32},
        {"rope_parameters": ONE_ROPE}
    ),
}  # fmt: skip


def control_model(case: Case, model: Any) -> Any:
    """The same weights without the feature."""
    changes = case.without if isinstance(case.without, dict) else {}
    settings = config(case.kind, **(case.settings | changes))
    other = AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    other.load_state_dict(model.state_dict())
    if isinstance(case.without, str):
        for name, parameter in other.named_parameters():
            if case.without in name:
                torch.nn.init.constant_(parameter, neutral(other.config, name))
    return other.eval()


def torch_logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def sequence(seed: int, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference in units of the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def distance_in_chunks(engine: Engine, model: Any) -> float:
    """From torch, of two texts in slots or blocks that are apart, in ragged steps of 1 to 49 tokens of each."""
    texts = (sequence(2), sequence(3, 70))
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    done = [0, 0]
    for chunk in ((30, 5), (1, 20), (3, 1), (17, 9), (49, 35)):
        rows = [
            Row(text[past : past + count], past, [slot], count)
            for text, past, count, slot in zip(texts, done, chunk, (5, 2), strict=True)
        ]
        logits = engine.forward(rows).copy()
        parts[0].append(logits[: chunk[0]])
        parts[1].append(logits[chunk[0] :])
        done = [past + count for past, count in zip(done, chunk, strict=True)]
    return max(
        distance(np.concatenate(found), torch_logits(model, text)) for text, found in zip(texts, parts, strict=True)
    )
