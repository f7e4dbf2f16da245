"""`python -m build_engines.vision.litert_convert PROGRAM.pt2 MODEL.tflite`, with the converter's packages.

A process of its own: see `build_engines.vision.litert_engine`.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Convert an exported program of torch."""
    source, target = sys.argv[1:]
    # Behind our own packages, so that only what is missing comes from there.
    sys.path.append(os.environ["TANDEM_LITERT_TOOLS"])
    import litert_torch
    import torch

    program = torch.export.load(source)
    litert_torch.convert(program.module(), program.example_inputs[0]).export(target)


if __name__ == "__main__":
    main()
