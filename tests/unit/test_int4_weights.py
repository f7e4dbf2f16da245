"""4 bits with a scale and a minimum: what was published so stays as it is, on every runtime that has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architecture_cases import CASES, distance, sequence, torch_logits
from tiny_models import config, random_model, save

from build_engines.int4_weights import packed, quantize
from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem.engines import EngineOptions, Row, load_engine

GROUP = 32
# Random weights multiply every difference: zero points are in fp16 on OpenVINO, and ONNX Runtime quantizes activations.
NEAR, FAR = 0.15, 0.5


def in_4_bits(weight: np.ndarray) -> np.ndarray:
    """The weight as GGUF's Q4_1 would have it: scale and minimum in fp16, the lowest and the highest code in use."""
    grouped = weight.reshape(len(weight), -1, GROUP)
    least = grouped.min(-1, keepdims=True).astype(np.float16).astype(np.float32)
    scale = ((grouped.max(-1, keepdims=True) - least) / 15).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint((grouped - least) / scale), 0, 15)
    return (codes * scale + least).reshape(weight.shape)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model whose linear layers are in Q4_1, its LM head in 8 bits as engines have it, and its checkpoint."""
    case = CASES["llama"]
    model = random_model(config(case.kind, **case.settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.copy_(torch.from_numpy(in_4_bits(parameter.numpy())))
        table = model.get_input_embeddings().weight
        table.copy_(torch.randint(-127, 128, table.shape, generator=torch.Generator().manual_seed(1)) / 300)
        table[:, 0] = 127 / 300  # the scale of every row
    return model, save(model, tmp_path_factory.mktemp("published") / "checkpoint")


def test_codes_scale_and_minimum_give_back_what_was_in_4_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(24, 96)).astype(np.float32)
    coarse = in_4_bits(weight)
    codes, scale, minimum = quantize(coarse, GROUP)
    np.testing.assert_allclose((codes * scale + minimum).reshape(coarse.shape), coarse, rtol=0, atol=1e-6)
    assert (codes.min(), codes.max()) == (0, 15)
    codes, scale, minimum = quantize(weight, GROUP)
    error = np.abs((codes * scale + minimum).reshape(weight.shape) - weight)
    assert error.max() <= scale.max() * 0.501
    assert error.max() > scale.max() * 0.4, "4 bits are not enough for this one"


def test_a_group_of_equal_weights_is_kept() -> None:
    codes, scale, minimum = quantize(np.full((2, 64), 0.25, np.float32), GROUP)
    np.testing.assert_array_equal(codes * scale + minimum, 0.25)


def test_two_codes_to_a_byte() -> None:
    assert packed(np.array([[1, 2], [15, 0]], np.uint8)).tolist() == [0x21, 0x0F]


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("zero_points", "is_exact"), [("float", True), ("integer", False)])
def test_an_engine_of_what_was_published_in_4_bits(
    published: tuple[Any, Path], tmp_path: Path, runtime: str, zero_points: str, is_exact: bool
) -> None:
    """Near full precision; the control, with zero points that are codes, is not."""
    if runtime == "onnxruntime" and not is_exact:
        pytest.skip("ONNX engines have no integer zero points")
    model, checkpoint = published
    recipe = Recipe(
        "int4", GROUP, zero_points, kv_cache="f32", dynamic_quantization_group=0, runtime=runtime, length=256
    )
    build(resolve(str(checkpoint)), tmp_path / "engine", recipe)
    engine = load_engine(tmp_path / "engine", EngineOptions(kv_cache_mb=16))
    tokens = sequence(1)
    blocks = [0] if runtime == "onnxruntime" else range(-(-len(tokens) // engine.block_size))
    found = engine.forward([Row(tokens, 0, blocks, len(tokens))])
    difference = distance(found, torch_logits(model, tokens))
    assert difference < NEAR if is_exact else difference > FAR
