"""Tokens chosen on the device, on the stand-in, whose kernels the Triton language's interpreter runs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import device_kernels
import numpy as np
import pytest

device_kernels.require(interpreted=True)

from architecture_cases import CASES, sequence
from device_stand_in import Cuda, Driver, Profiles, plan_manifest, tensorrt, write_kernels
from tiny_models import config, random_model

from build_engines.language_architecture import Architecture
from build_engines.language_contract import export
from tandem.engines import EngineOptions, Row, device_choice
from tandem.engines import tensorrt as tensorrt_session
from tandem.engines.slots import FEW_TOKENS, SPARE_POSITIONS, SlotEngine
from tandem.engines.tensorrt import PLAN_FACTS, TensorRtSession
from tandem.executor import Executor
from tandem.sampling import Choice, SamplingParams, SamplingState
from tandem.sampling import choose as choose_on_cpu
from tandem.step import OpenSequence, StepRequest, StepRow

LENGTH, ROWS, TOKENS = 256, 4, 96
PROFILES: Profiles = [
    {"B": ROWS, "m": FEW_TOKENS, "T": ROWS * FEW_TOKENS, "W": ROWS * FEW_TOKENS},
    {"B": 1, "m": TOKENS, "T": TOKENS, "W": TOKENS},
]
MANIFEST = plan_manifest(LENGTH)
PARAMS = (
    SamplingParams(),
    SamplingParams(temperature=0.9, seed=5),
    SamplingParams(temperature=1.2, top_k=7, top_p=0.8, seed=6, log_probs=True),
    SamplingParams(temperature=0.8, repetition_penalty=1.5, frequency_penalty=0.3, seed=7, bad_words=((9,), (3, 4))),
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan")
    case = CASES["llama"]
    model = random_model(config(case.kind, **(case.settings | {"num_hidden_layers": 1})))
    architecture = Architecture(model, LENGTH + SPARE_POSITIONS)
    graph = export(architecture, directory, weights="fp32", length=LENGTH, fixed_length=True)
    (directory / "model.plan").write_text(str(graph))
    (directory / PLAN_FACTS).write_text(json.dumps({"compute_capability": "8.9"}))
    write_kernels(directory)
    return directory / "model.plan"


class Device:
    """A stand-in, and an engine on it."""

    def __init__(self, plan: Path, meddle: Any = None) -> None:
        self.cuda = Cuda()
        self.driver = Driver(self.cuda)
        if meddle is not None:
            meddle(self)
        self.session = TensorRtSession(plan, 64, 0, (tensorrt(PROFILES, self.cuda), self.cuda, self.driver))
        self.engine = SlotEngine(self.session, MANIFEST, EngineOptions())


def choices(params: SamplingParams, tokens: list[int], count: int) -> list[Choice]:
    """For the last positions of a text."""
    state = SamplingState(params, 4)
    state.append(tokens)
    return [Choice(state, place) for place in range(len(tokens) - count + 1, len(tokens) + 1)]


def step(past: int, counts: list[int]) -> tuple[list[Row], list[Choice]]:
    """A ragged step of four texts in slots out of order, all of whose new tokens want one."""
    rows, wanted = [], []
    for slot, count, params in zip((2, 0, 3, 1), counts, PARAMS, strict=True):
        text = sequence(slot, past + count)
        rows.append(Row(text[past:], past, [slot], count))
        wanted += choices(params, text, count)
    return rows, wanted


def test_tokens_are_those_of_the_cpu_and_logits_stay_where_they_are(plan: Path) -> None:
    device = Device(plan)
    assert device.engine.chooses
    logits = device.session._outputs["logits"].host
    for past, counts in ((0, [5, 40, 3, 2]), (40, [1, 1, 1, 1]), (41, [4, 1, 6, 2])):
        rows, wanted = step(past, counts)
        tokens, log_probs = device.engine.choose(rows, wanted)
        assert np.isnan(logits).all(), "they came to the host"
        features = device.engine.features.copy()
        expected = choose_on_cpu(device.engine.forward(rows).copy(), wanted)
        np.testing.assert_array_equal(tokens, expected[0])
        np.testing.assert_array_equal(log_probs, expected[1])
        np.testing.assert_array_equal(features, device.engine.features)
        logits.fill(np.nan)
    assert len(set(tokens.tolist())) > 3


def test_a_step_that_comes_again_is_recorded_with_and_without_its_logits(plan: Path) -> None:
    device = Device(plan)
    rows, wanted = step(0, [9, 9, 9, 9])
    device.engine.forward(rows)
    rows, wanted = step(9, [1, 1, 1, 1])
    expected = choose_on_cpu(device.engine.forward(rows).copy(), wanted)[0]
    for _ in range(4):
        np.testing.assert_array_equal(device.engine.choose(rows, wanted)[0], expected)
        np.testing.assert_array_equal(choose_on_cpu(device.engine.forward(rows).copy(), wanted)[0], expected)
    assert device.cuda.launches == 2 + 3


def test_many_rows_are_chosen_in_portions(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_choice, "CHUNK", 3)
    device = Device(plan)
    before = len(device.driver.launched)
    rows, wanted = step(0, [2, 3, 1, 2])
    found = device.engine.choose(rows, wanted)[0]
    assert [name for name in device.driver.launched[before:] if name[0] == "choose"] == [("choose", 3)] * 2 + [
        ("choose", 2)
    ]
    np.testing.assert_array_equal(found, choose_on_cpu(device.engine.forward(rows).copy(), wanted)[0])


def test_rows_without_logits_and_any_thread(plan: Path) -> None:
    device = Device(plan)
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(device.engine.choose, [Row(sequence(1, 20), 0, [1], 0)], []).result()
    assert [len(part) for part in found] == [0, 0]


def executed(engine: SlotEngine, params: SamplingParams) -> list[int]:
    """Tokens of an executor on the engine: a prompt, then calls of four passes."""
    executor, prompt = Executor(engine, 1), sequence(3, 12)
    opening = [OpenSequence(7, len(prompt), params)]
    result = executor.step(StepRequest([StepRow(7, 0, prompt, 4)], opening, passes=4))
    chosen = result.chosen.tolist()
    for _ in range(3):
        keep = len(prompt) + len(chosen) - 1
        chosen += executor.step(StepRequest([StepRow(7, keep, chosen[-1:], 4)], passes=4)).chosen.tolist()
    return chosen


@pytest.mark.parametrize("params", PARAMS)
def test_an_executor_writes_the_same_text(plan: Path, params: SamplingParams) -> None:
    device = Device(plan)
    found = executed(device.engine, params)
    assert len(found) == 16
    launched = len(device.driver.launched)
    device.session._choice = None  # the same plan, tokens chosen on the CPU
    assert executed(device.engine, params) == found
    assert len(device.driver.launched) == launched > 16


def with_another_token(device: Device) -> None:
    """Like a kernel that rounds otherwise than the CPU."""

    def meddle(name: str, values: Any) -> None:
        if name == "choose":
            device.cuda.view(values[6], np.int32)[0] ^= 1

    device.driver.meddle = meddle


def without_code(device: Device) -> None:
    device.driver.cuModuleLoadData = lambda image: (209, "")  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("meddle", "message"),
    [(with_another_token, "the GPU chose"), (without_code, "cuModuleLoadData failed: 209")],
)
def test_kernels_that_cannot_be_trusted_are_not_used(
    meddle: Any, message: str, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(tensorrt_session.log, "error", lambda text, *values: told.append(text % values))
    device = Device(plan, meddle)
    assert not device.engine.chooses
    assert len(told) == 1
    assert told[0].startswith(f"tokens are chosen on the CPU: {message}")
    assert Executor(device.engine, 1)._choosing is None


def test_a_plan_without_kernels_is_served_too(plan: Path) -> None:
    facts = plan.parent / device_choice.KERNELS_FILE
    text = facts.read_text()
    facts.unlink()
    try:
        assert not Device(plan).engine.chooses
    finally:
        facts.write_text(text)
