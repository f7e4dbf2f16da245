"""Weights and activations in int8, by SmoothQuant (Xiao et al., 2023) as NVIDIA's ModelOpt does it.

Some channels of a layer's inputs are much larger than the others, so that one scale for all leaves those few codes.
Each channel is divided by a factor that its weights are multiplied with. How large inputs get is seen on real text.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from build_engines.errors import BuildError

TEXTS, TOKENS = 32, 256  # that inputs are seen on
# How much of the difficulty goes to the weights. The paper's 0.5 costs the default model 1.5 % of perplexity by its
# inputs alone, 0.65 1.4 %, 0.8 nothing: int8 for each column of the weights has room, one scale for all inputs has not.
ALPHA = 0.8
_MERGED = (("self_attn.qkv", ("q_proj", "k_proj", "v_proj")), ("self_attn.o_proj", ("o_proj",)),
           ("mlp.gate_up", ("gate_proj", "up_proj")))  # fmt: skip
# Single inputs of these are hundreds of times as large as the others, which no factor mends: with them in int8 the
# perplexity of the default model rises by 34 % and not by 2.5 %.
_LEFT_OUT = ("*down_proj*",)


class Smoothed(NamedTuple):
    """Of a linear layer's inputs."""

    factor: npt.NDArray[np.float32]  # [in], what they are multiplied with; the weights are divided by it already
    largest: float  # magnitude of those products


def calibration_texts(tokenizer: Any, path: Path | None = None) -> list[list[int]]:
    """`TEXTS` pieces of `TOKENS` token ids, from the file at `path` or else from definitions of the FOLDOC dictionary.

    Args:
        tokenizer: of the `tokenizers` package.

    Raises:
        BuildError: the file cannot be read, or is too short.
    """
    if path is None:
        from build_engines.drafting.foldoc import entries

        texts = [f"{head}: {definition}\n" for head, definition in entries()]
        source = "FOLDOC"
    else:
        try:
            texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise BuildError(f"calibration text {path}: {error}") from error
        source = str(path)
    ids = itertools.chain.from_iterable(tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    wanted = list(itertools.islice(ids, TEXTS * TOKENS))
    if len(wanted) < TEXTS * TOKENS:
        raise BuildError(f"calibration text {source} has {len(wanted)} tokens; {TEXTS * TOKENS} are needed")
    return [wanted[start : start + TOKENS] for start in range(0, len(wanted), TOKENS)]


def smooth(model: Any, texts: Sequence[Sequence[int]]) -> dict[str, Smoothed]:
    """Smooth the linear layers of a torch model, but not the LM head and down_proj; changes their weights.

    Args:
        model: of transformers, in float32.
        texts: token ids.

    Returns:
        By the names that build_engines.language_contract gives to layers; those that read the same input share theirs.
    """
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export.quant_utils import preprocess_linear_fusion

    def see(quantized: Any) -> None:
        with torch.inference_mode():
            for text in texts:
                quantized(torch.tensor([text]), use_cache=False)

    given = mtq.INT8_SMOOTHQUANT_CFG
    off = [{"quantizer_name": pattern, "enable": False} for pattern in _LEFT_OUT]
    config = {"quant_cfg": [*given["quant_cfg"], *off], "algorithm": {"method": "smoothquant", "alpha": ALPHA}}
    mtq.quantize(model, config, see)
    found = {}
    for index, layer in enumerate(model.model.layers):
        for name, parts in _MERGED:
            owner = layer.get_submodule(name.split(".")[0])
            linears = [owner.get_submodule(part) for part in parts]
            preprocess_linear_fusion(linears)
            inputs = linears[0].input_quantizer
            found[f"layers.{index}.{name}"] = Smoothed(inputs.pre_quant_scale.numpy(), float(inputs.amax))
    return found
