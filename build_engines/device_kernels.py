"""The kernels of tandem.device, compiled for one GPU and put beside its plan: see tandem.engines.device_choice.

Their compiler is the Triton language (PyPI `triton`), which needs no GPU for that. Kernels are launched without it, so
what it decides about a launch is written down, and the arguments that its code declares are compared with ours.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from build_engines.errors import BuildError
from build_engines.progress import console, quiet, stage
from tandem.engines.device_choice import KERNELS_FILE

BLOCK = 1024  # tokens that a program handles at a time
_PTX_TYPES = {"i32": "u32"}  # of arguments; all others are addresses
_MOST_SHARED = 48 * 1024  # bytes of shared memory that a launch may ask for without more ado


class Kernel(NamedTuple):
    """A kernel and the types of its arguments, as the Triton language names them."""

    function: Any
    types: str
    constants: dict[str, int]


def kernels() -> dict[str, Kernel]:
    """Those that a plan needs, by the names that they have in `KERNELS_FILE`.

    Raises:
        ImportError: the Triton language is not installed.
    """
    from tandem.device.choice import choose_kernel
    from tandem.device.penalties import penalize_kernel

    types = "*i32 *fp64 *i64 *i64 *i32 *i64 *i32 *fp32 i32 i32"
    return {
        "choose": Kernel(choose_kernel, types, {"BLOCK": BLOCK}),
        "penalize": Kernel(penalize_kernel, "*fp32 *i32 *i32 *i32 *fp32 i32 i32", {"BLOCK": BLOCK}),
    }


def compiled(kernel: Kernel, arch: int, fusion: bool = False) -> Any:
    """What the Triton language makes of a kernel for a GPU.

    Args:
        kernel: one of ours.
        arch: for example 89.
        fusion: of multiplications and additions, which rounds otherwise than the CPU does.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name in kernel.function.arg_names if name not in kernel.constants]
    signature = dict(zip(names, kernel.types.split(), strict=True)) | dict.fromkeys(kernel.constants, "constexpr")
    source = ASTSource(kernel.function, signature, constexprs=kernel.constants)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": fusion})


def write_kernels(directory: Path, capability: str) -> bool:
    """Compile all for a compute capability, for example 8.9; False, and nothing written, without their compiler.

    Raises:
        BuildError: they cannot be launched as we launch them.
    """
    try:
        wanted = kernels()
    except ImportError:
        console.print("  [yellow]![/] tokens will be chosen on the CPU: `pip install .\\[kernels]` and build again")
        return False
    facts = {}
    with stage("compiling the choice of tokens"), quiet():
        for name, kernel in wanted.items():
            made = compiled(kernel, int(capability.replace(".", "")))
            file = f"{name}.cubin"
            (directory / file).write_bytes(made.asm["cubin"])
            facts[name] = {"file": file, "block": BLOCK, **launch_facts(name, kernel, made)}
    (directory / KERNELS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return True


def launch_facts(name: str, kernel: Kernel, made: Any) -> dict[str, Any]:
    """What a launch must know.

    Raises:
        BuildError: the code declares other arguments than ours, or wants memory that we do not give it.
    """
    metadata, arguments = made.metadata, kernel.types.split()
    declared = re.findall(r"\.param \.(\w+)", made.asm["ptx"].split(f".entry {metadata.name}(")[1].split(")")[0])
    ours = [_PTX_TYPES.get(kind, "u64") for kind in arguments]
    extra = declared[len(ours) :]
    if declared[: len(ours)] != ours or set(extra) - {"u64"}:
        raise BuildError(f"the kernel {name} takes {', '.join(declared)}, and not {', '.join(ours)}: another triton?")
    scratch = max(metadata.global_scratch_size, metadata.profile_scratch_size)
    if scratch or metadata.shared > _MOST_SHARED:
        raise BuildError(f"the kernel {name} wants {metadata.shared} bytes of shared and {scratch} of other memory")
    return {
        "entry": metadata.name,
        "arguments": arguments,
        "scratch": len(extra),
        "threads": metadata.num_warps * 32,
        "shared": metadata.shared,
    }
