"""The kernels of tandem/device over many random rows in the interpreter, and compiled for every GPU we name.

Not part of `make test`: `make test-kernels`, some ten minutes. TANDEM_SWEEP_ROWS says how many rows, TANDEM_SWEEP_SEED
where to begin.
"""

from __future__ import annotations

import os
import subprocess
import sys

import device_kernels
import numpy as np
import pytest
from sampling_cases import compare, draw_batch

device_kernels.require(interpreted=True)

from tandem.device import sampler

ROWS = int(os.environ.get("TANDEM_SWEEP_ROWS", "2000"))
SEED = int(os.environ.get("TANDEM_SWEEP_SEED", "0"))
BATCH = 20
VOCABULARIES = (1, 2, 7, 64, 65, 129, 1000, 5000, 49152)
ARCHITECTURES = ("80", "86", "89", "90", "120")


@pytest.mark.timeout(7200)
def test_random_rows():
    """Every batch is told by its seed, so that a failure can be repeated alone."""
    for batch in range(-(-ROWS // BATCH)):
        rng = np.random.default_rng([SEED, batch])
        vocab = int(rng.choice(VOCABULARIES, p=[0.03, 0.05, 0.12, 0.15, 0.15, 0.15, 0.15, 0.15, 0.05]))
        logits, choices = draw_batch(rng, vocab, BATCH)
        try:
            compare(sampler, logits, choices, block=1 << max(4, (vocab - 1).bit_length()))
        except AssertionError as error:
            raise AssertionError(f"seed {SEED}, batch {batch}, vocabulary {vocab}: {error}") from error


@pytest.mark.timeout(1800)
def test_compiled_for_every_gpu_nothing_is_contracted():
    env = {name: value for name, value in os.environ.items() if name != device_kernels.INTERPRET}
    command = [sys.executable, str(device_kernels.ROOT / "tests" / "support" / "compiled_kernels.py"), *ARCHITECTURES]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": exact") == 3 * len(ARCHITECTURES)
