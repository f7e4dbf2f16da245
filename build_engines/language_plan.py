"""A language model's graph to a plan of TensorRT, for the GPU of this machine.

Not run on a GPU yet. Tests build with TensorRT for RTX instead, which has the same calls and needs none;
tests/unit/test_tensorrt_api.py compares them with the bindings of TensorRT itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from build_engines import interrupt
from build_engines.compile_check import compiled
from build_engines.device_kernels import write_kernels
from build_engines.errors import BuildError
from build_engines.progress import console
from tandem import tensorrt_library
from tandem.engines.cuda_device import compute_capability
from tandem.engines.tensorrt import PLAN_FACTS

TIMING_CACHE = Path(".cache/tensorrt/timing.cache")
OPTIMIZATION_LEVEL = 4  # of 5; TensorRT's default is 3


def write_plan(graph: Path, directory: Path) -> None:
    """Compile `graph` into a plan of its name in `directory`, with what was found out about kernels in earlier builds.

    The kernels that choose tokens for it come beside it.

    Raises:
        BuildError: TensorRT, CUDA or a GPU is missing, or TensorRT refuses the graph.
    """
    try:
        from cuda.bindings import runtime as cuda

        trt = tensorrt_library.load()
        capability = compute_capability(cuda)
    except (ImportError, RuntimeError) as error:
        raise BuildError(
            f"a plan is built where its GPU is, in NVIDIA's Triton image (README, Docker): {error}. Without one, "
            "--compute-capability X.Y checks that the graph compiles"
        ) from error
    used: list[Any] = []  # the configuration, and its cache, which lives no longer than it

    def configure(config: Any) -> None:
        config.builder_optimization_level = OPTIMIZATION_LEVEL
        known = TIMING_CACHE.read_bytes() if TIMING_CACHE.is_file() else b""
        cache = config.create_timing_cache(known)
        if cache is None or not config.set_timing_cache(cache, False):  # of another GPU or version
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        config.progress_monitor = _monitor(trt, progress)
        used.extend((config, cache))

    with Progress(
        TextColumn("  [cyan]…[/] {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        plan = compiled(trt, graph, capability, configure)
    interrupt.check()
    (directory / graph.name).with_suffix(".plan").write_bytes(plan)
    facts = {"compute_capability": capability, "tensorrt": trt.__version__, "optimization_level": OPTIMIZATION_LEVEL}
    (directory / PLAN_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    TIMING_CACHE.parent.mkdir(parents=True, exist_ok=True)
    TIMING_CACHE.write_bytes(used[1].serialize())
    write_kernels(directory, capability)
    console.print(f"  [green]✓[/] compiled for compute capability {capability} by TensorRT {trt.__version__}")


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's phases as bars; Ctrl-C stops the build at the next step."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._tasks: dict[str, TaskID] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._tasks[phase] = progress.add_task(phase, total=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress.update(self._tasks[phase], completed=step + 1)
            return not interrupt.requested()

        def phase_finish(self, phase: str) -> None:
            progress.remove_task(self._tasks.pop(phase))

    return Monitor()
