"""Whether NVIDIA's own bindings have what our code calls, with so many arguments. Run as a program:

    PYTHONPATH=BINDINGS python binding_calls.py FILE ...

Reads the files' syntax trees. Objects are told apart by the names that they have in our code. Prints a line for each
thing that is missing or does not take the arguments, and then how many were looked at.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What the names of our code are bound to.
CLASSES = {
    "self._runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "profile.context": "IExecutionContext",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "used[1]": "ITimingCache",
}
OURS = {"profile": {"context", "most", "takes"}}  # the same name for something of ours
# Of TensorRT for RTX, which compiles without a GPU; and constructors, which are called with their object.
LEFT_OUT = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability", "__init__"}


def accesses(tree: ast.AST) -> Iterator[tuple[str, str, ast.Call | None]]:
    """Every attribute with what it is read from, and the call that it is the function of, if it is."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node.value), node.attr, calls.get(id(node))


def cuda_calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names of CUDA's functions that are called through `call` in its forms, and how many arguments they get."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            texts = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            if names := [text for text in texts if re.match("cu(da)?[A-Z]", text)]:
                left_out = ("cuda", "self._cuda", "driver", "self._driver", repr(names[0]))
                yield names[0], len([a for a in node.args if ast.unparse(a) not in left_out])


def takes(documentation: str, given: int) -> bool:
    """Whether one of the signatures in a docstring takes so many arguments (a method's `self` not counted)."""
    for signature in re.findall(r"\w+\(([^\n]*)\)", documentation):
        parts = [part.strip() for part in re.split(r",(?![^\[(<]*[\])>])", signature) if part.strip()]
        if parts and parts[0].startswith("*"):
            continue
        parts = [part for part in parts if not part.startswith("self")]
        needed = [part for part in parts if "=" not in part]
        if len(needed) <= given <= len(parts):
            return True
    return False


def complaints(source: str, trt: Any, cuda: Any, driver: Any) -> tuple[list[str], int]:
    """What is wrong, and how many accesses were compared."""
    found, looked = [], 0
    tree = ast.parse(source)
    for owner, name, call in accesses(tree):
        if name in OURS.get(owner, ()) or name in LEFT_OUT:
            continue
        if owner in ("trt", "cuda", "self._cuda") or owner.startswith("trt."):
            holder: Any = trt if owner.startswith("trt") else cuda
            for part in owner.split(".")[1:] if owner.startswith("trt.") else []:
                holder = getattr(holder, part)
        elif owner in CLASSES:
            holder = getattr(trt, CLASSES[owner])
        elif owner == "kinds":
            holder = cuda.cudaDeviceAttr
        elif owner.endswith(".cudaMemcpyKind"):
            holder = cuda.cudaMemcpyKind
        else:
            continue
        looked += 1
        if not hasattr(holder, name):
            found.append(f"{owner}.{name}: there is no such thing")
        elif call is not None and not any(isinstance(argument, ast.Starred) for argument in call.args):
            text = getattr(holder, name).__doc__ or ""
            if re.search(rf"\b{name}\(", text) and not takes(text, len(call.args) + len(call.keywords)):
                found.append(f"{owner}.{name}: does not take {len(call.args)} arguments")
    for name, given in cuda_calls(tree):
        looked += 1
        function = getattr(cuda if name.startswith("cuda") else driver, name, None)
        if function is None:
            found.append(f"{name}: there is no such function")
        elif not takes((function.__doc__ or "").splitlines()[0], given):
            found.append(f"{name}: does not take {given} arguments")
    return found, looked


def main() -> None:
    import tensorrt_bindings as trt
    from cuda.bindings import driver, runtime

    looked = 0
    for path in sys.argv[1:]:
        wrong, count = complaints(Path(path).read_text(), trt, runtime, driver)
        looked += count
        for line in wrong:
            print(f"{Path(path).name}: {line}")
    print(f"{looked} compared with TensorRT {trt.__version__}")


if __name__ == "__main__":
    main()
