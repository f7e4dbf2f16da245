"""Every supported architecture, from a checkpoint with random weights to logits equal to torch's.

For each there is a control: torch without what makes it this architecture must differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from architecture_cases import CASES, DIFFERENT, EXACT, LENGTH, Case, control_model, distance, sequence, torch_logits
from tiny_models import config, random_model, save
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from build_engines.architectures import SUPPORTED
from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem.engines import Engine, EngineOptions, Row, load_engine


@dataclass(frozen=True)
class Built:
    case: Case
    model: Any
    engine: Engine
    directory: Path


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case = CASES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    model = random_model(config(case.kind, **case.settings))
    build(resolve(str(save(model, directory / "checkpoint"))), directory / "engine", Recipe("fp32", kv_cache="f32"))
    engine = directory / "engine"
    return Built(case, model, load_engine(engine, EngineOptions(kv_cache_mb=16)), engine)


def test_whole_text_in_one_pass_equals_torch_and_the_feature_matters(built: Built) -> None:
    tokens = sequence(1)
    found = built.engine.forward([Row(tokens, 0, [3, 1, 2, 0], LENGTH)]).copy()
    assert distance(found, torch_logits(built.model, tokens)) < EXACT
    assert distance(found, torch_logits(control_model(built.case, built.model), tokens)) > DIFFERENT


def test_ragged_batch_in_chunks_equals_torch(built: Built) -> None:
    """Two texts of different lengths in scattered blocks, in chunks of 1 to 58 tokens that cross block borders."""
    first, second = sequence(2), sequence(3, 70)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    done = [0, 0]
    for chunk in ((37, 5), (1, 20), (3, 1), (1, 1), (58, 43)):
        rows = [
            Row(text[past : past + count], past, blocks, count)
            for text, past, count, blocks in zip((first, second), done, chunk, ([7, 6, 5, 4], [8, 2, 10]), strict=True)
        ]
        logits = built.engine.forward(rows).copy()
        parts[0].append(logits[: chunk[0]])
        parts[1].append(logits[chunk[0] :])
        done = [past + count for past, count in zip(done, chunk, strict=True)]
    for text, found in zip((first, second), parts, strict=True):
        assert distance(np.concatenate(found), torch_logits(built.model, text)) < EXACT


def test_rejected_tokens_leave_no_trace(built: Built) -> None:
    """Rollback is a smaller `past`: what was written beyond it is not seen."""
    tokens, blocks = sequence(4), [0, 1, 2, 3]
    built.engine.forward([Row(tokens[:60], 0, blocks, 1)])
    built.engine.forward([Row(sequence(5, 8), 60, blocks, 8)])
    found = built.engine.forward([Row(tokens[60:], 60, blocks, 40)])
    assert distance(found, torch_logits(built.model, tokens)[60:]) < EXACT


def test_memory_that_was_never_written_does_not_reach_the_logits(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator hands out may hold any bytes, NaN among them."""
    allocate = ov.Tensor

    def poisoned(*arguments: Any, **options: Any) -> ov.Tensor:
        tensor = allocate(*arguments, **options)
        if isinstance(arguments[-1], ov.Shape):
            tensor.data.fill(np.nan)
        return tensor

    monkeypatch.setattr(ov, "Tensor", poisoned)
    engine = load_engine(built.directory, EngineOptions(kv_cache_mb=1))
    assert not any(np.isnan(cache.data).any() for cache in engine._caches)
    tokens = sequence(6)
    engine.forward([Row(tokens[:40], 0, [3, 9], 1), Row(tokens[:70], 0, [5, 6, 7], 1)])
    found = engine.forward([Row(tokens[40:], 40, [3, 9, 1, 2], 60), Row(tokens[70:], 70, [5, 6, 7, 8], 30)])
    assert distance(found[:60], torch_logits(built.model, tokens)[40:]) < EXACT


def test_language_model_inside_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """Gemma 3 from 4B on is published together with a vision tower; text runs without it."""
    text = config(Gemma3TextConfig, num_hidden_layers=2, sliding_window=16)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    whole = Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(whole).eval()
    manifest = build(resolve(str(save(model, tmp_path / "mm"))), tmp_path / "engine", Recipe("fp32", kv_cache="f32"))
    assert manifest.architecture == "gemma3_text"
    found = load_engine(tmp_path / "engine", EngineOptions(kv_cache_mb=16)).forward(
        [Row(sequence(7)[:60], 0, [0, 1], 60)]
    )
    assert distance(found, torch_logits(model, sequence(7)[:60])) < EXACT


def test_every_supported_architecture_has_a_case() -> None:
    assert {config(case.kind, **case.settings).model_type for case in CASES.values()} == SUPPORTED.keys()
