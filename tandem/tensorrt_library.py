"""Python bindings of TensorRT: which there are, and in what version."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import Any

# The package of the bindings alone, which NGC's image gets (docker/tensorrt_python.sh), has a module of its own name.
_MODULES = {"tensorrt": "tensorrt", "tensorrt-cu13-bindings": "tensorrt_bindings"}


def load() -> Any:
    """The module.

    Raises:
        ImportError: there is none, or its libraries are not of its version.
    """
    errors = []
    for module in _MODULES.values():
        try:
            return import_module(module)
        except ImportError as error:
            errors.append(str(error))
    raise ImportError(f"TensorRT's Python bindings are not here: {'; '.join(errors)}")


def version() -> str | None:
    """Version of the installed bindings, as `tensorrt.__version__` says it; None if there are none."""
    for distribution in _MODULES:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
