"""What our code asks of TensorRT and CUDA is there, with so many arguments: compared with NVIDIA's bindings.

The bindings are those of the TensorRT in the image for GPUs; of the libraries behind them only the names are there, so
nothing runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINDINGS = ROOT / ".cache" / "test-tools" / "tensorrt"
SOURCES = [
    ROOT / "tandem" / "engines" / "tensorrt.py",
    ROOT / "tandem" / "engines" / "cuda_device.py",
    ROOT / "tandem" / "engines" / "device_choice.py",
    ROOT / "build_engines" / "language_plan.py",
    ROOT / "build_engines" / "compile_check.py",
    ROOT / "build_engines" / "vision" / "tensorrt_plan.py",
]


def compare(*paths: Path) -> list[str]:
    if not BINDINGS.is_dir():
        pytest.skip("the bindings of TensorRT are missing: scripts/test_tools.sh fetches them")
    command = [sys.executable, str(ROOT / "tests" / "support" / "binding_calls.py"), *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(BINDINGS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_call_is_one_that_the_bindings_take() -> None:
    *wrong, last = compare(*SOURCES)
    assert wrong == []
    assert int(last.split()[0]) >= 100, "the names of the objects have changed: see CLASSES in binding_calls.py"
    assert last.endswith("TensorRT 11.1.0.106")


MUTATIONS = {
    "of TensorRT 8": ("execute_async_v3", "execute_async_v2", "context.execute_async_v2: there is no such thing"),
    "an argument less": (
        "profile_async(index, int(self._gpu.stream))",
        "profile_async(index)",
        "context.set_optimization_profile_async: does not take 1 arguments",
    ),
    "a misspelt function": ('"cudaHostAlloc"', '"cudaMallocHost_"', "cudaMallocHost_: there is no such function"),
    "a copy without its stream": ("kind, self._gpu.stream)", "kind)", "cudaMemcpy2DAsync: does not take 7 arguments"),
    "a recording without its mode": (
        '"cudaStreamBeginCapture", self._gpu.stream, mode)',
        '"cudaStreamBeginCapture", self._gpu.stream)',
        "cudaStreamBeginCapture: does not take 1 arguments",
    ),
    "a launch with an argument less": (
        "stream, values, 0)",
        "stream, values)",
        "cuLaunchKernel: does not take 10 argum",
    ),
    "a misspelt constant": ("cudaMemcpyHostToDevice", "cudaMemcpyHostDevice", "cudaMemcpyHostDevice: there is no"),
    "a mode that is none": ("TensorIOMode.INPUT", "TensorIOMode.IN", "trt.TensorIOMode.IN: there is no such thing"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_control_a_wrong_call_is_noticed(name: str, tmp_path: Path) -> None:
    before, after, complaint = MUTATIONS[name]
    source = next(text for path in SOURCES if before in (text := path.read_text()))
    (tmp_path / "mutated.py").write_text(source.replace(before, after))
    *wrong, _ = compare(tmp_path / "mutated.py")
    assert len(wrong) == 1
    assert complaint in wrong[0]


def test_our_loader_finds_the_bindings_under_their_own_name() -> None:
    """The package has no module `tensorrt`."""
    if not BINDINGS.is_dir():
        pytest.skip("the bindings of TensorRT are missing: scripts/test_tools.sh fetches them")
    program = "from tandem import tensorrt_library as t; print(t.load().__name__, t.version())"
    environment = {**os.environ, "PYTHONPATH": f"{BINDINGS}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["tensorrt_bindings", "11.1.0.106"], done.stderr
