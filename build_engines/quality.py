"""Which precision to serve with: perplexity and speed of every sensible combination, measured on this machine.

The answer is the fastest one whose perplexity on held-out text is within 1 % of full precision.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from build_engines.held_out_text import handbook
from build_engines.language import build
from build_engines.perplexity import WINDOW, perplexity, windows
from build_engines.progress import console, counted
from build_engines.recipe import Recipe
from build_engines.source import Source
from tandem.engines import Engine, EngineOptions, Row, load_engine
from tandem.manifest import Manifest

CACHE = Path(".cache/engines/quality")
MEASURED = CACHE / "perplexity.json"
REFERENCE = Recipe("fp32", kv_cache="f32", dynamic_quantization_group=0)
CANDIDATES = (
    Recipe("bf16", activations="bf16", kv_cache="bf16", dynamic_quantization_group=0),
    Recipe("int8", kv_cache="f16", dynamic_quantization_group=0),
    Recipe("int8", kv_cache="f16", dynamic_quantization_group=32),
    Recipe("int8", kv_cache="f16", dynamic_quantization_group=64),
    Recipe("int8", kv_cache="u8", dynamic_quantization_group=64),
    Recipe("int8", activations="bf16", kv_cache="bf16", dynamic_quantization_group=64),
    Recipe("int4", group_size=64, zero_points="none", kv_cache="f16", dynamic_quantization_group=64),
    Recipe("int4", group_size=32, zero_points="integer", kv_cache="f16", dynamic_quantization_group=32),
    Recipe("int4", group_size=32, kv_cache="f16", dynamic_quantization_group=0),
)
LIMIT = 0.01  # how much perplexity may rise over the reference
STREAMS = (1, 8, 16)
PREFILL = 512
_PAST = 128  # tokens in the cache of a stream when decoding is timed
_STEPS = 8  # decoding steps that are timed together
_POOL_MB = 512


@dataclasses.dataclass(slots=True)
class Result:
    """What was measured of one recipe."""

    recipe: Recipe
    megabytes: float
    perplexity: float
    tokens_per_second: dict[int, float] = dataclasses.field(default_factory=dict)
    """Decoding speed of all streams together, by number of streams."""
    prefill_ms: float = 0.0
    """Time of one step with 512 new tokens."""


def measure(source: Source, windows_count: int, rounds: int) -> list[Result]:
    """Build, rate and time the reference and every candidate; the reference comes first.

    Speeds are medians over `rounds`, in which the engines take turns, so that a drift of the machine meets all alike.
    """
    recipes = (REFERENCE, *CANDIDATES)
    directories = [CACHE / recipe.weights_label for recipe in recipes]
    texts: list[list[int]] = []
    results = []
    for recipe, directory in zip(recipes, directories, strict=True):
        manifest = build(source, directory, recipe)
        texts = texts or _texts(directory, windows_count)
        value = _perplexity(manifest, directory, recipe, texts)
        size = (directory / "openvino_model.bin").stat().st_size / 1e6
        results.append(Result(recipe, size, value))
        if recipe is not REFERENCE:
            quality = {"perplexity": round(value, 4), "reference_perplexity": round(results[0].perplexity, 4),
                       "text": "debian-handbook", "tokens": sum(map(len, texts))}  # fmt: skip
            dataclasses.replace(manifest, quality=quality).write(directory)
    _time(source, results, directories, rounds)
    return results


def _perplexity(manifest: Manifest, directory: Path, recipe: Recipe, texts: list[list[int]]) -> float:
    """Perplexity of an engine; what was measured before under the same build key and settings is not measured again."""
    known = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    key = f"{manifest.build_key} {describe(recipe)} {digest}"
    if key not in known:
        engine = load_engine(directory, _options(recipe))
        with counted(f"perplexity of {describe(recipe)}", sum(map(len, texts))) as advance:
            known[key] = perplexity(engine, texts, advance)
        MEASURED.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return float(known[key])


def _texts(directory: Path, count: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return windows(tokenizer.encode(handbook(), add_special_tokens=False).ids, count)


def _time(source: Source, results: Sequence[Result], directories: Sequence[Path], rounds: int) -> None:
    """Fill in the speeds. All engines stay loaded, so that turns cost nothing."""
    engines = []
    for result, directory in zip(results, directories, strict=True):
        build(source, directory, result.recipe)  # two recipes may share a directory: set its run-time settings
        engines.append(load_engine(directory, _options(result.recipe)))
    seconds: list[dict[int, list[float]]] = [{streams: [] for streams in (*STREAMS, PREFILL)} for _ in engines]
    with counted("speed", rounds * len(engines)) as advance:
        for number in range(rounds + 1):
            for engine, times in zip(engines, seconds, strict=True):
                for streams in STREAMS:
                    taken = _decode(engine, streams)
                    if number:  # the first round warms up
                        times[streams].append(taken)
                taken = _prefill(engine)
                if number:
                    times[PREFILL].append(taken)
                    advance(1)
    for result, times in zip(results, seconds, strict=True):
        result.tokens_per_second = {streams: streams / statistics.median(times[streams]) for streams in STREAMS}
        result.prefill_ms = statistics.median(times[PREFILL]) * 1e3


def _options(recipe: Recipe) -> EngineOptions:
    """As the server loads it, except that a cache in u8 cannot be independent of the batch."""
    return EngineOptions(kv_cache_mb=_POOL_MB, invariance="off" if recipe.kv_cache == "u8" else "step")


def _decode(engine: Engine, streams: int) -> float:
    """Seconds per step in which each of `streams` sequences gets one token."""
    each = -(-(_PAST + _STEPS) // engine.block_size)
    tables = [range(index * each, (index + 1) * each) for index in range(streams)]
    start = time.perf_counter()
    for step in range(_STEPS):
        engine.forward([Row([100 + step], _PAST + step, table) for table in tables])
    return (time.perf_counter() - start) / _STEPS


def _prefill(engine: Engine) -> float:
    start = time.perf_counter()
    engine.forward([Row(range(100, 100 + PREFILL), 0, range(-(-PREFILL // engine.block_size)))])
    return time.perf_counter() - start


def choose(results: Sequence[Result]) -> Result:
    """The fastest result within `LIMIT` of the first one's perplexity; speed is the geometric mean over `STREAMS`.

    Measured but not chosen is what cannot keep answers independent of what else is being served, on every machine: a
    cache in u8, whose scales depend on the order of writes, and quantized weights with bf16 arithmetic, which on
    processors with AMX differ with the width of a step (and are slower there).
    """
    limit = results[0].perplexity * (1 + LIMIT)
    good = [result for result in results if result.perplexity <= limit and _keeps_invariance(result.recipe)]
    return max(good, key=lambda result: statistics.geometric_mean(result.tokens_per_second.values()))


def _keeps_invariance(recipe: Recipe) -> bool:
    quantized = recipe.weights in ("int8", "int4")
    return recipe.kv_cache != "u8" and not (quantized and recipe.activations == "bf16")


def describe(recipe: Recipe) -> str:
    """One line: weights / activations / KV cache, and the dynamic quantization group."""
    group = recipe.dynamic_quantization_group
    return f"{recipe.weights_label} / {recipe.activations} / {recipe.kv_cache}" + (f", DQ {group}" if group else "")


def table(results: Sequence[Result], chosen: Result) -> str:
    """Markdown table, the chosen row in bold."""
    head = ["weights / activations / KV cache", "MB", "perplexity", "change"]
    head += [f"tokens/s, {streams}" for streams in STREAMS] + [f"prefill {PREFILL}, ms"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for result in results:
        change = result.perplexity / results[0].perplexity - 1
        cells = [describe(result.recipe), f"{result.megabytes:.0f}", f"{result.perplexity:.3f}", f"{change:+.2%}"]
        cells += [f"{result.tokens_per_second[streams]:.0f}" for streams in STREAMS] + [f"{result.prefill_ms:.0f}"]
        if result is chosen:
            cells = [f"**{cell}**" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(results: Sequence[Result], source: Source, command: str, windows_count: int, rounds: int) -> str:
    """The Markdown page with the table, what was measured, on what, and how to measure again."""
    chosen = choose(results)
    return f"""# Precision: quality and speed

Made by `{command}` on {time.strftime("%Y-%m-%d")}, openvino {metadata.version("openvino")}, {_machine()}.
Model: {source.name}. Rows name the precision of weights, arithmetic and KV cache; DQ is the number of activations
that share a scale when they are quantized on the fly (none: not quantized).

{table(results, chosen)}

Chosen: **{describe(chosen.recipe)}**, the fastest (geometric mean over {", ".join(map(str, STREAMS))} streams) whose
perplexity is within {LIMIT:.0%} of full precision, among those with which answers do not depend on what else is being
served. That leaves out a cache in u8, and on processors with AMX quantized weights with bf16 arithmetic.

* Perplexity: {windows_count} windows of {WINDOW} tokens, evenly spaced over the English text of the Debian package
  debian-handbook (no part of it calibrates anything), each from an empty cache, fed in pieces of 64 tokens through the
  paged engine, so that activations and KV cache count. Lower is better; the reference is the first row.
* Speed: bare engine, {_PAST} tokens in the cache of each stream, one new token per stream and step; medians over
  {rounds} rounds in which the engines take turns. On a shared machine differences below about 10 % are uncertain.
* GLIBC_TUNABLES was `{os.environ.get("GLIBC_TUNABLES", "not set")}` (huge pages speed decoding up).
"""


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"


def run(source: Source, output: Path, windows_count: int, rounds: int, command: str) -> None:
    """Measure, print the table, and write the page to `output`."""
    results = measure(source, windows_count, rounds)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report(results, source, command, windows_count, rounds), encoding="utf-8")
    print(table(results, chosen := choose(results)))
    console.print(f"fastest within {LIMIT:.0%}: [bold]{describe(chosen.recipe)}[/]; written to {output}")
