"""A trained drafter as it is shipped: fp16 weights, the ids it can propose, and which target it belongs to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from build_engines.drafting import WEIGHTS_FILE
from build_engines.drafting.network import Network, Shape
from build_engines.errors import BuildError

CONFIG_FILE = "config.json"
ARCHITECTURE = "recurrent-swiglu"


@dataclass(frozen=True, slots=True)
class Drafter:
    """Weights, and what they were made for."""

    network: Network
    ids: npt.NDArray[np.int32]  # what it can propose, the most frequent first
    name: str
    embedding_sha256: str


def save(directory: Path, drafter: Drafter) -> None:
    """Write weights and configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().half().contiguous() for name, value in drafter.network.state_dict().items()}
    tensors["vocabulary"] = torch.from_numpy(drafter.ids.astype(np.int32))
    save_file(tensors, directory / WEIGHTS_FILE)
    config = {
        "architecture": ARCHITECTURE,
        "name": drafter.name,
        "hidden_size": drafter.network.shape.hidden,
        "inner_sizes": list(drafter.network.shape.inner),
        "vocabulary": len(drafter.ids),
        "target_embedding_sha256": drafter.embedding_sha256,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(directory: Path) -> Drafter:
    """Read what `save` wrote.

    Raises:
        BuildError: something is missing, damaged, or of another architecture.
    """
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise BuildError(f"{directory} holds no usable drafter: {error}") from None
    if config.get("architecture") != ARCHITECTURE:
        raise BuildError(f"{directory}: architecture {config.get('architecture')} is not {ARCHITECTURE}")
    network = Network(Shape(config["hidden_size"], tuple(config["inner_sizes"])))
    ids = tensors.pop("vocabulary").numpy()
    try:
        network.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise BuildError(f"{directory}: weights and configuration differ: {str(error).splitlines()[-1]}") from None
    return Drafter(network.eval(), ids, config["name"], config["target_embedding_sha256"])


def embedding_of(checkpoint: Path) -> tuple[torch.Tensor, str]:
    """The target's embedding, which is its LM head too, float32 [vocabulary, hidden], and its hash.

    Raises:
        BuildError: the checkpoint has a head of its own, or no embedding where Llama models have it.
    """
    path = checkpoint / "model.safetensors"
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        table = load_file(path)["model.embed_tokens.weight"].float()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BuildError(f"{checkpoint.name}: no embedding can be read: {error}") from None
    if not config.get("tie_word_embeddings"):
        raise BuildError(f"{checkpoint.name}: drafters need a target whose LM head is its embedding")
    return table, hashlib.sha256(table.numpy().tobytes()).hexdigest()
