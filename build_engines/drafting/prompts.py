"""The prompts that a drafter learns from: two published sets, and many made from templates."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence

from build_engines.drafting.templates import FIELDS, KINDS

SHARED_WORDS = 8  # prompts that share so many words in a row with a held-out one are left out
SEED = 7


def generated(count: int, terms: Sequence[tuple[str, str]], seed: int = SEED) -> list[str]:
    """`count` different prompts, the same ones for the same arguments.

    Args:
        terms: words and texts that define them, for example `foldoc.entries()`.
    """
    source = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        (kind,) = source.choices([templates for _, templates in KINDS], [weight for weight, _ in KINDS])
        found[_fill(source.choice(kind), terms, source)] = None
    return list(found)


def _fill(template: str, terms: Sequence[tuple[str, str]], source: random.Random) -> str:
    values: dict[str, str] = {name: source.choice(words) for name, words in FIELDS.items()}
    values |= {f"{name}2": source.choice(FIELDS[name]) for name in ("place", "goods", "name")}
    term, text = source.choice(terms)
    values |= {"term": term, "text": text, "term2": source.choice(terms)[0], "n": str(source.randint(3, 7))}
    a, b, c = source.randint(4, 40), source.randint(3, 60), source.randint(2, 12)
    values |= {"a": str(a), "b": str(b), "c": str(c), "big": str(c * source.randint(20, 60))}
    values |= {f"c{k}": str(c + (k - 1) * a) for k in (2, 3, 4)}
    prompt = template.format_map(values)
    return prompt[0].upper() + prompt[1:]


def ifbench(text: str) -> list[str]:
    """The instructions of IFBench, from its JSON lines."""
    return [json.loads(line)["prompt"].strip() for line in text.splitlines()]


def human_eval(text: str) -> list[str]:
    """The tasks of HumanEval, from its JSON lines, as a chat would put them."""
    return [f"Complete this Python function:\n\n{json.loads(line)['prompt'].strip()}" for line in text.splitlines()]


def mt_bench(text: str) -> list[str]:
    """The first turns of MT-Bench, from its JSON lines: held out, for measuring."""
    return [json.loads(line)["turns"][0] for line in text.splitlines()]


def disjoint(prompts: Sequence[str], held_out: Sequence[str]) -> list[str]:
    """`prompts` without those that share `SHARED_WORDS` words in a row with a text of `held_out`, or are equal."""
    known = {run for text in held_out for run in _runs(text)}
    return [prompt for prompt in prompts if known.isdisjoint(_runs(prompt))]


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of `SHARED_WORDS` words; a shorter text is one run."""
    words = re.findall(r"\w+", text.lower())
    for at in range(max(1, len(words) - SHARED_WORDS + 1)):
        yield tuple(words[at : at + SHARED_WORDS])
