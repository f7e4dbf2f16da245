"""A server with restricted administration: clients without the key are refused, everything else goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import tritonclient.grpc as grpc
from served_engine import pool_mb
from serving import BOUND_S, EXIT_SECONDS, BackgroundStream, idle_reading, stub_pids

from client import Client, Restricted
from client.metrics import read_metrics
from launcher.admin import HEADER, KEY_VARIABLE
from launcher.server import Options, TritonServer

KEY = "0123456789abcdef0123456789abcdef"
TOKENS = 200


@pytest.fixture(scope="module")
def restricted(tmp_path_factory) -> Iterator[TritonServer]:
    log = tmp_path_factory.mktemp("restricted") / "server.log"
    env = {"TANDEM_KV_CACHE_MB": pool_mb(64, slots=2), "TANDEM_GRAPH_MEMORY_MB": "0", KEY_VARIABLE: KEY}
    options = Options(
        models=("target", "generate"), env=env, admin_key=KEY, log=log, start_seconds=600.0, exit_seconds=EXIT_SECONDS
    )
    with TritonServer(options) as running:
        yield running


GRPC_CALLS: dict[str, Callable[[Any, Any], object]] = {
    "repository index": lambda client, headers: client.get_model_repository_index(headers=headers),
    "load": lambda client, headers: client.load_model("generate", headers=headers),
    "unload": lambda client, headers: client.unload_model("target", headers=headers),
    "shared memory": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "map shared memory": lambda client, headers: client.register_system_shared_memory("x", "/x", 64, headers=headers),
    "trace": lambda client, headers: client.get_trace_settings(headers=headers),
    "logging": lambda client, headers: client.update_log_settings({"log_verbose_level": 0}, headers=headers),
}
HTTP_CALLS = {
    "repository index": ("POST", "/v2/repository/index"),
    "load": ("POST", "/v2/repository/models/generate/load"),
    "unload": ("POST", "/v2/repository/models/target/unload"),
    "shared memory": ("GET", "/v2/systemsharedmemory/status"),
    "map shared memory": ("POST", "/v2/systemsharedmemory/region/x/register"),
    "GPU memory": ("GET", "/v2/cudasharedmemory/status"),
    "trace": ("GET", "/v2/trace/setting"),
    "trace of a model": ("GET", "/v2/models/generate/trace/setting"),
    "logging": ("GET", "/v2/logging"),
}
HARMLESS = ("repository index", "shared memory", "trace", "logging")  # that may be called with the key


@pytest.mark.parametrize("key", [None, KEY[:-1] + "0"])
@pytest.mark.parametrize("name", GRPC_CALLS)
def test_grpc_refuses_who_has_not_the_key(restricted, name, key):
    headers = {f"triton-grpc-protocol-{HEADER}": key} if key else None
    with (
        grpc.InferenceServerClient(restricted.grpc_url) as client,
        pytest.raises(grpc.InferenceServerException, match="restricted"),
    ):
        GRPC_CALLS[name](client, headers)


@pytest.mark.parametrize("key", [None, KEY[:-1] + "0"])
@pytest.mark.parametrize("name", HTTP_CALLS)
def test_http_refuses_who_has_not_the_key(restricted, name, key):
    method, path = HTTP_CALLS[name]
    url = f"http://{restricted.http_url}{path}"
    response = requests.request(method, url, headers={HEADER: key} if key else {}, timeout=BOUND_S)
    assert response.status_code == 403
    assert "restricted" in response.text


def test_who_was_refused_changed_nothing(restricted):
    assert requests.get(f"http://{restricted.http_url}/v2/health/ready", timeout=BOUND_S).status_code == 200
    assert [len(pids) for pids in stub_pids(restricted).values()] == [1, 1]


@pytest.mark.parametrize("name", HARMLESS)
def test_the_key_opens_them(restricted, name):
    """The control: the calls are refused for want of the key, and for nothing else."""
    with grpc.InferenceServerClient(restricted.grpc_url) as client:
        GRPC_CALLS[name](client, {f"triton-grpc-protocol-{HEADER}": KEY})
    method, path = HTTP_CALLS[name]
    url = f"http://{restricted.http_url}{path}"
    assert requests.request(method, url, headers={HEADER: KEY}, timeout=BOUND_S).status_code == 200


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2", "/v2/models/generate/stats", "/v2/models/generate"])
def test_what_is_not_administration_stays_open(restricted, path):
    assert requests.get(f"http://{restricted.http_url}{path}", timeout=BOUND_S).status_code == 200


def test_our_client(restricted, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with Client(restricted.grpc_url) as client:
        with pytest.raises(Restricted, match=KEY_VARIABLE):
            client.models()
        assert client.models(admin_key=KEY)["generate"] == "READY"
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        assert client.models()["target"] == "READY"


def test_the_models_do_not_know_the_key(restricted):
    for pids in stub_pids(restricted).values():
        for pid in pids:
            assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_dead_target_comes_back(restricted):
    """`generate` reloads it from inside, where the restriction is not."""

    def stream() -> BackgroundStream:
        return BackgroundStream(restricted.grpc_url, "Once upon a time", max_tokens=TOKENS, min_length=TOKENS)

    expected = stream().result()
    before = read_metrics(restricted.metrics_url).value("tandem_target_restarts_total")
    pids = stub_pids(restricted)
    running = stream()
    running.wait_for_tokens(5)
    restricted.kill_stub("target")
    assert running.result().text == expected.text
    assert idle_reading(restricted).value("tandem_target_restarts_total") == before + 1
    after = stub_pids(restricted)
    assert after["generate"] == pids["generate"]
    assert after["target"] != pids["target"]
