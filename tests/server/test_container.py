"""`serve` of the images, outside of Docker: the real server on a tiny repository."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest
import requests
from container import ROOT, Container
from serving import BOUND_S, wait_until

from launcher.admin import HEADER

KEY = "k" * 24


@pytest.fixture(scope="module")
def container(tmp_path_factory, tiny_repository) -> Container:
    made = Container(tmp_path_factory.mktemp("container"))
    shutil.copytree(tiny_repository / "echo", made.home / "model_repository" / "echo")
    made.update()
    made.state.mkdir()
    (made.state / "server.log").write_text("of the run before")
    return made


@pytest.fixture(scope="module")
def output(container) -> Iterator[str]:
    """What a running `serve` has printed; it ends by SIGTERM, as Docker does it."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(
        [container.entrypoint, "serve", *ports],
        env={**container.env, "TANDEM_ADMIN_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        yield "".join(lines)
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=BOUND_S)[0]
    assert process.returncode == 0, rest
    assert rest.endswith("Stopped.\n")


def port_of(output: str) -> str:
    found = re.search(r"HTTP +http://127\.0\.0\.1:(\d+)", output)
    assert found, output
    return found[1]


def test_health_check_finds_the_server_ready(container, output):
    def check() -> int:
        env = {**container.env, "TANDEM_HTTP_PORT": port_of(output)}
        return subprocess.run([str(ROOT / "docker" / "ready.sh")], env=env, check=False).returncode

    wait_until(lambda: check() == 0, "the health check to pass")


@pytest.mark.parametrize(("key", "status"), [(None, 403), ("x" * 24, 403), (KEY, 200)])
def test_administration_is_restricted(output, key, status):
    url = f"http://127.0.0.1:{port_of(output)}/v2/repository/index"
    headers = {HEADER: key} if key else {}
    assert requests.post(url, headers=headers, timeout=BOUND_S).status_code == status


def test_the_server_writes_only_where_it_may(container, output):
    """Its log; not the models, which are mounted for reading."""
    before = container.files()
    requests.get(f"http://127.0.0.1:{port_of(output)}/v2/models/echo/stats", timeout=BOUND_S)
    assert container.files() == before
    assert {path.name for path in container.data.iterdir()} == {"model_repository", ".cache", "state", "drafters"}
    assert not any((container.data / ".cache").iterdir())
    assert {path.name for path in container.state.iterdir()} == {"server.log", "server.previous.log"}
    assert (container.state / "server.previous.log").read_text() == "of the run before"
