"""The report's arithmetic: accuracy, the budget, and the choice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from build_engines.vision.measure import BATCHES, Accuracy, Result, accuracy, choose
from build_engines.vision.recipes import RECIPES
from build_engines.vision.report import draw, ratios, table
from build_engines.vision.worker import peak_memory


def result(name: str, top1: float, seconds: float) -> Result:
    found = Result(RECIPES[name], Path("x"), 10.0, 100.0, Accuracy(top1, 1.0, 100, 1.0, 0.0))
    found.seconds = {batch: [seconds * batch] * 3 for batch in BATCHES}
    return found


def test_accuracy() -> None:
    reference = np.eye(6, dtype=np.float32)
    found = reference.copy()
    found[1] = [0, 0.5, 1, 0, 0, 0]  # second choice is the right one
    found[5] = [9, 8, 7, 6, 5, 0]  # right one is last
    labels = np.array([0, 1, 2, 3, -1, 5])
    got = accuracy(found, reference, labels)
    assert (got.labelled, got.top1, got.top5, got.agreement) == (5, 3 / 5, 4 / 5, 4 / 6)
    assert got.logit_error > 1
    assert accuracy(reference, reference, labels).logit_error == 0


def test_int8_is_compared_with_fp32_of_the_same_runtime() -> None:
    measured = [result("torch-fp32", 0.98, 1.0), result("openvino-fp32", 0.98, 0.4), result("openvino-int8", 0.97, 0.1)]
    wanted = "openvino, int8 against fp32: 4.00 times the throughput at batch 8, 1.0 times smaller"
    assert ratios(measured) == f"{wanted}, top-1 -1.0 points."
    assert ratios(measured, accuracy=False) == f"{wanted}."
    assert ratios(measured[:2]) == ""


def test_the_fastest_within_the_budget_is_chosen() -> None:
    """Negative control: without the budget the wrong one, which is the fastest, would win."""
    full = result("torch-fp32", 0.98, 1.0)
    good = result("openvino-int8", 0.9703, 0.3)  # keeps 99.01 %
    wrong = result("onnxruntime-int8", 0.9701, 0.1)  # keeps 98.99 %
    assert choose([full, good, wrong], 0.99) is good
    assert choose([full, good, wrong], 0.9) is wrong
    assert choose([full, wrong], 0.99) is full


def test_percentiles_and_rates() -> None:
    found = result("openvino-int8", 1, 1)
    found.seconds = {1: [0.01] * 98 + [0.5] * 2, 8: [0.1, 0.2, 0.4]}
    assert found.percentile(1, 50) == pytest.approx(10)
    assert found.percentile(1, 99) > 400
    assert found.rate(8) == pytest.approx(40)


def test_table_and_plot(tmp_path: Path) -> None:
    results = [result("openvino-fp32", 0.98, 0.02), result("openvino-int8", 0.975, 0.01)]
    lines = table(results, results[1]).splitlines()
    assert "**openvino-int8**" in lines[3]
    assert "| openvino-fp32 | 10.0 | 100 | 20.0 | 20.0 | 50.0 |" in lines[2]
    draw(results, results[1], "t", tmp_path / "a.svg")
    draw(results, results[1], "t", tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_an_engines_memory_is_its_own() -> None:
    """Not that of the process which started it: of `getrusage` a child would tell at least as much as its parent."""
    held = np.ones(400_000_000, np.uint8)
    code = "from build_engines.vision.worker import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10_000_000 < int(done.stdout) < len(held)
    assert peak_memory() > len(held)
