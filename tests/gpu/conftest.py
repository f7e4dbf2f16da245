"""What a person with an NVIDIA GPU runs by `make test-gpu`. Nothing here has been run yet: there was no GPU.

Each test says why it is skipped where it cannot run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from plans import build_default

from launcher.runtime import has_gpu
from tandem import tensorrt_library


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
    if (found := tensorrt_library.version()) is None:
        pytest.skip("no TensorRT for this Python: run inside the image of the gpu profile")
    return found


@pytest.fixture(scope="session", params=["fp16", "int8", "w8a8"])
def plan(request: pytest.FixtureRequest, tensorrt: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's engine for this GPU."""
    return build_default(tmp_path_factory.mktemp(request.param) / "engine", "tensorrt", request.param)
