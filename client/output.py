"""Writing answers to the terminal, a pipe or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

from client.response import Chunk, Result


def write_stream(chunks: Iterable[Chunk]) -> None:
    """Write the text to standard output as it comes."""
    for chunk in chunks:
        if chunk.text:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()


def summary(result: Result, streamed: bool = True) -> str:
    """One line: tokens, TTFT (of a streamed answer), tokens/s and the finish reason."""
    timing = result.timing
    parts = [f"{result.prompt_tokens} prompt + {result.generated_tokens} generated tokens"]
    if streamed and timing.ttft_s is not None:
        parts.append(f"TTFT {timing.ttft_s * 1000:.0f} ms")
    parts.append(f"{timing.tokens_per_s or 0.0:.1f} tokens/s")
    parts.append(f"finish: {result.finish_reason}")
    return f"[{', '.join(parts)}]"


def as_json(result: Result, streamed: bool = True) -> str:
    """One JSON object on one line: the fields of `Result` that are there, and the timing in seconds."""
    timing = result.timing
    fields = asdict(result) | {
        "timing": {
            "ttft_s": timing.ttft_s if streamed else None,
            "total_s": timing.total_s,
            "tokens_per_s": timing.tokens_per_s,
            "inter_token_s": timing.inter_token_s if streamed else None,
        }
    }
    fields["timing"] = {name: value for name, value in fields["timing"].items() if value is not None}
    return json.dumps({name: value for name, value in fields.items() if value is not None}, ensure_ascii=False)
