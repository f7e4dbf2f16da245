"""Answers of the target on disk: the tokens, and for each the features that chose it.

A shard is a safetensors file with its own SHA-256 in the header, written in one go: it is there whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from build_engines.errors import BuildError


@dataclass(frozen=True, slots=True)
class Answers:
    """A number of answers, one after the other; answer i is `starts[i] : starts[i + 1]` of the other arrays."""

    tokens: npt.NDArray[np.int32]  # [N]
    features: npt.NDArray[np.float16]  # [N, hidden] the LM head's input at the position before the token
    starts: npt.NDArray[np.int32]  # [answers + 1]
    prompts: npt.NDArray[np.int32]  # [sum of their lengths] what was answered, one prompt after the other
    prompt_lengths: npt.NDArray[np.int32]  # [answers] tokens
    temperatures: npt.NDArray[np.float32]  # [answers] they were chosen with
    seeds: npt.NDArray[np.int64]  # [answers]

    def __len__(self) -> int:
        return len(self.prompt_lengths)


def write(path: Path, answers: Answers, source: str) -> None:
    """Store a shard; `source` names what it was made from, and is compared when it is read."""
    arrays = {name: getattr(answers, name) for name in Answers.__slots__}
    header = {"source": source, "sha256": _digest(arrays)}
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.write_bytes(save(arrays, header))
    partial.replace(path)


def read(path: Path, source: str | None = None) -> Answers:
    """Load a shard and check it.

    Raises:
        BuildError: it is damaged, or was made from something else than `source`.
    """
    try:
        with safe_open(path, "numpy") as file:
            header: Mapping[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in Answers.__slots__}
    except (SafetensorError, OSError, ValueError) as error:
        raise BuildError(f"{path} is damaged: {error}. Remove it; it is made again.") from None
    if header.get("sha256") != (found := _digest(arrays)):
        raise BuildError(f"{path} is damaged: expected sha256 {header.get('sha256')}, found {found}. Remove it.")
    if source is not None and header.get("source") != source:
        raise BuildError(
            f"{path} was made from {header.get('source')}, not from {source}: use another --data directory"
        )
    return Answers(**arrays)


def joined(parts: Sequence[Answers]) -> Answers:
    """All answers of several shards."""
    offsets = np.cumsum([0, *(len(part.tokens) for part in parts)])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    return Answers(
        tokens=np.concatenate([part.tokens for part in parts]),
        features=np.concatenate([part.features for part in parts]),
        starts=np.concatenate([*starts, offsets[-1:]]).astype(np.int32),
        prompts=np.concatenate([part.prompts for part in parts]),
        prompt_lengths=np.concatenate([part.prompt_lengths for part in parts]),
        temperatures=np.concatenate([part.temperatures for part in parts]),
        seeds=np.concatenate([part.seeds for part in parts]),
    )


def _digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(json.dumps([name, str(arrays[name].dtype), arrays[name].shape]).encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
