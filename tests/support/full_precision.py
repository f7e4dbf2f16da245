"""The default model in full precision, twice: as a torch model, the oracle, and as an engine."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from served_engine import HAS_SLOTS, RUNTIME
from transformers import AutoModelForCausalLM

from launcher.runtime import CACHE, PROJECT
from launcher.server import REPOSITORY
from tandem.prompt import PromptEncoder

ENGINE = CACHE / "engines" / (f"{RUNTIME}-fp32" if HAS_SLOTS else "fp32")
END = 2  # <|im_end|>
LONG = 128  # tokens
Floats = npt.NDArray[np.float32]


@functools.cache
def engine() -> Path:
    """Directory of the engine with fp32 weights, activations and KV cache; built if it is not there."""
    options = ["--weights", "fp32", "--activations", "f32", "--kv-cache", "f32", "--dynamic-quantization-group", "0"]
    _build("default", "--runtime", RUNTIME, *options, "--output", str(ENGINE))
    return ENGINE


@functools.cache
def torch_model() -> Any:
    """The checkpoint that all engines of the default model are built from, fp32."""
    checkpoint = _build("checkpoint").splitlines()[-1]
    return AutoModelForCausalLM.from_pretrained(PROJECT / checkpoint, dtype=torch.float32).eval()


def _build(*arguments: str) -> str:
    command = [sys.executable, "-m", "build_engines", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


@functools.cache
def encoder() -> PromptEncoder:
    """The default model's tokenizer and chat template."""
    return PromptEncoder(REPOSITORY / "target" / "1" / "engine")


def encode_chat(prompt: str) -> list[int]:
    """Token ids of a chat with one message, ready for the answer."""
    text = encoder().render([{"role": "user", "content": prompt}])
    return encoder().encode(text, special_tokens=False)


@dataclass(frozen=True)
class Answer:
    """What torch generates greedily."""

    prompt: list[int]
    tokens: list[int]  # the answer, with the end token if it ended
    logits: Floats  # [len(tokens), vocab]: those that each token was chosen from

    def margin(self, position: int) -> float:
        """The largest logit minus the second largest."""
        second, first = np.partition(self.logits[position], -2)[-2:]
        return float(first - second)


def generate(prompts: Sequence[list[int]], max_tokens: int) -> list[Answer]:
    """Greedy answers by `transformers` generate. Long prompts go in a batch of their own: padding costs time."""
    answers: dict[int, Answer] = {}
    for long in (False, True):
        chosen = [index for index, prompt in enumerate(prompts) if (len(prompt) > LONG) is long]
        if chosen:
            answers |= zip(chosen, _generate_batch([prompts[index] for index in chosen], max_tokens), strict=True)
    return [answers[index] for index in range(len(prompts))]


def _generate_batch(prompts: Sequence[list[int]], max_tokens: int) -> list[Answer]:
    width = max(map(len, prompts))
    ids = torch.tensor([[END] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        output = torch_model().generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=END,
            pad_token_id=END, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    logits = torch.stack(output.logits).numpy()  # [step, prompt, vocab]
    answers = []
    for index, prompt in enumerate(prompts):
        tokens = output.sequences[index, width:].tolist()
        length = tokens.index(END) + 1 if END in tokens else len(tokens)
        answers.append(Answer(prompt, tokens[:length], logits[:length, index]))
    return answers


def logits_after(tokens: Sequence[int], last: int) -> Floats:
    """Logits of the last `last` positions of a text, [last, vocab]."""
    with torch.inference_mode():
        output: Floats = torch_model()(torch.tensor([list(tokens)]), logits_to_keep=last).logits[0].numpy()
    return output
