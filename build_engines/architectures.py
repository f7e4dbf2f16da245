"""The architectures that are built and tested (tests/unit/test_architectures.py)."""

import dataclasses

from build_engines.errors import BuildError
from build_engines.recipe import Recipe

SUPPORTED = {
    "llama": "Llama 1 to 3, SmolLM",
    "mistral": "Mistral",
    "qwen2": "Qwen2 and Qwen2.5",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, text only",
}


def require_supported(model_type: str) -> None:
    """Raise `BuildError` with the list of what is supported unless `model_type` is in it."""
    if model_type not in SUPPORTED:
        known = ", ".join(f"{key} ({text})" for key, text in SUPPORTED.items())
        raise BuildError(f"the architecture {model_type} is not supported. Supported: {known}.")


def adapted(recipe: Recipe, model_type: str) -> Recipe:
    """`recipe` with the run-time settings that the architecture insists on.

    Gemma 2 caps its attention scores; the engine computes that in f32 (tandem/engines/softcap.py). In an ONNX
    graph activations are f32, or f16 where the weights are, and nothing is chosen at load.
    """
    if recipe.is_onnx:
        in_half = recipe.weights == "fp16" or recipe.runtime == "tensorrt"
        kv_cache = "f16" if in_half else recipe.kv_cache
        activations = "f16" if in_half else "f32"
        return dataclasses.replace(recipe, activations=activations, kv_cache=kv_cache, dynamic_quantization_group=0)
    if model_type != "gemma2":
        return recipe
    return dataclasses.replace(recipe, activations="f32", kv_cache="f32")
