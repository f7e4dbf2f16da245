"""The slot engine on the TensorRT session, on a stand-in for the device: logits equal to torch's."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architecture_cases import CASES, EXACT, LENGTH, distance, distance_in_chunks, sequence, torch_logits
from device_stand_in import Cuda, Driver, Profiles, plan_manifest, tensorrt
from tiny_models import config, random_model

from build_engines.language_architecture import Architecture
from build_engines.language_contract import export
from tandem.engines import EngineOptions, Row
from tandem.engines import tensorrt as tensorrt_session
from tandem.engines.pipeline import PipelineSession
from tandem.engines.slots import FEW_TOKENS, SPARE_POSITIONS, SlotEngine
from tandem.engines.tensorrt import PLAN_FACTS, TensorRtSession

SLOTS_LENGTH = 256
PLAN = "model.plan"
ROWS, TOKENS = 6, 128
PROFILES: Profiles = [
    {"B": ROWS, "m": FEW_TOKENS, "T": ROWS * FEW_TOKENS, "W": ROWS * FEW_TOKENS},
    {"B": 1, "m": TOKENS, "T": TOKENS, "W": TOKENS},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model of torch, and its graph as TensorRT gets it, but in full precision."""
    case, directory = CASES["llama"], tmp_path_factory.mktemp("plan")
    model = random_model(config(case.kind, **case.settings))
    graph = export(
        Architecture(model, SLOTS_LENGTH + SPARE_POSITIONS),
        directory,
        weights="fp32",
        length=SLOTS_LENGTH,
        fixed_length=True,
    )
    (directory / PLAN).write_text(str(graph))
    (directory / PLAN_FACTS).write_text(json.dumps({"compute_capability": "8.9"}))
    return model, directory


def session(directory: Path, megabytes: int = 64, cuda: Cuda | None = None) -> TensorRtSession:
    cuda = cuda or Cuda()
    return TensorRtSession(directory / PLAN, megabytes, cuda.device, (tensorrt(PROFILES, cuda), cuda, Driver(cuda)))


MANIFEST = plan_manifest(SLOTS_LENGTH)


def engine(directory: Path, cuda: Cuda | None = None) -> SlotEngine:
    return SlotEngine(session(directory, cuda=cuda), MANIFEST, EngineOptions())


def test_ragged_batch_in_chunks_equals_torch(llama: tuple[Any, Path]) -> None:
    model, directory = llama
    assert distance_in_chunks(engine(directory), model) < EXACT


def test_a_copied_prefix_goes_on_as_its_original(llama: tuple[Any, Path]) -> None:
    model, directory = llama
    target = engine(directory)
    tokens, other = sequence(6), sequence(7)
    target.forward([Row(tokens[:70], 0, [0], 1)])
    target.copy_prefix(0, 4, 50)
    target.forward([Row(other[:9], 70, [0], 1)])
    found = target.forward([Row(other, 50, [4], LENGTH)])
    assert distance(found, torch_logits(model, [*tokens[:50], *other])[50:]) < EXACT


def test_features_are_what_the_head_sees(llama: tuple[Any, Path]) -> None:
    model, directory = llama
    target = engine(directory)
    logits = target.forward([Row(sequence(1, 9), 0, [0], 3), Row(sequence(2, 9), 0, [1], 2)])
    assert distance(target.features @ model.lm_head.weight.detach().numpy().T, logits) < EXACT


def test_everything_happens_on_the_device_that_was_asked_for_in_any_thread(llama: tuple[Any, Path]) -> None:
    """The executor runs ahead on a thread of its own, where CUDA is at the first device; the stand-in watches."""
    model, directory = llama
    cuda = Cuda()
    cuda.device = 1
    target = engine(directory, cuda)
    tokens = sequence(6)[:20]
    with ThreadPoolExecutor(1) as threads:
        threads.submit(target.forward, [Row(tokens, 0, [0], 1)]).result()
        threads.submit(target.copy_prefix, 0, 1, 15).result()
        found = threads.submit(target.forward, [Row(tokens[15:], 15, [1], 5)]).result()
    assert distance(found, torch_logits(model, tokens)[15:]) < EXACT


def decoded(target: SlotEngine, model: Any, steps: int) -> float:
    """Distance from torch of `steps` steps of two streams, after their prompts."""
    texts = [sequence(11)[:40], sequence(12)[:40]]
    worst = 0.0
    for slot, text in enumerate(texts):
        target.forward([Row(text[:10], 0, [slot], 1)])
    for past in range(10, 10 + steps):
        found = target.forward([Row([text[past]], past, [slot], 1) for slot, text in enumerate(texts)])
        for logits, text in zip(found, texts, strict=True):
            worst = max(worst, distance(logits[None], torch_logits(model, text[: past + 1])[-1:]))
    return worst


def test_steps_that_come_again_are_recorded_and_give_the_same(llama: tuple[Any, Path]) -> None:
    """Of ten steps of one shape the first two run as they are, the second is recorded, and eight are launches."""
    model, directory = llama
    cuda = Cuda()
    assert decoded(engine(directory, cuda), model, 10) < EXACT
    assert len(cuda.executable) == 1
    assert cuda.launches == 8


def test_drafts_in_changing_numbers_make_few_shapes(llama: tuple[Any, Path]) -> None:
    """Three streams of 1 to 5 tokens in a step, 36 steps: five lengths would make 5 x 13 x 13 shapes."""
    model, directory = llama
    cuda = Cuda()
    target = engine(directory, cuda)
    texts = [sequence(seed, 150) for seed in (21, 22, 23)]
    expected = [torch_logits(model, text) for text in texts]
    past = [10] * 3
    for slot, text in enumerate(texts):
        target.forward([Row(text[:10], 0, [slot], 1)])
    source = np.random.default_rng(0)
    before = cuda.launches
    for _ in range(36):
        counts = source.integers(1, 6, 3).tolist()
        found = target.forward(
            [
                Row(text[at : at + count], at, [slot], count)
                for slot, (text, at, count) in enumerate(zip(texts, past, counts, strict=True))
            ]
        )
        place = 0
        for slot, count in enumerate(counts):
            part = expected[slot][past[slot] : past[slot] + count]
            assert distance(found[place : place + count], part) < EXACT
            place += count
            past[slot] += source.integers(1, count + 1)  # what was accepted; the rest is written again
    assert cuda.launches - before > 20


def test_a_plan_that_cannot_be_recorded_runs_as_it_is(llama: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(tensorrt_session.log, "warning", lambda text, *values: told.append(text % values))
    model, directory = llama
    cuda = Cuda()
    cuda.recordable = False
    assert decoded(engine(directory, cuda), model, 10) < EXACT
    assert cuda.launches == 0
    assert told == ["steps are not recorded as CUDA graphs: cudaStreamEndCapture failed: 901"]


def test_recorded_runs_are_few(llama: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of other slots and shapes drive out the oldest; what was driven out is recorded anew, and right."""
    monkeypatch.setattr("tandem.engines.tensorrt.MAX_GRAPHS", 2)
    model, directory = llama
    cuda = Cuda()
    target = engine(directory, cuda)
    tokens = sequence(6)[:30]
    expected = torch_logits(model, tokens)
    for slot in (0, 1, 2, 0):
        target.forward([Row(tokens[:10], 0, [slot], 1)])
        for past in range(10, 15):
            found = target.forward([Row([tokens[past]], past, [slot], 1)])
            assert distance(found, expected[past : past + 1]) < EXACT
    assert cuda.launches == 4 * 3
    assert 1 <= len(cuda.executable) <= 2


def test_a_pipeline_of_two_devices_equals_torch(llama: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = llama
    architecture = Architecture(model, SLOTS_LENGTH + SPARE_POSITIONS)
    (tmp_path / PLAN_FACTS).write_text(json.dumps({"compute_capability": "8.9"}))
    stages = []
    for number in range(2):
        graph = export(
            architecture, tmp_path, weights="fp32", length=SLOTS_LENGTH, fixed_length=True, stage=(number, 2)
        )
        plan = tmp_path / f"model.{number}.plan"
        plan.write_text(str(graph))
        cuda = Cuda()
        cuda.device = number
        stages.append(TensorRtSession(plan, 32, number, (tensorrt(PROFILES, cuda), cuda, Driver(cuda))))
    target = SlotEngine(PipelineSession(stages), MANIFEST, EngineOptions())
    assert distance_in_chunks(target, model) < EXACT
    assert decoded(target, model, 6) < EXACT


def test_slots_are_as_many_as_memory_holds_and_the_plan_takes_rows(llama: tuple[Any, Path]) -> None:
    assert session(llama[1], 64).slots == ROWS
    found = session(llama[1], 2)
    assert 2 <= found.slots < ROWS
    assert found.positions == SLOTS_LENGTH + SPARE_POSITIONS
    with pytest.raises(
        ValueError, match="kv_cache_mb 1 is too little: two slots of 320 positions of this model take 2"
    ):
        session(llama[1], 1)


def test_a_step_that_no_profile_takes_is_refused_by_what_to_do(llama: tuple[Any, Path]) -> None:
    with pytest.raises(ValueError, match="lower max_step_tokens"):
        engine(llama[1]).forward([Row(sequence(1, TOKENS + 1), 0, [0], 1)])


def test_a_plan_for_another_gpu_is_refused(llama: tuple[Any, Path]) -> None:
    with pytest.raises(ValueError, match=r"for compute capability 8.9, and this GPU has 9.0: build the engine again"):
        session(llama[1], cuda=Cuda((9, 0)))


def test_a_plan_that_tensorrt_does_not_take_is_refused(llama: tuple[Any, Path], tmp_path: Path) -> None:
    (tmp_path / PLAN_FACTS).write_bytes((llama[1] / PLAN_FACTS).read_bytes())
    (tmp_path / PLAN).write_text("damaged")
    with pytest.raises(ValueError, match=r"TensorRT 11.1.0.0 does not take .*model.plan"):
        session(tmp_path)


def test_a_failed_call_of_cuda_says_which(llama: tuple[Any, Path]) -> None:
    cuda = Cuda()
    cuda.cudaMalloc = lambda size: (2, None)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(RuntimeError, match="cudaMalloc failed: 2"):
        session(llama[1], cuda=cuda)


@pytest.mark.parametrize("share", [0, 2])
def test_control_a_wrong_address_is_noticed(share: int, llama: tuple[Any, Path]) -> None:
    """All runs in the first slot, or in slots that overlap."""
    model, directory = llama
    target = engine(directory)
    assert isinstance(target._session, TensorRtSession)
    slot_bytes = target._session._slot_bytes
    target._session.__class__ = type("Broken", (TensorRtSession,), {"_slot_bytes": slot_bytes // share if share else 0})
    tokens, other = sequence(6, 60), sequence(7, 60)
    target.forward([Row(tokens, 0, [1], 0)])
    target.forward([Row(other, 0, [2], 0)])
    found = target.forward([Row([5], 60, [1], 1)])
    assert distance(found, torch_logits(model, [*tokens, 5])[-1:]) > EXACT
