"""Weights and activations in int8, by SmoothQuant (Xiao et al., 2023) as NVIDIA's ModelOpt does it.

Some channels of a layer's inputs are much larger than the others, so that one scale for all leaves those few codes.
Each channel is divided by a factor that its weights are multiplied with. How large inputs get is seen on real text, and
so is how much of the difficulty the weights of each layer take best.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from build_engines.errors import BuildError

TEXTS, TOKENS = 32, 256  # that inputs are seen on
# Shares of the difficulty that go to the weights; layers differ in which is best. ModelOpt's one for all cost the
# default model 1.3 % of perplexity at best, and 2.5 % with the paper's 0.5, in part because it leaves layers that read
# the same input, and get one factor, the input's scale of their own.
ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_EVERY = 16  # of so many tokens one is looked at to choose
_MOST = 127  # of an int8 code
_MERGED = (("self_attn.qkv", ("q_proj", "k_proj", "v_proj")), ("self_attn.o_proj", ("o_proj",)),
           ("mlp.gate_up", ("gate_proj", "up_proj")))  # fmt: skip
# Single inputs of these are hundreds of times as large as the others, which no factor mends: with them in int8 the
# perplexity of the default model rose by 34 % (with one share of 0.5 for all layers).
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
    from modelopt.torch.export.quant_utils import _update_pre_quant_scale

    def see(quantized: Any) -> None:
        with torch.inference_mode():
            for text in texts:
                quantized(torch.tensor([text]), use_cache=False)

    groups = {
        f"layers.{index}.{name}": [layer.get_submodule(f"{name.split('.')[0]}.{part}") for part in parts]
        for index, layer in enumerate(model.model.layers)
        for name, parts in _MERGED
    }
    inputs = _inputs(groups, lambda: see(model))
    given = mtq.INT8_SMOOTHQUANT_CFG
    off = [{"quantizer_name": pattern, "enable": False} for pattern in _LEFT_OUT]
    mtq.quantize(model, {"quant_cfg": [*given["quant_cfg"], *off], "algorithm": given["algorithm"]}, see)
    found = {}
    for name, linears in groups.items():
        with torch.no_grad():
            factor = _best_factor(linears, inputs[name])
            largest = (linears[0].input_quantizer._amax_for_smoothing * factor).max()
            for linear in linears:
                _update_pre_quant_scale(linear, factor)
                linear.input_quantizer.amax = largest  # ModelOpt leaves that of its own factor
        found[name] = Smoothed(factor.numpy(), float(largest))
    return found


def _inputs(groups: Mapping[str, list[Any]], run: Callable[[], None]) -> dict[str, Any]:
    """What the layers of each group read while `run` runs the model, one token in `_EVERY`: tensors [tokens, in]."""
    import torch

    seen: dict[str, list[Any]] = {name: [] for name in groups}

    def keep(name: str) -> Callable[[Any, Any], None]:
        return lambda module, given: seen[name].append(given[0].flatten(0, -2)[::_EVERY].clone())

    hooks = [linears[0].register_forward_pre_hook(keep(name)) for name, linears in groups.items()]
    run()
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _best_factor(linears: Sequence[Any], inputs: Any) -> Any:
    """The factor [in], of those that `ALPHAS` give, with which the layers' products in int8 are nearest to exact."""
    import torch

    weight = torch.cat([linear.weight * linear.input_quantizer.pre_quant_scale for linear in linears])  # as it was
    columns, largest = weight.abs().amax(0), linears[0].input_quantizer._amax_for_smoothing.flatten()
    exact = inputs @ weight.T

    def factor(alpha: float) -> Any:
        made = (columns ** (1 - alpha) / largest**alpha).clamp(1e-4, 1e4)
        return torch.where(largest > torch.finfo(largest.dtype).tiny, made, torch.ones_like(made))

    def error(made: Any) -> float:
        step = (largest * made).max() / _MOST
        codes = (inputs * made / step).round().clamp(-_MOST - 1, _MOST)
        smoothed = weight / made
        steps = (smoothed.abs().amax(1, keepdim=True) / _MOST).clamp(min=torch.finfo(weight.dtype).tiny)
        return float(((codes * step) @ ((smoothed / steps).round() * steps).T - exact).square().mean())

    return min(map(factor, ALPHAS), key=error)
