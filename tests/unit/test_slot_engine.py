"""The ONNX contract and the engine on it: logits equal to torch's, in any slots, however a text is cut into steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from architecture_cases import (
    CASES,
    DIFFERENT,
    EXACT,
    LENGTH,
    Case,
    control_model,
    distance,
    distance_in_chunks,
    sequence,
    torch_logits,
)
from tiny_models import VOCABULARY, config, random_model, save
from transformers import LlamaConfig

from build_engines.errors import BuildError
from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem.engines import Engine, EngineOptions, Row, load_engine
from tandem.engines import onnxruntime as session_module
from tandem.engines.pipeline import PipelineSession
from tandem.engines.slots import FEW_TOKENS, SlotEngine
from tandem.manifest import Manifest

SLOTS_LENGTH = 256
README = Path(__file__).parents[2] / "README.md"
EXPRESSIBLE = {name: case for name, case in CASES.items() if not name.startswith("gemma2")}
FP32 = Recipe("fp32", kv_cache="f32", runtime="onnxruntime", length=SLOTS_LENGTH)


@dataclass(frozen=True)
class Built:
    case: Case
    model: Any
    engine: Engine


def make(case: Case, directory: Path, recipe: Recipe = FP32) -> tuple[Any, Path]:
    """A model of torch, and the directory of its engine."""
    model = random_model(config(case.kind, **case.settings))
    build(resolve(str(save(model, directory / "checkpoint"))), directory / "engine", recipe)
    return model, directory / "engine"


@pytest.fixture(scope="module", params=EXPRESSIBLE)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case = CASES[request.param]
    model, directory = make(case, tmp_path_factory.mktemp(request.param))
    return Built(case, model, load_engine(directory, EngineOptions(kv_cache_mb=16)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return make(CASES["llama"], tmp_path_factory.mktemp("llama"))


def loaded(directory: Path, **options: Any) -> SlotEngine:
    engine = load_engine(directory, EngineOptions(**({"kv_cache_mb": 16} | options)))
    assert isinstance(engine, SlotEngine)
    return engine


# ------------------------------------------------------------------ equal to torch


def test_whole_text_in_one_pass_equals_torch_and_the_feature_matters(built: Built) -> None:
    tokens = sequence(1)
    found = built.engine.forward([Row(tokens, 0, [3], LENGTH)]).copy()
    assert distance(found, torch_logits(built.model, tokens)) < EXACT
    assert distance(found, torch_logits(control_model(built.case, built.model), tokens)) > DIFFERENT


def test_ragged_batch_in_chunks_equals_torch(built: Built) -> None:
    """Two texts in slots that are apart, in chunks of 1 to 49 tokens: together where short, one by one where long."""
    assert distance_in_chunks(built.engine, built.model) < EXACT


def test_rejected_tokens_leave_no_trace(built: Built) -> None:
    """Rollback is a smaller `past`: what was written beyond it is not seen."""
    tokens = sequence(4)
    built.engine.forward([Row(tokens[:60], 0, [1], 1)])
    built.engine.forward([Row(sequence(5, 8), 60, [1], 8)])
    found = built.engine.forward([Row(tokens[60:], 60, [1], 40)])
    assert distance(found, torch_logits(built.model, tokens)[60:]) < EXACT


def test_a_copied_prefix_goes_on_as_its_original(built: Built) -> None:
    tokens, other = sequence(6), sequence(7)
    built.engine.forward([Row(tokens[:70], 0, [0], 1)])
    assert isinstance(built.engine, SlotEngine)
    built.engine.copy_prefix(0, 4, 50)
    built.engine.forward([Row(other[:9], 70, [0], 1)])  # the original goes its own way
    found = built.engine.forward([Row(other, 50, [4], LENGTH)])
    assert distance(found, torch_logits(built.model, [*tokens[:50], *other])[50:]) < EXACT


def test_padding_does_not_touch_the_slots_between(llama: tuple[Any, Path]) -> None:
    """Slot 2 lies between those of a step, and is as full as a slot can be."""
    model, directory = llama
    engine = loaded(directory)
    tokens = sequence(8, SLOTS_LENGTH)
    engine.forward([Row(tokens[:-1], 0, [2], 0)])
    engine.forward([Row(sequence(9, FEW_TOKENS), 0, [1], 1), Row([5], 0, [3], 1)])
    found = engine.forward([Row(tokens[-1:], SLOTS_LENGTH - 1, [2], 1)])
    assert distance(found, torch_logits(model, tokens)[-1:]) < EXACT


def test_control_padding_at_the_beginning_of_a_slot_is_noticed(llama: tuple[Any, Path]) -> None:
    engine = loaded(llama[1])

    class Forgetful(list[int]):
        def __setitem__(self, *_: Any) -> None:
            pass

    engine._written = Forgetful(engine._written)
    tokens = sequence(8, SLOTS_LENGTH)
    engine.forward([Row(tokens[:-1], 0, [2], 0)])
    engine.forward([Row([5], 0, [1], 1), Row([5], 0, [3], 1)])
    found = engine.forward([Row(tokens[-1:], SLOTS_LENGTH - 1, [2], 1)])
    assert distance(found, torch_logits(llama[0], tokens)[-1:]) > EXACT


def test_features_are_what_the_head_sees(llama: tuple[Any, Path]) -> None:
    model, directory = llama
    engine = loaded(directory)
    logits = engine.forward([Row(sequence(1), 0, [0], 3), Row(sequence(2, 9), 0, [1], 2)])
    assert distance(engine.features @ model.lm_head.weight.detach().numpy().T, logits) < EXACT
    assert engine.features.shape == (5, model.config.hidden_size)


# ------------------------------------------------------------------ invariance


def answers(engine: SlotEngine, plan: list[int], beside: list[tuple[int, int]]) -> np.ndarray:
    """Logits of all tokens of one text in steps of `plan` tokens, beside rows of (past, tokens) in other slots."""
    tokens, past, found = sequence(10, sum(plan)), 0, []
    for index in range(len(beside)):
        engine.forward([Row(sequence(20 + index, 120), 0, [index + 2], 0)])
    for count in plan:
        others = [Row(sequence(30, size), at, [index + 2], 1) for index, (at, size) in enumerate(beside)]
        row = Row(tokens[past : past + count], past, [1], count)
        found.append(engine.forward([*others, row])[len(others) :].copy())
        past += count
    return np.concatenate(found)


PLANS = [
    ([90] + [1] * 30, [(100, 1)]),
    ([90] + [1] * 30, [(100, 1), (20, 9), (119, 3)]),
    ([30, 60] + [5] * 6, []),
    ([40, 50, 17, 3, 10], [(20, 9)]),
]


@pytest.mark.parametrize("weights", ["fp32", "int8", "w8a8", "int4"])
def test_logits_do_not_depend_on_the_step_bit_for_bit(weights: str, tmp_path: Path) -> None:
    """Alone, in a batch, with drafts, and with the prompt in other chunks."""
    calibration = README if weights == "w8a8" else None
    recipe = Recipe(weights, runtime="onnxruntime", length=SLOTS_LENGTH, calibration=calibration)
    directory = make(CASES["qwen3"], tmp_path, recipe)[1]
    engine = loaded(directory)
    expected = answers(engine, [90] + [1] * 30, [])
    for plan, beside in PLANS:
        np.testing.assert_array_equal(answers(engine, plan, beside), expected)
    if weights == "int8":  # the control: with kernels for single rows it does not hold
        engine = loaded(directory, invariance="off")
        expected = answers(engine, [90] + [1] * 30, [])
        assert any((answers(engine, plan, beside) != expected).any() for plan, beside in PLANS)


# ------------------------------------------------------------------ building and loading


@pytest.mark.parametrize(("stages", "weights"), [(2, "fp32"), (3, "int8")])
def test_a_pipeline_gives_the_bits_of_the_whole(stages: int, weights: str, tmp_path: Path) -> None:
    """Ragged steps, a copied prefix and features too: the stages work on the same slots."""
    recipe = dataclasses.replace(FP32, weights=weights)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    _, single = make(CASES["qwen2-window"], whole, recipe)
    _, divided = make(CASES["qwen2-window"], parts, dataclasses.replace(recipe, stages=stages))
    engines = [loaded(single), loaded(divided, kv_cache_mb=24)]
    assert isinstance(engines[1]._session, PipelineSession)
    assert len(list(divided.glob("model.?.onnx"))) == stages
    assert not (divided / "model.onnx").exists()
    tokens, other = sequence(4), sequence(5)
    found = []
    for engine in engines:
        first = engine.forward([Row(tokens[:50], 0, [0], 2), Row(other[:9], 0, [2], 9)]).copy()
        engine.copy_prefix(0, 1, 33)
        second = engine.forward([Row(other[20:25], 33, [1], 5), Row(tokens[50:53], 50, [0], 3)]).copy()
        found.append((first, second, engine.features.copy()))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_has_no_more_stages_than_layers(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="7 stages: this model of 4 layers can have 1 to 4"):
        make(CASES["llama"], tmp_path, dataclasses.replace(FP32, stages=7))


def test_what_the_contract_cannot_express_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"attn_logit_softcapping 5.0.*--runtime openvino"):
        make(CASES["gemma2"], tmp_path)
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(BuildError, match=r"rope_type dynamic .*--runtime openvino"):
        make(Case(LlamaConfig, {"rope_parameters": rope}, {}), tmp_path / "dynamic")


def test_the_manifest_says_what_was_built(llama: tuple[Any, Path]) -> None:
    manifest = Manifest.load(llama[1])
    assert (manifest.runtime, manifest.runtime_version) == ("onnxruntime", session_module.ort.__version__)
    assert (manifest.activations, manifest.kv_cache, manifest.context_length) == ("f32", "f32", SLOTS_LENGTH)
    assert loaded(llama[1]).block_size == SLOTS_LENGTH


def test_weights_lie_beside_the_graph(llama: tuple[Any, Path]) -> None:
    graph = onnx.load(llama[1] / "model.onnx", load_external_data=False)
    assert (llama[1] / "model.onnx").stat().st_size < 200_000
    assert (llama[1] / "model.onnx.data").stat().st_size > 4 * VOCABULARY * 64
    assert {node.op_type for node in graph.graph.node} >= {"TensorScatter", "Attention", "RMSNormalization"}
    assert not any(node.domain for node in graph.graph.node), "only nodes that both runtimes have"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_mb": 1}, "kv_cache_mb 1 is too little: two slots of 320 positions"),
        ({"activations": "bf16"}, "activations bf16: this engine was built with f32"),
        ({"kv_cache": "u8"}, "kv_cache u8: this engine was built with f32"),
        ({"invariance": "row"}, "invariance 'row' is not one of off, step"),
    ],
)
def test_options_that_cannot_be_are_refused(llama: tuple[Any, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded(llama[1], **options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": "bf16"}, "bf16 weights are not built for onnxruntime; choose one of fp32, fp16, int8, w8a8, int4"),
        ({"weights": "int4", "zero_points": "none"}, "none zero points are for openvino only; choose float"),
        ({"kv_cache": "u8"}, "a KV cache in u8 is for openvino only; choose f32 or f16"),
        ({"length": 100}, "max length 100: it must be a multiple of 64"),
        ({"runtime": "openvino", "stages": 2}, "2 stages: openvino engines have one"),
        ({"runtime": "onnx"}, "runtime onnx is not known; choose one of openvino, onnxruntime, tensorrt"),
    ],
)
def test_recipes_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        Recipe(**({"weights": "fp32", "runtime": "onnxruntime"} | wrong))
