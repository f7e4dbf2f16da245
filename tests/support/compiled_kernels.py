"""Compile the kernels of tandem/device for GPUs that need not be there, and look at their arithmetic in PTX.

python compiled_kernels.py ARCHITECTURE ...     for example 80 89 120; without TRITON_INTERPRET
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
sys.path.append(str(ROOT / ".cache" / "openai-triton"))

from build_engines.device_kernels import Kernel, compiled, kernels
from tandem.device.acceptance import accept_kernel

KERNELS = (
    *kernels().values(),
    Kernel(accept_kernel, "*i32 *i32 *i32 *i32 *i32 *i32", {"ENDS": 2, "BLOCK": 32}),
)
# Arithmetic on floats that is not rounded as IEEE 754 says, or that a later stage of the compiler may fuse.
LOOSE = re.compile(
    r"(fma|mad)\.(.*\.)?f\d\d(x2)?|(mul|add|sub|div)\.(?!rn\.)(.*\.)?f\d\d(x2)?|.*\.(ftz|approx|full)\..*"
)


def loose_instructions(kernel: Kernel, arch: int, fusion: bool) -> list[str]:
    made = compiled(kernel, arch, fusion)
    assert made.asm["cubin"], "ptxas made nothing"
    instructions = re.findall(r"^\s*(?:@\S+\s+)?([a-z][\w.]*)\s", made.asm["ptx"], re.MULTILINE)
    return sorted({one for one in instructions if LOOSE.fullmatch(one)})


def main() -> int:
    """Print a line for each kernel and architecture; 1 if one of them computes inexactly."""
    failed = False
    architectures = [int(text) for text in sys.argv[1:]]
    for arch in architectures:
        for kernel in KERNELS:
            loose = loose_instructions(kernel, arch, fusion=False)
            failed |= bool(loose)
            print(f"{kernel.function.fn.__name__} sm_{arch}: {', '.join(loose) or 'exact'}", flush=True)
    loose = loose_instructions(KERNELS[0], architectures[0], fusion=True)
    print(f"choose_kernel sm_{architectures[0]} with fusion: {'contracted' if loose else 'exact'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
