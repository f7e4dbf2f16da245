"""What the choice of tokens costs: `python -m benchmarks.sampling [--rows 16] [--step-ms 20]`.

The logits are drawn: a bulk of normal variates with standard deviation 2.5 and, 8 above the bulk's mean, 40 likelier
tokens, which is about what a small language model gives. `--logits FILE.npy` takes real ones, float32 [n, vocab].
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.sampling import Choice, SamplingParams, SamplingState, choose, warm_up

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, log-probabilities": {"log_probs": True},
    "greedy, all penalties": {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.2},
    "T 0.8": {"temperature": 0.8},
    "T 0.8, top_k 50": {"temperature": 0.8, "top_k": 50},
    "T 0.8, top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "T 0.8, top_k 50, top_p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "T 0.8, min_p 0.05": {"temperature": 0.8, "min_p": 0.05},
}


def draw_logits(rows: int, vocab: int) -> npt.NDArray[np.float32]:
    """Logits [rows, vocab] with the shape that the module's docstring describes."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((rows, vocab)) * 2.5
    for row in logits:
        row[rng.choice(vocab, 40, replace=False)] += 8
    return logits.astype(np.float32)


def measure(logits: npt.NDArray[np.float32], history: int, repeats: int, **params: Any) -> list[float]:
    """Seconds of each of `repeats` calls that choose one token per row."""
    rng = np.random.default_rng(1)
    choices = []
    for seed in range(len(logits)):
        state = SamplingState(SamplingParams(seed=seed, **params), history // 2)
        state.append(rng.integers(0, logits.shape[1], history).tolist())
        choices.append(Choice(state, history))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        choose(logits, choices)
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Print the median and the 10 % and 90 % quantiles per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--history", type=int, default=500, help="tokens before the one that is chosen")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--step-ms", type=float, help="duration of a whole step, to print the share")
    parser.add_argument("--logits", help="a .npy file of real logits, float32 [n, vocab], instead of drawn ones")
    arguments = parser.parse_args()
    if arguments.logits:
        loaded = np.load(arguments.logits).astype(np.float32)
        logits = np.ascontiguousarray(loaded[np.arange(arguments.rows) % len(loaded)])
    else:
        logits = draw_logits(arguments.rows, arguments.vocab)
    warm_up(logits.shape[1])
    print(f"{len(logits)} rows of {logits.shape[1]} logits, microseconds per call")
    for name, params in SETTINGS.items():
        low, median, high = np.quantile(
            measure(logits, arguments.history, arguments.repeats, **params), [0.1, 0.5, 0.9]
        )
        share = f"   {median * 1e5 / arguments.step_ms:5.2f} % of a step" if arguments.step_ms else ""
        print(f"{name:28} {median * 1e6:8.0f}   ({low * 1e6:.0f} .. {high * 1e6:.0f}){share}")


if __name__ == "__main__":
    main()
