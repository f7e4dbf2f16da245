"""Which engine the tests serve: that of the environment variable ENGINE, `openvino` or `onnxruntime`."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.runtime import CACHE
from launcher.server import REPOSITORY

RUNTIME = os.environ.get("ENGINE") or "openvino"
HAS_SLOTS = RUNTIME != "openvino"
LONG = 1600 if HAS_SLOTS else 4000  # tokens that no test waits for; a slot holds 2048, with the prompt
NARROW_LENGTH = 2000 if HAS_SLOTS else 4500  # tokens of a sequence on the server `narrow_server`, at most
SLOT_MB = 49  # of the default model, 2112 positions at f16


def default_engine() -> Path:
    """Directory of the default model's int8 engine for this runtime."""
    return CACHE.resolve() / "engines" / RUNTIME if HAS_SLOTS else REPOSITORY / "target" / "1" / "engine"


def pool_mb(blocks_mb: int, slots: int) -> str:
    """KV memory for a test: so many MB of blocks, or where the engine has slots, so many of those."""
    return str(slots * SLOT_MB if HAS_SLOTS else blocks_mb)
