"""Perplexity of the ONNX engines, by precision, and how far each may be from full precision."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from build_engines.errors import BuildError
from build_engines.held_out_text import handbook
from build_engines.language import build
from build_engines.perplexity import WINDOW, perplexity, windows
from build_engines.progress import console, counted
from build_engines.recipe import Recipe
from build_engines.source import Source
from tandem.engines import EngineOptions, load_engine

CACHE = Path(".cache/engines/quality")
RECIPES = (
    Recipe("fp32", kv_cache="f32", runtime="onnxruntime", length=WINDOW),
    Recipe("fp16", kv_cache="f16", runtime="onnxruntime", length=WINDOW),
    Recipe("int8", kv_cache="f16", runtime="onnxruntime", length=WINDOW),
    Recipe("w8a8", kv_cache="f16", runtime="onnxruntime", length=WINDOW),
    Recipe("int4", kv_cache="f16", runtime="onnxruntime", length=WINDOW),
)
LIMITS = {"fp16": 0.001, "int8": 0.01, "w8a8": 0.01, "int4": 0.06}  # how much perplexity may rise over the first's
_POOL_MB = 256


def run(source: Source, count: int) -> None:
    """Build each precision, take its perplexity on `count` windows of held-out text, and print the table.

    Raises:
        BuildError: one is beyond its limit.
    """
    texts: list[list[int]] = []
    found: dict[str, float] = {}
    lines = ["| weights, activations, KV cache | perplexity | over full precision | limit |", "|---|---:|---:|---:|"]
    for recipe in RECIPES:
        directory = CACHE / f"onnxruntime-{recipe.weights_label}"
        manifest = build(source, directory, recipe)
        if not texts:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            texts = windows(tokenizer.encode(handbook(), add_special_tokens=False).ids, count)
        engine = load_engine(directory, EngineOptions(kv_cache_mb=_POOL_MB))
        with counted(f"perplexity of {recipe.weights_label}", sum(map(len, texts))) as advance:
            found[recipe.weights] = perplexity(engine, texts, advance)
        del engine
        rise = found[recipe.weights] / found[RECIPES[0].weights] - 1
        limit = f"{LIMITS[recipe.weights]:.1%}" if recipe.weights in LIMITS else ""
        name = f"{manifest.weights}, {manifest.activations}, {manifest.kv_cache}"
        lines.append(f"| {name} | {found[recipe.weights]:.4f} | {rise:+.3%} | {limit} |")
    print("\n".join(lines))
    check(found)
    console.print(f"  [green]✓[/] all within their limits, over {count} windows of {WINDOW} tokens")


def check(found: dict[str, float]) -> None:
    """Raise `BuildError` if a perplexity, by precision of the weights, is beyond its limit."""
    reference = found[RECIPES[0].weights]
    for weights, limit in LIMITS.items():
        if not found[weights] <= reference * (1 + limit):  # so that NaN fails too
            raise BuildError(
                f"perplexity {found[weights]:.4f} with {weights} weights is {found[weights] / reference - 1:+.2%} over "
                f"{reference:.4f} in full precision; at most {limit:.1%} is allowed"
            )
