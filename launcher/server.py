"""Starts, watches and stops one real tritonserver."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from launcher import processes
from launcher.admin import KEY_VARIABLE, restriction_arguments
from launcher.engines import check_engines, loadable_models
from launcher.errors import ServerError
from launcher.overlay import changes, overlay
from launcher.ports import choose_ports
from launcher.runtime import CACHE, PROJECT, Runtime, debian_packages, find_runtime, has_gpu
from launcher.tracing import trace_arguments

REPOSITORY = PROJECT / "model_repository"
DRAINING_MODEL = "generate"
RESPONSE_CACHE_MB = 64
_START_ATTEMPTS = 3
_DRAIN_SECONDS = 3.0
_KILL_SECONDS = 5.0
# Logged as errors on every machine without a GPU.
_HARMLESS = ("CudaDriverHelper has not been initialized", "unable to create stream for")


@dataclass(frozen=True, slots=True)
class Options:
    """What to serve, and where. A port of 0 picks a free one; everything binds to loopback by default."""

    repository: Path = REPOSITORY
    models: Sequence[str] | None = None  # None: every model in the repository that can be loaded
    host: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    env: Mapping[str, str] = field(default_factory=dict)  # on top of the launcher's own
    log: Path | None = None  # None: a new file in .cache/logs
    config_name: str | None = None  # None: "cpu" without a GPU, else config.pbtxt; "" forces config.pbtxt
    start_seconds: float = 180.0
    # What Triton waits for requests in flight and for models to end when it is told to stop: those give gigabytes of
    # memory back and write what the cache keeps on disk, which took 4 s on an idle machine.
    exit_seconds: int = 20
    stop_seconds: float = 40.0  # after that the whole session is killed
    admin_key: str | None = None  # closes the endpoints of launcher.admin to clients that do not send it; None: open
    response_cache_mb: int = RESPONSE_CACHE_MB  # for whole answers of the models that have a response cache; 0: none
    arguments: Sequence[str] = ()  # more tritonserver arguments
    # None: as here. Python stubs import what lies there before what is installed, and before PYTHONPATH.
    working_directory: Path | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a server ended."""

    exit_code: int | None
    killed: tuple[int, ...]  # processes that had to be killed
    removed: tuple[Path, ...]  # shared memory that it left behind and that was removed


class TritonServer:
    """One tritonserver in a session of its own; a context manager that starts and stops it.

    It ends with the launcher: normally through `stop`, and through the kernel's parent death signal when the
    launcher is killed (see `exec_with_parent`). Call `start` from a thread that lives as long as the server.
    """

    def __init__(self, options: Options | None = None, runtime: Runtime | None = None) -> None:
        self.options = options or Options()
        self._runtime = runtime
        self._process: subprocess.Popen[bytes] | None = None
        self._shm_prefix = ""
        self.ports: dict[str, int] = {}
        self.log = self.options.log or _new_log()

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of tritonserver, which is its session id as well."""
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process.pid

    @property
    def http_url(self) -> str:
        """`host:port` of HTTP, without a scheme, as tritonclient wants it."""
        return self._address("HTTP")

    @property
    def grpc_url(self) -> str:
        """`host:port` of gRPC."""
        return self._address("gRPC")

    @property
    def metrics_url(self) -> str:
        """`host:port` of the Prometheus endpoint, whose path is /metrics."""
        return self._address("metrics")

    def _address(self, name: str) -> str:
        host = _reachable(self.options.host)
        return f"[{host}]:{self.ports[name]}" if ":" in host else f"{host}:{self.ports[name]}"

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> TritonServer:
        """Start and wait until every model is ready; if `cancelled()` becomes true meanwhile, stop again.

        Raises:
            EngineMissingError: a model's engine has not been built.
            PortInUseError: a port that was asked for is taken.
            RuntimeMissingError: there is no tritonserver.
            ServerError: it ended or did not become ready in time.
        """
        models = self.models()
        check_engines(self.options.repository, models, {**os.environ, **self.options.env})
        runtime = self._runtime or find_runtime()
        options = self.options
        wanted = {"HTTP": options.http_port, "gRPC": options.grpc_port, "metrics": options.metrics_port}
        for attempt in range(1, _START_ATTEMPTS + 1):
            self.ports = choose_ports(options.host, wanted)
            try:
                self._launch(runtime, models)
                if not self._wait_until_ready(runtime, cancelled):
                    self.stop()
                return self
            except ServerError as error:
                self.stop()
                # Another process may take a free port between choosing and binding.
                raced = 0 in wanted.values() and "Address already in use" in str(error)
                if not raced or attempt == _START_ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("the loop above returns or raises")

    def models(self) -> list[str]:
        """Names of the models to load."""
        if self.options.models is not None:
            return list(self.options.models)
        repository = self.options.repository
        if not repository.is_dir():
            raise ServerError(f"there is no model repository at {repository}")
        return loadable_models(repository, {**os.environ, **self.options.env})

    def _launch(self, runtime: Runtime, models: Sequence[str]) -> None:
        self._shm_prefix = f"tandem_{os.getpid()}_{uuid.uuid4().hex[:8]}_"
        options = self.options
        command = [
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("exec_with_parent.py")),
            str(os.getpid()),
        ]
        command += [str(runtime.binary), *self._arguments(runtime, models), *options.arguments]
        drain = {"TANDEM_DRAIN_FILE": str(self._drain_file)}
        env = runtime.environment({**os.environ, **drain, **options.env})
        env.pop(KEY_VARIABLE, None)  # the models have no use for it
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=options.working_directory,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _arguments(self, runtime: Runtime, models: Sequence[str]) -> list[str]:
        options = self.options
        gpu = has_gpu()
        config_name = options.config_name if options.config_name is not None else ("" if gpu else "cpu")
        arguments = [
            f"--model-repository={self._repository(config_name)}",
            f"--backend-directory={runtime.backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            "--model-control-mode=explicit",  # a dead stub comes back only through load_model
            *(f"--load-model={model}" for model in models),
            f"--http-address={options.host}",
            f"--http-port={self.ports['HTTP']}",
            f"--grpc-address={options.host}",
            f"--grpc-port={self.ports['gRPC']}",
            f"--metrics-address={options.host}",
            f"--metrics-port={self.ports['metrics']}",
            f"--exit-timeout-secs={options.exit_seconds}",
        ]
        if config_name:
            arguments.append(f"--model-config-name={config_name}")
        if not gpu:
            arguments.append("--allow-gpu-metrics=false")
        if options.admin_key is not None:
            arguments += restriction_arguments(options.admin_key)
        if options.response_cache_mb and runtime.caches is not None:
            arguments.append(f"--cache-directory={runtime.caches}")
            arguments.append(f"--cache-config=local,size={options.response_cache_mb << 20}")
        try:
            arguments += trace_arguments({**os.environ, **options.env})
        except ValueError as error:
            raise ServerError(str(error)) from None
        return arguments

    def _repository(self, config_name: str) -> Path:
        """The repository, or one beside the log in which the classifiers are batched as the settings say."""
        changed = changes({**os.environ, **self.options.env})
        if not changed:
            return self.options.repository
        shutil.rmtree(self._overlay, ignore_errors=True)
        return overlay(self.options.repository, changed, config_name, self._overlay)

    def _wait_until_ready(self, runtime: Runtime, cancelled: Callable[[], bool]) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + self.options.start_seconds
        while not (self.is_ready() and self._serves_metrics()):
            if cancelled():
                return False
            code = self._process.poll()
            if code is not None:
                raise ServerError(self._explain(runtime, f"tritonserver ended with exit code {code} while starting"))
            if time.monotonic() > deadline:
                seconds = self.options.start_seconds
                raise ServerError(self._explain(runtime, f"tritonserver was not ready after {seconds:g} s"))
            time.sleep(0.1)
        return True

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether the process lives and its health endpoint says that every model is ready."""
        if not self.is_running():
            return False
        connection = http.client.HTTPConnection(_reachable(self.options.host), self.ports["HTTP"], timeout=5)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/v2/health/ready")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _serves_metrics(self) -> bool:
        """Whether somebody listens on the metrics port, which Triton opens after the others."""
        try:
            socket.create_connection((_reachable(self.options.host), self.ports["metrics"]), timeout=5).close()
        except OSError:
            return False
        return True

    def describe_end(self) -> str:
        """Why a server that had started is no longer running, in the words of its log."""
        code = self._process.poll() if self._process else None
        extract = log_extract(self._log_text())
        return f"tritonserver ended with exit code {code}; its log is {self.log}\n{extract}"

    def _log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def _explain(self, runtime: Runtime, what: str) -> str:
        parts = [f"{what}; its log is {self.log}"]
        if libraries := runtime.missing_libraries():
            packages = " ".join(debian_packages(libraries))
            parts.append(f"missing shared libraries: {', '.join(libraries)}: apt-get install {packages}")
        return "\n".join([*parts, log_extract(self._log_text())])

    def stub_pids(self, model: str) -> list[int]:
        """Process ids of the Python stubs of `model`."""
        return processes.stub_pids(self.pid, model)

    def kill_stub(self, model: str) -> list[int]:
        """SIGKILL the stubs of `model`, for tests of recovery; returns the process ids."""
        pids = self.stub_pids(model)
        if not pids:
            raise ServerError(f"no stub of model {model!r} is running")
        processes.signal_all(pids, signal.SIGKILL)
        return pids

    def stop(self) -> Stopped | None:
        """Stop the server, gently first; afterwards none of its processes and shared memory is left.

        Returns None if it was not running. Safe to call twice.
        """
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            self._drain()
            process.send_signal(signal.SIGTERM)
        self._process = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.options.stop_seconds)
        # After a clean end the stubs go with the server; after a timeout the whole session is killed at once.
        left = processes.wait_for_session_end(process.pid, 2.0 if process.returncode is not None else 0.0)
        if left:
            processes.signal_all(left, signal.SIGKILL)
            processes.wait_for_session_end(process.pid, _KILL_SECONDS)
        process.wait(_KILL_SECONDS)
        segments = processes.shared_memory_segments(self._shm_prefix)
        for segment in segments:
            segment.unlink(missing_ok=True)
        shutil.rmtree(self._overlay, ignore_errors=True)
        return Stopped(process.returncode, tuple(left), tuple(segments))

    @property
    def _overlay(self) -> Path:
        """Where a repository with changed configurations is, while the server runs."""
        return self.log.with_suffix(".repository")

    @property
    def _drain_file(self) -> Path:
        """What `generate` watches for (see tandem/settings.py)."""
        return self.log.with_suffix(".drain")

    def _drain(self) -> None:
        """Let running requests end with a clear error before Triton is told to stop."""
        if not self.stub_pids(DRAINING_MODEL):
            return
        self._drain_file.touch()
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._drain_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._drain_file.unlink(missing_ok=True)


def log_extract(log: str, lines: int = 40) -> str:
    """What explains a failure in a server log: error entries with their continuation lines, else its end."""
    entry = re.compile(r"^[IWEF]\d{4} ")
    wanted: list[str] = []
    inside = False
    for line in log.splitlines():
        if entry.match(line):
            inside = line[0] in "EF" and not any(text in line for text in _HARMLESS)
        if (inside or line.startswith("error:")) and line.strip() and line not in wanted:
            wanted.append(line)
    return "\n".join(wanted[:lines] if wanted else log.splitlines()[-lines:])


def _new_log() -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return CACHE / "logs" / f"server-{stamp}-{os.getpid()}-{uuid.uuid4().hex[:4]}.log"


def _reachable(host: str) -> str:
    """The address under which a server bound to `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
