"""The images themselves: built, engines built in them, served, asked. Needs Docker; the profile gpu also a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import wait_until

from launcher.ports import choose_ports
from launcher.runtime import has_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(7200)]

ROOT = Path(__file__).parents[2]


class Compose:
    """`docker compose` on a project of its own, whose volumes are removed at the end."""

    def __init__(self, profile: str, ports: dict[str, int]) -> None:
        self.profile, self.ports = profile, ports
        self._env = {**os.environ, **{name: str(port) for name, port in ports.items()}}

    def __call__(self, *arguments: str) -> str:
        command = ["docker", "compose", "--project-name", "tandem-test", "--profile", self.profile, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self._env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def compose(request) -> Iterator[Compose]:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker: `docker info` fails")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no compose plugin: `docker compose version` fails")
    if request.param == "gpu" and not has_gpu():
        pytest.skip("no NVIDIA GPU: `nvidia-smi -L` lists none")
    names = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
    run = Compose(request.param, choose_ports("127.0.0.1", dict.fromkeys(names, 0)))
    try:
        run("up", "--build", "--detach")  # returns when the engines are built and the server is started
        wait_until(lambda: is_ready(run), "the server to be ready", 600.0)
        yield run
    finally:
        run("down", "--volumes", "--timeout", "60")


def is_ready(compose: Compose) -> bool:
    try:
        ask(compose, "/v2/health/ready")
    except OSError:
        return False
    return True


def ask(compose: Compose, path: str, body: dict[str, object] | None = None) -> bytes:
    url = f"http://127.0.0.1:{compose.ports['HTTP_PORT']}{path}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=300) as response:
        return bytes(response.read())


def test_it_answers(compose):
    answer = json.loads(
        ask(compose, "/v2/models/generate/generate", {"text_input": "The capital of France is", "max_tokens": 8})
    )
    assert "Paris" in answer["text_output"]


def test_administration_is_closed(compose):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask(compose, "/v2/repository/index", {})


def test_the_server_cannot_write_its_models(compose):
    command = "id -u; touch model_repository/x 2>&1 || true; touch /opt/tandem/x 2>&1 || true"
    output = compose("exec", "--no-TTY", f"tandem-{compose.profile}", "bash", "-c", command)
    assert output.startswith("10001\n")
    assert output.count("Read-only file system") == 2


def test_a_dead_target_comes_back(compose):
    kill = "import psutil; [p.kill() for p in psutil.process_iter() if 'target_0_0' in p.cmdline()]"
    python = "/opt/tandem/.venv/bin/python"
    compose("exec", "--no-TTY", f"tandem-{compose.profile}", python, "-c", kill)
    answer = json.loads(ask(compose, "/v2/models/generate/generate", {"text_input": "One, two,", "max_tokens": 4}))
    assert answer["generated_tokens"] == 4


def test_prometheus_sees_the_server(compose):
    url = f"http://127.0.0.1:{compose.ports['PROMETHEUS_PORT']}/api/v1/targets"
    with urllib.request.urlopen(url, timeout=60) as response:
        targets = json.load(response)["data"]["activeTargets"]
    assert [target["labels"]["instance"] for target in targets] == ["tandem:8002"]
