"""Building a plan, by TensorRT for RTX in place of TensorRT: it compiles without a GPU, and has the same calls."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
from device_stand_in import Cuda
from tiny_models import config, random_model, save
from transformers import LlamaConfig

from build_engines import compile_check, interrupt, language_plan
from build_engines.errors import BuildError
from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem import tensorrt_library
from tandem.manifest import Manifest, ManifestError

RECIPE = Recipe("fp16", activations="f16", kv_cache="f16", runtime="tensorrt", length=128)
VERSION = "11.1.0.106"


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return str(save(random_model(config(LlamaConfig, num_hidden_layers=1)), tmp_path / "tiny"))


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """TensorRT for RTX as the TensorRT of this machine, whose GPU has 8.9; returns the builders' configurations."""
    seen: list[Any] = []

    def compiled(trt: Any, graph: Path, capability: str, configure: Callable[[Any], None]) -> Any:
        def both(config: Any) -> None:
            configure(config)
            compile_check._for_target(trt.ComputeCapability.SM89)(config)
            seen.append((config.builder_optimization_level, config.get_timing_cache() is not None))

        return compile_check.compiled(trt, graph, capability, both)

    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = Cuda()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(tensorrt_library, "load", lambda: tensorrt_rtx)
    monkeypatch.setattr(tensorrt_library, "version", lambda: VERSION)
    monkeypatch.setattr(language_plan, "compiled", compiled)
    monkeypatch.setattr(language_plan, "write_kernels", lambda directory, capability: False)
    monkeypatch.setattr(language_plan, "TIMING_CACHE", tmp_path / "timing" / "cache")
    return seen


def test_a_plan_lies_beside_what_it_was_compiled_for(rtx: list[Any], checkpoint: str, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    manifest = build(resolve(checkpoint), output, RECIPE)
    assert rtx == [(language_plan.OPTIMIZATION_LEVEL, True)]
    assert (manifest.runtime, manifest.runtime_version, manifest.context_length) == ("tensorrt", VERSION, 128)
    assert {"model.plan", "plan.json", "tokenizer.json"} <= manifest.files.keys()
    assert "model.onnx" not in manifest.files
    assert (output / "model.plan").stat().st_size > 10_000
    assert json.loads((output / "plan.json").read_text())["compute_capability"] == "8.9"
    assert language_plan.TIMING_CACHE.stat().st_size > 0
    assert Manifest.load(output) == manifest
    build(resolve(checkpoint), output, RECIPE)
    assert len(rtx) == 1, "it was up to date"


def test_a_plan_of_another_version_is_refused_with_what_to_do(
    rtx: list[Any], checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(resolve(checkpoint), tmp_path / "engine", RECIPE)
    monkeypatch.setattr(tensorrt_library, "version", lambda: "11.2.0.1")
    with pytest.raises(ManifestError, match=rf"tensorrt: expected version {VERSION}, found 11.2.0.1. Build it again"):
        Manifest.load(tmp_path / "engine")


def test_a_damaged_timing_cache_is_replaced(rtx: list[Any], checkpoint: str, tmp_path: Path) -> None:
    language_plan.TIMING_CACHE.parent.mkdir()
    language_plan.TIMING_CACHE.write_bytes(b"damaged")
    build(resolve(checkpoint), tmp_path / "engine", RECIPE)
    assert language_plan.TIMING_CACHE.read_bytes() != b"damaged"


def test_an_interrupted_build_leaves_nothing(
    rtx: list[Any], checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    with pytest.raises(BuildError, match="does not compile"):
        build(resolve(checkpoint), tmp_path / "engine", RECIPE)
    assert not (tmp_path / "engine").exists()


def test_without_tensorrt_the_message_says_where_to_build(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="a plan is built where its GPU is"):
        build(resolve(checkpoint), tmp_path / "engine", RECIPE)
