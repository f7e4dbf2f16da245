"""int8 activations: inputs with outliers keep their meaning, and the text they are calibrated on is checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from architecture_cases import CASES, torch_logits
from tiny_models import config, random_model, save, tokenizer

from build_engines import language_onnx
from build_engines.errors import BuildError
from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.smooth_quant import Smoothed, calibration_texts, smooth
from build_engines.source import resolve
from tandem.engines import EngineOptions, Row, load_engine

TEXT = Path(__file__).parents[2] / "README.md"
RECIPE = Recipe("w8a8", kv_cache="f32", runtime="onnxruntime", length=256, calibration=TEXT)
NORMS = {"input_layernorm": ("self_attn", "q", "k", "v"), "post_attention_layernorm": ("mlp", "gate", "up")}
OUTLIER, TIMES, LAYERS = 7, 60, 2


def readers(layer: Any, norm: str) -> list[Any]:
    owner, *parts = NORMS[norm]
    return [layer.get_submodule(f"{owner}.{part}_proj") for part in parts]


def with_outliers() -> Any:
    """One of the inputs behind each norm is 60 times as large as it was, and what it is multiplied with as small."""
    case = CASES["llama"]
    model = random_model(config(case.kind, **(case.settings | {"num_hidden_layers": LAYERS})))
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in NORMS:
                layer.get_submodule(norm).weight[OUTLIER] *= TIMES
                for linear in readers(layer, norm):
                    linear.weight[:, OUTLIER] /= TIMES
    return model


def unsmoothed(model: Any, texts: Sequence[Sequence[int]]) -> dict[str, Smoothed]:
    """What int8 is without SmoothQuant: one scale for inputs as they are."""
    names = {"q_proj": "self_attn.qkv", "o_proj": "self_attn.o_proj", "gate_proj": "mlp.gate_up"}
    found: dict[str, Smoothed] = {}

    def see(name: str) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            largest = max(float(inputs[0].abs().max()), found[name].largest if name in found else 0.0)
            found[name] = Smoothed(np.ones(inputs[0].shape[-1], np.float32), largest)

        return hook

    for index, layer in enumerate(model.model.layers):
        for path, module in layer.named_modules():
            if (end := path.split(".")[-1]) in names:
                module.register_forward_pre_hook(see(f"layers.{index}.{names[end]}"))
    with torch.inference_mode():
        for text in texts:
            model(torch.tensor([text]))
    return found


def away(engine: Path, model: Any) -> float:
    """How far an engine's logits are from those of torch: root mean square, in units of their standard deviation."""
    tokens = calibration_texts(tokenizer(), TEXT)[-1][:100]
    found = load_engine(engine, EngineOptions(kv_cache_mb=16)).forward([Row(tokens, 0, [0], len(tokens))])
    wanted = torch_logits(model, tokens)
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


def test_outliers_cost_little_and_without_smoothing_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the engine computes what ModelOpt's model does, whose numbers are rounded in torch."""
    source, engine = resolve(str(save(with_outliers(), tmp_path / "checkpoint"))), tmp_path / "engine"
    rounded: list[Any] = []
    monkeypatch.setattr(language_onnx, "smooth", lambda model, texts: [rounded.append(model), smooth(model, texts)][1])
    build(source, engine, RECIPE)
    near = away(engine, with_outliers())
    assert away(engine, rounded[0]) < near / 2
    monkeypatch.setattr(language_onnx, "smooth", unsmoothed)
    build(source, engine, RECIPE, force=True)
    far = away(engine, with_outliers())
    assert near < 0.2
    assert far > 3 * near


def test_weights_are_divided_by_what_inputs_are_multiplied_with() -> None:
    before, model = with_outliers(), with_outliers()
    texts = calibration_texts(tokenizer(), TEXT)[:2]
    found = smooth(model, texts)
    for index, layer in enumerate(model.model.layers):
        factor = torch.from_numpy(found[f"layers.{index}.self_attn.qkv"].factor)
        for ours, original in zip(
            readers(layer, "input_layernorm"), readers(before.model.layers[index], "input_layernorm"), strict=True
        ):
            torch.testing.assert_close(ours.weight * factor, original.weight, rtol=1e-4, atol=1e-6)
        assert factor[OUTLIER] < factor.median() / 4
    assert len(found) == 3 * len(model.model.layers)


def test_the_graph_has_int8_inputs_but_for_the_head(tmp_path: Path) -> None:
    build(resolve(str(save(with_outliers(), tmp_path / "checkpoint"))), tmp_path / "engine", RECIPE)
    graph = onnx.load(tmp_path / "engine" / "model.onnx", load_external_data=False).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 3 * LAYERS
    heads = [node for node in graph.node if node.op_type == "MatMul" and node.output[0] in logits_source(graph)]
    assert heads
    assert "rmsnormalization" in heads[0].input[0]


def logits_source(graph: Any) -> list[str]:
    return [node.input[0] for node in graph.node if node.output[0] == "logits"]


def test_calibration_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too little of it.")
    with pytest.raises(BuildError, match=r"short\.txt has 17 tokens; 8192 are needed"):
        calibration_texts(tokenizer(), short)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BuildError, match=r"calibration text .*bytes"):
        calibration_texts(tokenizer(), tmp_path / "bytes")
    with pytest.raises(BuildError, match="missing is no file"):
        dataclasses.replace(RECIPE, calibration=tmp_path / "missing")
    with pytest.raises(BuildError, match="a calibration text is for w8a8; int8 weights need none"):
        dataclasses.replace(RECIPE, weights="int8")


def test_another_text_is_another_engine(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT.read_text())
    key = RECIPE.build_key("0")
    assert dataclasses.replace(RECIPE, calibration=text).build_key("0") == key
    text.write_text(TEXT.read_text() + ".")
    assert dataclasses.replace(RECIPE, calibration=text).build_key("0") != key
