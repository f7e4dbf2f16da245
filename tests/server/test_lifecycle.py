"""A server starts, answers, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc

from launcher import processes
from launcher.errors import ServerError
from launcher.ports import PortInUseError
from launcher.server import Options, TritonServer

PROJECT = Path(__file__).resolve().parents[2]
SECONDS = 60.0  # a bound against hanging, not a measurement


def echo(url: str, values: list[int]) -> list[int]:
    """Send `values` to the model `echo` and return what comes back."""
    tensor = grpc.InferInput("value", [len(values)], "INT32")
    tensor.set_data_from_numpy(np.array(values, np.int32))
    with grpc.InferenceServerClient(url) as client:
        return client.infer("echo", [tensor], client_timeout=SECONDS).as_numpy("value").tolist()


def is_listening(url: str) -> bool:
    """Whether anything accepts connections at `host:port`."""
    host, port = url.rsplit(":", 1)
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) == 0


def wait_until_gone(session: int) -> list[int]:
    """Processes of the session that are still there after a generous time."""
    return processes.wait_for_session_end(session, SECONDS)


def segments_of(launcher: int) -> list[Path]:
    """Shared memory of the servers of one launcher process."""
    return processes.shared_memory_segments(f"tandem_{launcher}_")


@pytest.fixture
def segments() -> Callable[[], list[Path]]:
    """Shared memory of the servers that the test starts; those that other tests share are running beside them."""
    others = set(segments_of(os.getpid()))
    return lambda: [segment for segment in segments_of(os.getpid()) if segment not in others]


def test_start_answer_stop_leaves_nothing(tiny_repository, start_server, segments):
    server = start_server(repository=tiny_repository)
    session, urls = server.pid, [server.http_url, server.grpc_url, server.metrics_url]
    assert echo(server.grpc_url, [1, 2, 3]) == [1, 2, 3]
    assert all(is_listening(url) for url in urls)
    assert len(server.stub_pids("echo")) == 1
    assert segments(), "the prefix of the shared memory is not the one that stop() looks for"

    stopped = server.stop()

    assert stopped is not None
    assert stopped.exit_code == 0
    assert stopped.killed == ()
    assert stopped.removed == ()
    assert processes.session_pids(session) == []
    assert not any(is_listening(url) for url in urls)
    assert server.stop() is None


def test_everything_binds_to_loopback_only(tiny_repository, start_server):
    server = start_server(repository=tiny_repository)
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.port for address in listening} == set(server.ports.values())
    # gRPC listens on an IPv6 socket, bound to the IPv4 address
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_stopped_server_with_a_dead_stub_leaves_nothing(tiny_repository, start_server, segments):
    server = start_server(repository=tiny_repository)
    session = server.pid
    before = segments()
    assert before
    server.kill_stub("echo")
    with pytest.raises(grpc.InferenceServerException, match="not healthy"):
        echo(server.grpc_url, [1])
    assert server.stop() is not None
    assert processes.session_pids(session) == []
    assert not any(segment.exists() for segment in before)


def test_killed_server_leaves_nothing(tiny_repository, start_server, segments):
    server = start_server(repository=tiny_repository)
    session = server.pid
    before = segments()
    processes.signal_all(processes.session_pids(session), signal.SIGKILL)  # nobody is left to tidy up
    stopped = server.stop()
    assert stopped is not None
    assert stopped.exit_code == -signal.SIGKILL
    assert list(stopped.removed) == before != []
    assert processes.session_pids(session) == []
    assert segments() == []


def test_unresponsive_server_is_killed(tiny_repository, start_server, segments):
    server = start_server(repository=tiny_repository, stop_seconds=1.0)
    session = server.pid
    os.kill(server.pid, signal.SIGSTOP)
    stopped = server.stop()
    assert stopped is not None
    assert session in stopped.killed
    assert processes.session_pids(session) == []
    assert segments() == []


def test_taken_port_is_a_clear_error(tiny_repository, start_server):
    first = start_server(repository=tiny_repository)
    port = first.ports["gRPC"]
    with pytest.raises(PortInUseError, match=rf"gRPC port {port} .*taken"):
        start_server(repository=tiny_repository, grpc_port=port)
    assert echo(first.grpc_url, [7]) == [7]


def test_failing_model_shows_its_exception(tiny_repository, tmp_path, segments):
    options = Options(
        repository=tiny_repository, env={"ECHO_FAILURE": "no such weights: fish"}, log=tmp_path / "server.log"
    )
    server = TritonServer(options)
    with pytest.raises(ServerError, match="ValueError: no such weights: fish") as caught:
        server.start()
    assert str(tmp_path / "server.log") in str(caught.value)
    assert "initialize" in str(caught.value), "the traceback is missing"
    assert segments() == []


def test_slow_start_ends_with_an_error(tiny_repository, tmp_path):
    server = TritonServer(Options(repository=tiny_repository, start_seconds=0.0, log=tmp_path / "server.log"))
    with pytest.raises(ServerError, match="not ready after 0 s"):
        server.start()
    assert server.stop() is None


class Serve:
    """`python -m launcher serve` in a process of its own."""

    def __init__(self, repository: Path, log: Path) -> None:
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        command = [sys.executable, "-m", "launcher", "serve", "--model-repository", str(repository)]
        self.process = subprocess.Popen(
            [*command, *ports, "--log", str(log)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def read_until(self, text: str) -> None:
        """Read the output up to a line that holds `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} is not in the output:\n{self.output}")

    @property
    def grpc_url(self) -> str:
        """The gRPC address that it printed."""
        found = re.search(r"gRPC\s+(\S+)", self.output)
        assert found
        return found.group(1)

    @property
    def server_pid(self) -> int:
        """Process id of the tritonserver."""
        children = psutil.Process(self.process.pid).children()
        assert len(children) == 1
        return children[0].pid


@pytest.fixture
def serve(tiny_repository, tmp_path) -> Iterator[Serve]:
    running = Serve(tiny_repository, tmp_path / "server.log")
    try:
        running.read_until("Ctrl-C stops it")
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
        running.process.communicate(timeout=SECONDS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_stops_on_a_signal(serve, number):
    session, url = serve.server_pid, serve.grpc_url
    assert echo(url, [5]) == [5]
    serve.process.send_signal(number)
    serve.read_until("Stopped.")
    assert serve.process.wait(SECONDS) == 0
    assert processes.session_pids(session) == []
    assert segments_of(serve.process.pid) == []
    assert not is_listening(url)


def test_server_ends_when_the_launcher_is_killed(serve):
    session = serve.server_pid
    assert segments_of(serve.process.pid)
    serve.process.kill()
    serve.process.wait(SECONDS)
    assert wait_until_gone(session) == []
    deadline = time.monotonic() + SECONDS
    while segments_of(serve.process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert segments_of(serve.process.pid) == []


def test_serve_ends_when_the_server_dies(serve):
    os.kill(serve.server_pid, signal.SIGKILL)
    assert serve.process.wait(SECONDS) == 1
    assert serve.process.stdout is not None
    assert "tritonserver ended with exit code -9" in serve.process.stdout.read()


def test_serve_interrupted_while_starting_stops(tiny_repository, tmp_path):
    serve = Serve(tiny_repository, tmp_path / "server.log")
    serve.read_until("Starting the server")
    serve.process.send_signal(signal.SIGINT)
    serve.read_until("Stopped.")
    assert serve.process.wait(SECONDS) == 0
    assert "Ready." not in serve.output
    assert segments_of(serve.process.pid) == []
