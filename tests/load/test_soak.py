"""Minutes under load by clients that start, cancel and vanish at random: afterwards nothing is left, nothing has grown.

`make soak` runs it for ten minutes; SOAK_MINUTES sets another time, SOAK_SEED another course.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from serving import gauges, idle_reading, stub_pids
from soak_report import MB, Clients, Sample, problems, table

from client import Client
from launcher import processes
from launcher.server import TritonServer

ROOT = Path(__file__).parents[2]
MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
PROCESSES, CLIENTS_EACH = 4, 16
SAMPLE_S = 1.0
KILL_S = (4.0, 15.0)  # between two kills of a client process
# Small enough that sequences are preempted and that the queue is full at times.
ENVIRONMENT = {"TANDEM_KV_CACHE_MB": "64", "TANDEM_MAX_QUEUE_SIZE": "24"}
NOT_UNLOADED = "failed to stop server: Internal - Exit timeout expired"
COMPARED = ("The capital of France is", "Once upon a time", "def fibonacci(n):")


class ClientProcess:
    """One process of clients and its last totals."""

    def __init__(self, server: TritonServer, seed: int, expected: dict[str, str]) -> None:
        arguments = [server.grpc_url, server.http_url, str(CLIENTS_EACH), str(seed), json.dumps(expected)]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("soak_clients.py")), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines[:] = [line]

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """Send a signal and wait for the end."""
        self._process.send_signal(number)
        try:
            self._process.wait(seconds)
        finally:
            self._process.kill()
            self._reader.join(10)

    def add_to(self, clients: Clients) -> None:
        """Add the totals that were last reported."""
        if self._lines:
            totals = json.loads(self._lines[0])
            clients.outcomes.update(totals["outcomes"])
            clients.unexpected.update(totals["unexpected"])
            clients.tokens += totals["tokens"]


def sample(server: TritonServer, started: float) -> Sample:
    pids = {"tritonserver": [server.pid]} | stub_pids(server)
    memory = {name: sum(psutil.Process(pid).memory_info().rss for pid in found) / MB for name, found in pids.items()}
    # All segments of this server; the prefix is the launcher's.
    segments = processes.shared_memory_segments(f"tandem_{os.getpid()}_")
    memory["/dev/shm"] = sum(segment.stat().st_size for segment in segments) / MB
    return Sample(time.monotonic() - started, memory, gauges(server))


def soak(server: TritonServer, minutes: float, seed: int) -> tuple[Clients, list[Sample]]:
    """Load the server; returns what the clients saw and what the server's memory was meanwhile."""
    rng = random.Random(seed)
    with Client(server.grpc_url) as client:
        expected = {prompt: client.generate(prompt, max_tokens=40, min_length=40).text for prompt in COMPARED}
    clients = Clients()
    running = [ClientProcess(server, rng.getrandbits(32), expected) for _ in range(PROCESSES)]
    samples: list[Sample] = []
    started = time.monotonic()
    next_kill = started + rng.uniform(*KILL_S)
    try:
        while time.monotonic() < started + minutes * 60:
            time.sleep(SAMPLE_S)
            assert server.is_running(), server.describe_end()
            samples.append(sample(server, started))
            if not all(process.running for process in running):
                clients.unexpected["a client process ended by itself"] += 1
                break  # what was found until then is still printed
            if time.monotonic() > next_kill:
                victim = rng.randrange(PROCESSES)
                running[victim].stop(signal.SIGKILL, 10)
                running[victim].add_to(clients)
                clients.killed += 1
                running[victim] = ClientProcess(server, rng.getrandbits(32), expected)
                next_kill = time.monotonic() + rng.uniform(*KILL_S)
    finally:
        for process in running:
            process.stop(signal.SIGTERM, 240)
            process.add_to(clients)
    return clients, samples


@pytest.mark.load
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_soak(start_server):
    server = start_server(models=("target", "generate"), env=ENVIRONMENT)
    pids = stub_pids(server)
    clients, samples = soak(server, MINUTES, SEED)
    reading = idle_reading(server)
    print("\n" + table(clients, samples))
    print(f"{'preemptions':<28} {reading.value('tandem_preemptions_total'):>8g}")
    final = gauges(server) | {
        "target_restarts": reading.value("tandem_target_restarts_total"),
        "requests that failed": reading.by_label("tandem_requests_total", "outcome")["error"],
        "restarted stubs": sum(stub_pids(server)[model] != pids[model] for model in pids),
    }
    found = problems(clients, samples, final)
    assert not found, "\n".join(found)
    with Client(server.grpc_url) as client:
        assert client.generate("One", max_tokens=2).generated_tokens
    stopped = server.stop()
    assert stopped is not None
    assert (stopped.killed, stopped.removed) == ((), ())
    # A client that leaves while Triton 2.51 is finishing its stream leaks a handler's state, which holds the model: it
    # is never unloaded then (README, known limits). Any other end but a clean one fails.
    assert stopped.exit_code == 0 or (stopped.exit_code == 1 and NOT_UNLOADED in server.log.read_text())
