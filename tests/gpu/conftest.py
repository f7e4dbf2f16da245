"""What a person with an NVIDIA GPU runs by `make test-gpu`. Nothing here has been run yet: there was no GPU.

Each test says why it is skipped where it cannot run. What plans of TensorRT need belongs here too, one file each:
building (`test_plans.py`), parity with the CPU engine (`test_parity.py`), exactness through the server
(`test_exactness.py`).
"""

from __future__ import annotations

import importlib.util

import pytest

from launcher.runtime import has_gpu


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips without a GPU."""
    if not has_gpu():
        pytest.skip("no NVIDIA GPU: `nvidia-smi -L` lists none")


@pytest.fixture(scope="session")
def cuda(gpu: None) -> str:
    """torch's name of the GPU; skips where torch cannot use it."""
    import torch

    if not torch.cuda.is_available():
        build = torch.version.cuda or "none, a CPU build"
        pytest.skip(f"torch does not use the GPU (its CUDA: {build}): set PY_GPU to a Python whose torch does")
    return "cuda"


@pytest.fixture(scope="session")
def tensorrt(gpu: None) -> str:
    """TensorRT's version; skips where it is not installed."""
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("no TensorRT for this Python: run inside the image of the gpu profile")
    import tensorrt as trt

    return str(trt.__version__)
