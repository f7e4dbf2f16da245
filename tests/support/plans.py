"""Engines with KV slots of the default model, built by the command that people use."""

from __future__ import annotations

from pathlib import Path

from build_engines.__main__ import main

LENGTH = "1024"  # tokens of a slot


def build_default(output: Path, runtime: str, weights: str) -> Path:
    """Build the default model's engine into `output`, and return that."""
    cache = ["--kv-cache", "f32"] if weights == "fp32" else []
    arguments = ["default", "--runtime", runtime, "--weights", weights, *cache, "--max-length", LENGTH]
    assert main([*arguments, "--output", str(output), "--force"]) == 0
    return output
