"""The graphs of language models compile in TensorRT for RTX, and what TensorRT does not take is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from architecture_cases import CASES, Case
from onnx import numpy_helper
from tiny_models import config, random_model, save
from transformers import LlamaConfig

from build_engines import compile_check
from build_engines.__main__ import main
from build_engines.errors import BuildError
from build_engines.language import build
from build_engines.language_architecture import Architecture
from build_engines.language_contract import export
from build_engines.recipe import Recipe
from build_engines.smooth_quant import Smoothed
from build_engines.source import resolve
from tandem.engines.slots import SPARE_POSITIONS

LENGTH = 128
ALL = ("8.6", "8.9", "12.0")


def graph(directory: Path, case: Case = CASES["llama"], **options: Any) -> Path:
    directory.mkdir(exist_ok=True)
    model = random_model(config(case.kind, **(case.settings | {"num_hidden_layers": 1})))
    architecture = Architecture(model, LENGTH + SPARE_POSITIONS)
    return export(architecture, directory, **({"weights": "fp16", "length": LENGTH, "fixed_length": True} | options))


# Of the inputs of the tiny model's only layer.
SIZES = {"self_attn.qkv": 64, "self_attn.o_proj": 64, "mlp.gate_up": 64}
SMOOTHED = {f"layers.0.{name}": Smoothed(np.full(size, 0.5, np.float32), 4.0) for name, size in SIZES.items()}


@pytest.mark.parametrize("weights", ["fp16", "int8-fp16", "w8a8-fp16", "int4-fp16"])
def test_the_graph_compiles(tmp_path: Path, weights: str) -> None:
    smoothed = SMOOTHED if weights.startswith("w8a8") else None
    sizes = compile_check.compile_check(graph(tmp_path, weights=weights, smoothed=smoothed), ALL)
    assert sizes.keys() == set(ALL)
    assert min(sizes.values()) > 2 * 512 * 64, "the weights are in it"


@pytest.mark.parametrize("name", ["qwen2-window", "qwen3", "gemma3_text"])
def test_windows_biases_and_norms_compile(tmp_path: Path, name: str) -> None:
    assert compile_check.compile_check(graph(tmp_path, CASES[name]), ["8.9"])


def test_the_stages_of_a_pipeline_compile(tmp_path: Path) -> None:
    """Without token ids in, without logits out: the first, one in the middle, and the last."""
    case = CASES["llama"]
    model = random_model(config(case.kind, **(case.settings | {"num_hidden_layers": 3})))
    architecture = Architecture(model, LENGTH + SPARE_POSITIONS)
    for number in range(3):
        part = export(architecture, tmp_path, weights="int8-fp16", length=LENGTH, fixed_length=True, stage=(number, 3))
        assert part.name == f"model.{number}.onnx"
        assert compile_check.compile_check(part, ["8.9"])


def with_a_free_cache_length(path: Path) -> Path:
    model = onnx.load(path, load_external_data=False)
    for item in (*model.graph.input, *model.graph.output):
        if "keys." in item.name or "values." in item.name:
            item.type.tensor_type.shape.dim[2].ClearField("dim_value")
            item.type.tensor_type.shape.dim[2].dim_param = "S"
    onnx.save(model, path)
    return path


def with_zero_points(path: Path, value: int) -> Path:
    """`value` as the zero point of every quantized weight, in place of zeros."""
    model = onnx.load(path, load_external_data=False)
    sizes = {item.name: list(item.dims) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            zeros = np.full(sizes[node.input[1]], value, np.int8)
            del node.input[2:]
            node.input.append(f"{node.input[0]}.zero")
            model.graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
    onnx.save(model, path)
    return path


def test_what_tensorrt_does_not_take_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By our own command. Each of these graphs is one that compiles but for one thing."""
    refused = {
        "attention is computed in FP32": graph(tmp_path / "fp32", weights="fp32"),
        "the length of the KV cache that attention reads is not fixed": with_a_free_cache_length(
            graph(tmp_path / "free")
        ),
        "a zero point other than 0": with_zero_points(graph(tmp_path / "zero", weights="int8-fp16"), 1),
    }
    for reason, path in refused.items():
        assert main(["compile-check", str(path), "--compute-capability", "8.9"]) == 1
        message = capsys.readouterr().err
        assert reason in message
        assert "model.onnx does not compile for compute capability 8.9" in message
    allowed = with_zero_points(graph(tmp_path / "symmetric", weights="int8-fp16"), 0)
    assert main(["compile-check", str(allowed), "--compute-capability", "8.9"]) == 0


def test_tensorrt_itself_refuses_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are ours, the refusal is not: without our words there are TensorRT's own, and each time others."""
    monkeypatch.setattr(compile_check, "refusals", lambda graph: [])
    said = []
    for path in (
        graph(tmp_path / "fp32", weights="fp32"),
        with_a_free_cache_length(graph(tmp_path / "free")),
        with_zero_points(graph(tmp_path / "zero", weights="int8-fp16"), 1),
    ):
        with pytest.raises(BuildError, match=r"does not compile for compute capability 8\.9: ") as caught:
            compile_check.compile_check(path, ["8.9"])
        said.append(str(caught.value).split("8.9: ")[1])
    assert "Attention" in said[0]
    assert len(set(said)) == 3


def test_a_checkpoint_is_exported_and_compiled_by_one_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(random_model(config(LlamaConfig, num_hidden_layers=1)), tmp_path / "tiny")
    command = ["language", str(checkpoint), "--runtime", "tensorrt", "--max-length", "128"]
    assert main([*command, "--weights", "fp16", "--compute-capability", "8.9"]) == 0
    assert main([*command, "--weights", "fp32"]) == 1
    assert "fp32 weights are not built for tensorrt; choose one of fp16, int8" in capfd.readouterr().err
    assert main([*command, "--weights", "fp16", "--compute-capability", "9.0"]) == 1
    assert "compute capability 9.0 is not one of 7.5, 8.0, 8.6" in capfd.readouterr().err
    with pytest.raises(BuildError, match="a plan is built where its GPU is"):
        build(resolve(str(checkpoint)), tmp_path / "engine", Recipe("fp16", runtime="tensorrt"))
