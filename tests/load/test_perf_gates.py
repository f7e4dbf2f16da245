"""What the comparison of load tests promises: a planted regression of 15 % is flagged, reruns of one server are not.

`make load-gates` runs it, in one to two hours; PERF_RERUNS sets how many reruns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from launcher.server import REPOSITORY, Options, TritonServer
from perf import agreement, analyzer, compare, profile
from perf.runner import Run, new_directory
from perf.target import Target

RERUNS = int(os.environ.get("PERF_RERUNS", "10"))
pytestmark = [pytest.mark.load, pytest.mark.timeout(3600 * 3)]

# The engine does 3 of 20 passes twice, which changes nothing but the time: K and V are written where they were.
SLOW_MODEL = """
from tandem.engines import openvino
from tandem.triton.executor_models import TargetModel as TritonPythonModel

forward, calls = openvino.OpenVinoEngine.forward, 0


def slow_forward(self, rows, width=0):
    global calls
    calls += 1
    if calls % 20 in (0, 7, 14):
        forward(self, rows, width)
    return forward(self, rows, width)


openvino.OpenVinoEngine.forward = slow_forward
__all__ = ["TritonPythonModel"]
"""


def slow_repository(directory: Path) -> Path:
    """The models as they are, but for the engine's speed."""
    for model in ("generate", "target"):
        source, copy = REPOSITORY / model, directory / model
        (copy / "1").mkdir(parents=True)
        (copy / "config.pbtxt").write_bytes((source / "config.pbtxt").read_bytes())
        for part in (source / "1").iterdir():
            if part.name != "__pycache__":
                (copy / "1" / part.name).symlink_to(part.resolve())
    (directory / "target" / "1" / "model.py").unlink()
    (directory / "target" / "1" / "model.py").write_text(SLOW_MODEL)
    return directory


def measured(directory: Path, repository: Path = REPOSITORY) -> dict[str, Any]:
    """A run of the profile `steady` at a new server."""
    chosen = profile.load("steady")
    program, _ = analyzer.find()
    options = Options(repository=repository, models=("target", "generate"), env=chosen.environment(), start_seconds=600)
    with TritonServer(options) as server:
        served = Target(server.grpc_url, server.metrics_url, True, server)
        summary = Run(program, chosen, served, new_directory(chosen, directory)).measure(print)
    assert agreement.disagreements(summary) == []
    return summary


def show(name: str, changes: list[compare.Change]) -> None:
    for change in changes:
        print(
            f"{name}: {change.figure.title} {change.before:.1f} -> {change.after:.1f}, ratio {change.ratio:.3f} "
            f"({change.low:.3f}-{change.high:.3f}), p = {change.p:.4f} {change.flag}"
        )


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(tmp_path_factory.mktemp("baseline"))


def test_a_planted_regression_of_15_percent_is_flagged(baseline, tmp_path):
    changes = compare.compare(measured(tmp_path / "runs", slow_repository(tmp_path / "models")), baseline)
    show("planted", changes)
    assert "worse" in {change.flag for change in changes}
    assert "better" not in {change.flag for change in changes}


@pytest.mark.parametrize("number", range(1, RERUNS + 1))
def test_reruns_of_the_same_server_raise_no_flag(baseline, tmp_path, number):
    changes = compare.compare(measured(tmp_path), baseline)
    show(f"rerun {number}", changes)
    assert [change for change in changes if change.flag] == []
