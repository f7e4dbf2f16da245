"""The server that is loaded: one that is given, or one that is started for the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests

from client import Client, ServerError
from launcher.engines import VISION_MODELS, loadable_models
from launcher.errors import ServerError as StartError
from launcher.server import REPOSITORY, Options, TritonServer
from perf import scrape
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
    """

    url: str
    metrics_url: str | None
    started: bool
    server: TritonServer | None = None


@contextlib.contextmanager
def target(profile: Profile, url: str | None, metrics_url: str | None) -> Iterator[Target]:
    """A server that has the profile's model.

    Raises:
        NotServedError: it does not have it.
        PerfError: it cannot be started, or nothing answers at `url`.
    """
    if url is None:
        # Those of the repository that the profile's kind needs: classifiers come and go with their engines.
        environment = profile.environment()
        images = profile.model != "generate"
        found = loadable_models(REPOSITORY, {**os.environ, **environment})
        models = [model for model in found if (model in VISION_MODELS) == images]
        server = TritonServer(Options(models=models, env=environment, start_seconds=_START_S))
        if profile.model not in models:
            raise NotServedError(
                f"this model repository has no model {profile.model!r}: profile {profile.name} is skipped"
            )
        try:
            server.start()
        except StartError as error:
            raise PerfError(str(error)) from None
        try:
            yield Target(server.grpc_url, server.metrics_url, True, server)
        finally:
            server.stop()
        return
    check_served(url, profile)
    metrics = metrics_url or f"{url.rpartition(':')[0]}:{DEFAULT_METRICS_PORT}"
    try:
        scrape.read(metrics)
    except (requests.RequestException, ValueError) as error:
        if metrics_url:
            raise PerfError(f"no metrics at {metrics_url}: {error}") from None
        yield Target(url, None, False)
    else:
        yield Target(url, metrics, False)


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
