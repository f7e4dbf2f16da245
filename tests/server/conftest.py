"""The server that most tests of this folder share: the product's own models with the default engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import served_engine
from serving import EXIT_SECONDS

from launcher.engines import CLASSIFIERS, VISION_MODELS, loadable_models
from launcher.server import REPOSITORY, Options, TritonServer
from tandem.vision.repository import built_engines

if served_engine.HAS_SLOTS:
    os.environ.setdefault("TANDEM_TARGET_ENGINE", str(served_engine.default_engine()))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The models `target` and `generate` on free loopback ports. Fails, not skips, without an engine."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with TritonServer(Options(models=("target", "generate"), log=log, exit_seconds=EXIT_SECONDS)) as running:
        yield running


@pytest.fixture(scope="session")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that runs one sequence at a time; two more may wait."""
    env = {
        "TANDEM_MAX_RUNNING": "1",
        "TANDEM_MAX_QUEUE_SIZE": "2",
        "TANDEM_MAX_LENGTH": str(served_engine.NARROW_LENGTH),
        "TANDEM_DEFAULT_TIMEOUT_MS": "1500",
        "TANDEM_KV_CACHE_MB": served_engine.pool_mb(256, slots=2),
        "TANDEM_GRAPH_MEMORY_MB": "0",  # loads faster
    }
    log = tmp_path_factory.mktemp("narrow") / "server.log"
    with TritonServer(Options(models=("target", "generate"), env=env, log=log, exit_seconds=EXIT_SECONDS)) as running:
        yield running


@pytest.fixture(scope="session")
def fp32_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The default model in full precision, for comparisons with torch."""
    import full_precision  # here, because it brings torch, which the other tests do not need

    env = {
        "TANDEM_TARGET_ENGINE": str(full_precision.engine()),
        "TANDEM_KV_CACHE_MB": "512",
        "TANDEM_GRAPH_MEMORY_MB": "0",  # loads faster
    }
    log = tmp_path_factory.mktemp("fp32") / "server.log"
    with TritonServer(Options(models=("target", "generate"), env=env, log=log, exit_seconds=EXIT_SECONDS)) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one Python model, `echo`, that needs no engine: for tests of the life cycle."""
    repository = tmp_path_factory.mktemp("repository")
    version = repository / "echo" / "1"
    version.mkdir(parents=True)
    (repository / "echo" / "config.pbtxt").write_text(
        """\
backend: "python"
input [{ name: "value" data_type: TYPE_INT32 dims: [-1] }]
output [{ name: "value" data_type: TYPE_INT32 dims: [-1] }]
instance_group [{ kind: KIND_CPU }]
"""
    )
    (version / "model.py").write_text(
        """\
import os

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        if "ECHO_FAILURE" in os.environ:
            raise ValueError(os.environ["ECHO_FAILURE"])

    def execute(self, requests):
        values = [pb_utils.get_input_tensor_by_name(request, "value").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("value", value)]) for value in values]
"""
    )
    return repository


@pytest.fixture(scope="session")
def vision_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The classifiers that are built, with their ensembles. Fails, not skips, without that of photos."""
    assert "efficientnet_lite0" in built_engines(REPOSITORY, CLASSIFIERS), "run `make engine-vision`"
    log = tmp_path_factory.mktemp("vision") / "server.log"
    models = [name for name in loadable_models(REPOSITORY, os.environ) if name in VISION_MODELS]
    with TritonServer(Options(models=models, log=log)) as running:
        yield running
