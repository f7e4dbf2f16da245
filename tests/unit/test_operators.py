"""The table of operators: sums of what the engine notes, on a tiny engine."""

from __future__ import annotations

import time

import pytest
from tiny_models import config, random_model, save
from transformers import LlamaConfig

from benchmarks import operators
from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem.engines import EngineOptions, load_engine
from tandem.engines.openvino import OpenVinoEngine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> OpenVinoEngine:
    directory = tmp_path_factory.mktemp("operators")
    save(random_model(config(LlamaConfig)), directory / "checkpoint")
    build(resolve(str(directory / "checkpoint")), directory / "engine", Recipe(weights="fp32", kv_cache="f32"))
    engine = load_engine(directory / "engine", EngineOptions(kv_cache_mb=64, operator_times=True))
    assert isinstance(engine, OpenVinoEngine)
    return engine


def test_every_step_is_made_of_its_operators(engine: OpenVinoEngine) -> None:
    profiles = [operators.measure(engine, case, 3) for case in operators.cases(engine)]
    assert [profile.title for profile in profiles][1:] == [
        "decoding, 1 stream",
        "decoding, 8 streams",
        "decoding, 16 streams",
        "decoding, 1 stream, 4 drafts verified",
        "decoding, 1 stream, 4 drafts verified, each behind a step without drafts",
    ]
    for profile in profiles:
        kinds = {entry.kind for entry in profile.entries}
        assert "PagedAttentionExtension" in kinds
        assert profile.total_ms > 0
    text = operators.page(profiles, "a command")
    assert text.count("| PagedAttentionExtension |") == len(profiles)


def test_operators_take_no_longer_than_their_step(engine: OpenVinoEngine) -> None:
    (case, *_) = operators.cases(engine)
    engine.forward(case.rows)
    engine.operator_times()
    started = time.perf_counter()
    for _ in range(20):
        engine.forward(case.rows)
    taken = (time.perf_counter() - started) / 20
    assert 0 < sum(operator.seconds for operator in engine.operator_times()) <= taken


def test_times_are_of_the_steps_since_the_last_call(engine: OpenVinoEngine) -> None:
    """The runtime tells averages since the start: with those, decoding behind long prompts would look as slow."""
    prompt, decoding = (operators.measure(engine, case, 5) for case in operators.cases(engine)[:2])
    assert decoding.total_ms < prompt.total_ms / 4
