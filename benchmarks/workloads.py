"""What the speculation benchmark sends: chat messages and their parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client import Parameters
from perf import mt_bench

COPYING = Path(__file__).with_name("copying.json")
NAMES = ("mt-bench", "mt-bench-sampled", "copying", "mixed")
QUESTION_TOKENS, COPYING_TOKENS = 128, 160
TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class Job:
    """One request: the user's message, and what is asked of the answer."""

    message: str
    parameters: Parameters
    repetition: int = 0  # tells it from the same request elsewhere in the run


def jobs(name: str, count: int | None = None) -> list[Job]:
    """Requests of a workload: `count` of them, or as many different ones as it has. More than it has are repeated."""
    if name == "copying":
        return _cycled(_copying(), count)
    if name == "mixed":
        # Every other request copies; of the questions every other is sampled.
        questions = _questions(None if count is None else max(1, count // 2))
        copying = _cycled(_copying(), len(questions))
        pairs = zip(copying, questions, strict=True)
        return _cycled([job for pair in pairs for job in pair], count)
    every = {"mt-bench": 0, "mt-bench-sampled": 1}[name]
    return _cycled(_questions(count, every), count)


def _questions(count: int | None, sampled_every: int = 2) -> list[Job]:
    """MT-Bench questions; every so many of them is sampled, none with 0."""
    prompts = mt_bench.prompts(min(count or mt_bench.QUESTIONS, mt_bench.QUESTIONS))
    made = []
    for index, prompt in enumerate(prompts):
        parameters: Parameters = {"max_tokens": QUESTION_TOKENS}
        if sampled_every and index % sampled_every == sampled_every - 1:
            parameters |= {"temperature": TEMPERATURE, "random_seed": index}
        made.append(Job(prompt, parameters))
    return made


def _copying() -> list[Job]:
    entries = json.loads(COPYING.read_text(encoding="utf-8"))
    return [Job(entry["prompt"], {"max_tokens": COPYING_TOKENS}) for entry in entries]


def _cycled(jobs: Sequence[Job], count: int | None) -> list[Job]:
    wanted = len(jobs) if count is None else count
    made = []
    for index in range(wanted):
        job = jobs[index % len(jobs)]
        made.append(Job(job.message, job.parameters, job.repetition + index // len(jobs) * len(jobs)))
    return made
