"""A trace of the torch model for TensorBoard or https://ui.perfetto.dev: `make profile`.

The model that the engine was built from, in full precision, answers one prompt token by token. It says which modules a
kernel belongs to, which the engine's table (benchmarks.operators) does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from build_engines.fetch import fetch
from build_engines.language import checkpoint_of
from build_engines.source import resolve

PROMPT = "Explain to a child why the sky is blue, in a few sentences."
DIRECTORY = Path(".cache/profile")
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="directory, hub id or GGUF file (default: the default model)")
    parser.add_argument("--tokens", type=int, default=8, help="to generate (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=DIRECTORY, help="directory (default: %(default)s)")
    arguments = parser.parse_args()
    checkpoint = checkpoint_of(resolve(arguments.source or str(fetch())))
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function, tensorboard_trace_handler
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(checkpoint)(PROMPT, return_tensors="pt").input_ids
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])

    def answer(count: int) -> None:
        with record_function("prefill"):
            output = model(tokens, use_cache=True)
        for step in range(count):
            chosen = output.logits[:, -1:].argmax(-1)
            with record_function(f"decode {step}"):
                output = model(chosen, past_key_values=output.past_key_values, use_cache=True)

    with torch.inference_mode():
        answer(WARM_UP)
        handler = tensorboard_trace_handler(str(arguments.output))
        with profile(activities=activities, on_trace_ready=handler, record_shapes=True, with_modules=True) as trace:
            answer(arguments.tokens)
    print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))
    print(
        f"trace in {arguments.output}: open it at https://ui.perfetto.dev, or `tensorboard --logdir {arguments.output}`"
    )


if __name__ == "__main__":
    main()
