"""What a profile sends: the file for perf_analyzer's --input-data, made of real prompts."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perf import mt_bench
from perf.profile import Chats, Images, Part, Profile, Questions

_FLOATS = {
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty",
}  # fmt: skip


def entries(profile: Profile, count: int, salt: str, image_input: str = "image") -> list[dict[str, Any]]:
    """`count` requests for perf_analyzer.

    Each is asked for its token ids: perf_analyzer's export then says how many tokens every response brought. What the
    server remembers of other rounds must not help, so everything is under a salt of its own; within a round, questions
    that are sent again get another salt, and chats share what they would share.

    Args:
        profile: what to send.
        count: number of requests.
        salt: of this round.
        image_input: name of the classifier's input.
    """
    inputs = profile.inputs
    if isinstance(inputs, Images):
        return [{image_input: {"content": {"b64": image}, "shape": [1]}} for image in _images(inputs, count, salt)]
    made = _questions(inputs, count, salt) if isinstance(inputs, Questions) else _chats(inputs, count, salt)
    return [_entry({**request, **inputs.parameters}) for request in made]


def write(path: Path, requests: Sequence[dict[str, Any]]) -> None:
    """Write the requests as perf_analyzer reads them."""
    path.write_text(json.dumps({"data": list(requests)}), encoding="utf-8")


def _entry(request: dict[str, Any]) -> dict[str, Any]:
    values = {"stream": True, "return_token_ids": True, **request}
    if "messages" in values:
        values["messages"] = json.dumps(values["messages"])
    floats = {name: float(value) for name, value in values.items() if name in _FLOATS}
    return {name: {"content": [value], "shape": [1]} for name, value in {**values, **floats}.items()}


def _questions(inputs: Questions, count: int, salt: str) -> Iterator[dict[str, Any]]:
    texts = mt_bench.prompts()
    order = random.Random(1)
    parts = order.choices(inputs.mix, [part.share for part in inputs.mix], k=count) if len(inputs.mix) > 1 else []
    for index in range(count):
        part: Part = parts[index] if parts else inputs.mix[0]
        question = texts[index % len(texts)]
        if part.prompt_words:
            # From the beginning different, or they would share a prefix.
            rotated = itertools.cycle(texts[index % len(texts) :] + texts[: index % len(texts)])
            question = _joined(rotated, part.prompt_words)
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": part.max_tokens,
            "cache_salt": f"{salt}/{index // len(texts)}",
        }
        if part.whole:
            request["min_length"] = part.max_tokens
        yield request


def _chats(inputs: Chats, count: int, salt: str) -> Iterator[dict[str, Any]]:
    """Turn by turn: the first turn of every chat, then the second of every chat, and so on."""
    texts = mt_bench.prompts()
    chats = -(-count // inputs.turns)
    for number in range(count):
        turn, chat = divmod(number, chats)
        source = itertools.cycle(texts[(chat % inputs.systems) * 7 % len(texts) :] + texts)
        system = f"You are assistant {chat % inputs.systems}. Some texts to know:\n" + _joined(
            source, inputs.system_words
        )
        messages = [{"role": "system", "content": system}]
        for earlier in range(turn):
            messages.append({"role": "user", "content": texts[(chat + 11 * earlier) % len(texts)]})
            messages.append({"role": "assistant", "content": texts[(chat + 11 * earlier + 5) % len(texts)]})
        messages.append({"role": "user", "content": texts[(chat + 11 * turn) % len(texts)]})
        yield {"messages": messages, "max_tokens": inputs.max_tokens, "cache_salt": salt}


def _joined(texts: Iterator[str], words: int) -> str:
    """Texts one after the other, cut after so many words."""
    found: list[str] = []
    while len(found) < words:
        found += next(texts).split()
    return " ".join(found[:words])


def _images(inputs: Images, count: int, salt: str) -> list[str]:
    """JPEG files as BYTES tensors of one element, in base64: crops of the photo that matplotlib carries.

    Others for each salt, or the server's response cache would answer.
    """
    import matplotlib.cbook
    from PIL import Image

    photo = Image.open(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))).convert("RGB")
    order = random.Random(salt)
    made = []
    for index in range(count):
        edge = inputs.sizes[index % len(inputs.sizes)]
        span = order.randint(min(photo.size) // 2, min(photo.size))
        left, top = order.randint(0, photo.width - span), order.randint(0, photo.height - span)
        crop = photo.crop((left, top, left + span, top + span)).resize((edge, edge))
        data = io.BytesIO()
        crop.save(data, "JPEG", quality=90)
        # perf_analyzer sends the decoded bytes as they are: for a BYTES tensor they begin with their length.
        made.append(base64.b64encode(struct.pack("<I", data.tell()) + data.getvalue()).decode())
    return made
