"""Checkpoints with random weights, small enough to build an engine from in two seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PretrainedConfig

VOCABULARY = 512


def config(kind: Callable[..., PretrainedConfig], **changes: Any) -> PretrainedConfig:
    """A configuration of some 0.1 to 0.3 million weights; `changes` win."""
    tiny = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.3,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    return kind(**(tiny | changes))


def random_model(settings: PretrainedConfig) -> Any:
    """A model in fp32 with eager attention, the same one for the same settings."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms and biases start at 1 and 0, where a mistake in them would not show
            torch.nn.init.normal_(parameter, neutral(settings, name), 0.3)
    return model


def neutral(settings: PretrainedConfig, name: str) -> float:
    """The value at which a bias or norm does nothing; Gemma adds 1 to the weights of its norms."""
    return 0.0 if "bias" in name or "gemma" in settings.model_type else 1.0


def save(model: Any, directory: Path) -> Path:
    """Write model and tokenizer in the layout of Hugging Face."""
    model.save_pretrained(directory)
    tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def tokenizer() -> Tokenizer:
    """A token for every byte, no merges."""
    alphabet = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made
