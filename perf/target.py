"""The server that is loaded: one that is given, or one that is started for the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from client import Client, ServerError
from launcher import processes
from launcher.engines import VISION_MODELS, engine_directory, loadable_models
from launcher.errors import ServerError as StartError
from launcher.runtime import PROJECT
from launcher.server import REPOSITORY, Options, TritonServer
from perf import checkout, scrape
from perf.errors import PerfError
from perf.profile import Profile

DEFAULT_METRICS_PORT = 8002
_START_S = 600.0  # a busy machine takes minutes to load an engine


class NotServedError(PerfError):
    """The server does not have the profile's model: nothing to measure, and nobody's fault."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes.

    Attributes:
        url: host and port of gRPC.
        metrics_url: host and port of the metrics, None where they cannot be had.
        started: whether the server runs for this load alone.
        server: the server that was started.
        commit: that it serves, see perf/checkout.py; of this project where the server was given.
        settings: of a server that was started, the profile's.
        environment: of a server that was started, a digest of all its settings: some are secret.
        engines: of a server that was started, a digest of the engine of each model.
    """

    url: str
    metrics_url: str | None
    started: bool
    server: TritonServer | None = None
    commit: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: str = ""
    engines: Mapping[str, str] = field(default_factory=dict)

    def pids(self) -> list[int]:
        """Processes of the server that was started; none of one that was given."""
        return processes.session_pids(self.server.pid) if self.server else []


@contextlib.contextmanager
def target(
    profile: Profile, url: str | None = None, metrics_url: str | None = None, commit: str | None = None
) -> Iterator[Target]:
    """A server that has the profile's model.

    Args:
        profile: what it is to serve.
        url: gRPC of a running server; None: one is started.
        metrics_url: of the running server.
        commit: what the started server is made of, with the engines and packages that are here; None: the files here.

    Raises:
        NotServedError: it does not have it.
        PerfError: it cannot be started, or nothing answers at `url`.
    """
    if url is None:
        with contextlib.ExitStack() as stack:
            tree = stack.enter_context(checkout.tree(commit)) if commit else None
            yield stack.enter_context(_started(profile, tree, checkout.known(commit) if commit else checkout.current()))
        return
    check_served(url, profile)
    metrics = metrics_url or f"{url.rpartition(':')[0]}:{DEFAULT_METRICS_PORT}"
    try:
        scrape.read(metrics)
    except (requests.RequestException, ValueError) as error:
        if metrics_url:
            raise PerfError(f"no metrics at {metrics_url}: {error}") from None
        yield Target(url, None, False, commit=checkout.current())
    else:
        yield Target(url, metrics, False, commit=checkout.current())


@contextlib.contextmanager
def _started(profile: Profile, tree: Path | None, commit: str) -> Iterator[Target]:
    root = tree or PROJECT
    repository = root / REPOSITORY.name
    settings = profile.environment()
    environment = {name: value for name, value in os.environ.items() if name.startswith("TANDEM_")} | settings
    # Those of the repository that the profile's kind needs: classifiers come and go with their engines.
    images = profile.model != "generate"
    models = [m for m in loadable_models(repository, environment) if (m in VISION_MODELS) == images]
    if profile.model not in models:
        raise NotServedError(f"this model repository has no model {profile.model!r}: profile {profile.name} is skipped")
    code = {"PYTHONPATH": str(root)}  # goes before the project that is installed
    options = Options(
        repository=repository, models=models, env=settings | code, working_directory=root, start_seconds=_START_S
    )
    server = TritonServer(options)
    try:
        server.start()
    except StartError as error:
        raise PerfError(f"commit {commit}: {error}" if tree else str(error)) from None
    try:
        yield Target(
            server.grpc_url,
            server.metrics_url,
            True,
            server,
            commit,
            settings,
            _digest(json.dumps(environment, sort_keys=True).encode()),
            _engines(repository, models, environment),
        )
    finally:
        server.stop()


def _engines(repository: Path, models: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """The digest of each model's engine: its manifest has those of its files."""
    manifests = {model: engine_directory(repository, model, env) / "manifest.json" for model in models}
    return {model: _digest(manifest.read_bytes()) for model, manifest in manifests.items() if manifest.is_file()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def check_served(url: str, profile: Profile) -> None:
    """Raise an error that says what to do where a server does not have the profile's model."""
    try:
        with Client(url) as client:
            models = client.models()
    except ServerError as error:
        raise PerfError(f"no Triton server answers gRPC at {url}: {error}. Is it its gRPC port?") from None
    if models.get(profile.model) != "READY":
        ready = ", ".join(sorted(name for name, state in models.items() if state == "READY")) or "no model"
        raise NotServedError(
            f"the server at {url} does not serve the model {profile.model!r} (it serves {ready}): "
            f"profile {profile.name} is skipped"
        )


def configuration(url: str, model: str) -> dict[str, Any]:
    """The model's configuration as the server has it."""
    from tritonclient.grpc import InferenceServerClient

    with contextlib.closing(InferenceServerClient(url)) as client:
        found: dict[str, Any] = client.get_model_config(model, as_json=True)["config"]
        return found


def first_input(url: str, model: str) -> str:
    """Name of the model's first input."""
    return str(configuration(url, model)["input"][0]["name"])
