"""Graphs of a fixed width: the same numbers as the graph for all shapes, and only as many as there is memory for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import VOCABULARY, config, random_model, save
from transformers import Gemma2Config, LlamaConfig

from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem.engine_profile import profile_engine
from tandem.engines import EngineOptions, Row, load_engine
from tandem.engines.openvino import GRAPH_MEMORY, GRAPH_WIDTHS, MODEL_FILE, OpenVinoEngine, _apart

BLOCKS = 2  # of each sequence
PROMPT = 20


def build_tiny(directory: Path, kind: type = LlamaConfig, **settings: object) -> Path:
    checkpoint = save(random_model(config(kind, **settings)), directory / "checkpoint")
    build(resolve(str(checkpoint)), directory / "engine", Recipe("int8", kv_cache="f32"))
    return directory / "engine"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("llama"))


def load(directory: Path, graph_memory_mb: int) -> OpenVinoEngine:
    options = EngineOptions(kv_cache_mb=16, graph_memory_mb=graph_memory_mb, features=True)
    engine = load_engine(directory, options)
    assert isinstance(engine, OpenVinoEngine)
    rng = np.random.default_rng(3)
    for sequence in range(max(GRAPH_WIDTHS) + 2):
        engine.forward([Row(rng.integers(3, VOCABULARY, PROMPT).tolist(), 0, blocks_of(sequence), 0)])
    return engine


def blocks_of(sequence: int) -> list[int]:
    return list(range(sequence * BLOCKS, (sequence + 1) * BLOCKS))


def decoding(rows: int) -> list[Row]:
    return [Row([3 + row], PROMPT, blocks_of(row), 1, 1) for row in range(rows)]


@pytest.fixture(scope="module")
def engines(tiny: Path) -> tuple[OpenVinoEngine, OpenVinoEngine]:
    return load(tiny, 0), load(tiny, 1024)


def test_every_width_gives_the_same_bits(engines: tuple[OpenVinoEngine, OpenVinoEngine]) -> None:
    without, with_graphs = engines
    assert (list(without.graph_widths), list(with_graphs.graph_widths)) == ([], sorted(GRAPH_WIDTHS))
    for rows in range(1, max(GRAPH_WIDTHS) + 3):
        expected, features = without.forward(decoding(rows)).copy(), without.features.copy()
        found = with_graphs.forward(decoding(rows))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(with_graphs.features, features)
        assert (with_graphs._request is with_graphs._graphs[0]) == (rows > max(GRAPH_WIDTHS))


def test_graphs_and_prompts_share_one_cache(engines: tuple[OpenVinoEngine, OpenVinoEngine]) -> None:
    """Prompt chunks run in the graph for all shapes, each decoding step in another graph."""
    texts = []
    for engine in engines:
        tokens = np.random.default_rng(4).integers(3, VOCABULARY, 30).tolist()
        engine.forward([Row(tokens, 0, blocks_of(0), 1)])
        history = list(tokens)
        for width in (2, 8, 4, 16, 2, 32):
            logits = engine.forward([Row([history[-1]], len(history) - 1, blocks_of(0), 1, 1), *decoding(width)[1:]])
            history.append(int(logits[0].argmax()))
        texts.append(history)
    assert texts[0] == texts[1]


def test_a_drafted_run_takes_the_graph_of_its_width(engines: tuple[OpenVinoEngine, OpenVinoEngine]) -> None:
    run = Row([5, 6, 7], PROMPT, blocks_of(1), 3, 3)
    expected, found = (engine.forward([run], 6).copy() for engine in engines)
    np.testing.assert_array_equal(found, expected)
    assert engines[1]._request is engines[1]._graphs[6]


def test_as_many_graphs_as_there_is_memory_for(tiny: Path) -> None:
    size = (tiny / MODEL_FILE).with_suffix(".bin").stat().st_size * GRAPH_MEMORY / 2**20
    assert size < 1, "one MB is enough for the tiny model's first graphs"
    fitting = int(1 / size)
    assert list(load(tiny, 1).graph_widths) == sorted(GRAPH_WIDTHS[:fitting])


def test_a_model_that_caps_its_scores_has_no_graphs(tmp_path: Path) -> None:
    """Its attention is built of other inputs."""
    directory = build_tiny(tmp_path, Gemma2Config, num_hidden_layers=2, query_pre_attn_scalar=16)
    assert list(load(directory, 64).graph_widths) == []


def test_the_profile_has_the_widths_of_the_graphs(engines: tuple[OpenVinoEngine, OpenVinoEngine]) -> None:
    cost = profile_engine(engines[1])
    assert cost.wider(1, 9) == [2, 4, 6, 8, 10]
    assert cost(13) == cost(16), "a step of 13 is filled up to 16"
    assert cost.wider(48, 60) == [64], "beyond the graphs, the widths of any engine"


def test_a_row_of_prompt_and_answer_is_refused() -> None:
    """OpenVINO computes the answer's tokens wrongly beside a row with several tokens before them."""
    with pytest.raises(ValueError, match="of the prompt and of the answer"):
        _apart(Row([1, 2, 3], 0, [0], 1, answer=1))
    assert len(_apart(Row([1, 2, 3], 4, [0], 3, answer=3))) == 3
