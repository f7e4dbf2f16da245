"""A plan of TensorRT against the same graph in full precision on the CPU: next tokens, and how fast it is."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from plans import build_default

from perf import mt_bench
from tandem.engines import EngineOptions, Row, load_engine
from tandem.engines.slots import SlotEngine
from tandem.manifest import Manifest
from tandem.prompt import PromptEncoder
from tandem.sampling import Choice, SamplingParams, SamplingState, choose

pytestmark = pytest.mark.gpu

TEXTS, TOKENS = 8, 48
# Of the next-token distributions, in total variation; and between the two best tokens, so that rounding cannot decide.
FAR, SURE = {"fp16": 0.02, "int8": 0.1, "w8a8": 0.15}, 0.2


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_default(tmp_path_factory.mktemp("fp32") / "engine", "onnxruntime", "fp32")


def distributions(directory: Path, texts: list[list[int]]) -> npt.NDArray[np.float64]:
    """Softmax behind each of the last `TOKENS` tokens of each text, [texts × TOKENS, vocab]; all texts in one step."""
    engine = load_engine(directory, EngineOptions(kv_cache_mb=2048))
    found = []
    for slot, text in enumerate(texts):
        engine.forward([Row(text[:-TOKENS], 0, [slot], 0)])
    for at in range(TOKENS):  # token by token, the texts side by side
        place = [len(text) - TOKENS + at for text in texts]
        rows = [Row([text[here]], here, [slot], 1) for slot, (text, here) in enumerate(zip(texts, place, strict=True))]
        found.append(engine.forward(rows).astype(np.float64))
    logits = np.concatenate(found)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def test_next_tokens_are_those_of_full_precision(
    plan: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = PromptEncoder(reference)
    questions = mt_bench.prompts()
    texts = [
        encoder.encode("\n\n".join(questions[at::TEXTS]), special_tokens=True)[: 100 + 10 * at] for at in range(TEXTS)
    ]
    assert [len(text) for text in texts] == [100 + 10 * at for at in range(TEXTS)]
    found, wanted = distributions(plan, texts), distributions(reference, texts)
    distance = np.abs(found - wanted).sum(axis=-1) / 2
    top = np.sort(wanted, axis=-1)[:, -2:]
    sure = top[:, 1] - top[:, 0] > SURE
    weights = Manifest.read(plan).weights
    with capsys.disabled():
        print(f"\n{weights}: total variation {np.median(distance):.4f} in the median, {distance.max():.4f} at most")
    assert np.median(distance) < FAR[weights]
    assert (found.argmax(axis=-1) == wanted.argmax(axis=-1))[sure].all()
    # The control: behind other tokens the distributions are other ones.
    assert np.median(np.abs(found - np.roll(wanted, 1, axis=0)).sum(axis=-1) / 2) > FAR[weights]


def test_tokens_are_chosen_on_the_gpu_as_on_the_cpu(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And how long a step of 16 sequences with 4 drafts each takes both ways; printed, not judged."""
    engine = load_engine(plan, EngineOptions(kv_cache_mb=2048))
    assert isinstance(engine, SlotEngine)
    if not engine.chooses:
        pytest.skip("the plan has no kernels: build it where `import triton` works, as in the image of the gpu profile")
    texts = np.random.default_rng(0).integers(3, engine.vocab_size, (16, 60)).tolist()
    for slot, text in enumerate(texts):
        engine.forward([Row(text[:-5], 0, [slot], 0)])
    rows = [Row(text[-5:], 55, [slot], 5) for slot, text in enumerate(texts)]
    for params in (SamplingParams(log_probs=True), SamplingParams(temperature=0.8, top_k=50, top_p=0.9, seed=7)):
        choices = []
        for text in texts:
            state = SamplingState(params, 40)
            state.append(text)
            choices += [Choice(state, place) for place in range(56, 61)]
        seconds: dict[str, list[float]] = {"on the GPU": [], "on the CPU": []}
        for _ in range(30):
            started = time.perf_counter()
            found = engine.choose(rows, choices)
            between = time.perf_counter()
            wanted = choose(engine.forward(rows), choices)
            seconds["on the GPU"].append(between - started)
            seconds["on the CPU"].append(time.perf_counter() - between)
            np.testing.assert_array_equal(found[0], wanted[0])
            np.testing.assert_array_equal(found[1], wanted[1])
        assert len(set(found[0].tolist())) > 20
        with capsys.disabled():
            times = ", ".join(f"{way} {statistics.median(found) * 1e3:.2f} ms" for way, found in seconds.items())
            print(f"\n{Manifest.read(plan).weights}, temperature {params.temperature}: {times}")


def test_speed_table(plan: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens/s against the CPU; printed, not judged."""
    command = [sys.executable, "-m", "benchmarks.engines", "--engines", str(reference), str(plan), "--rounds", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stderr
