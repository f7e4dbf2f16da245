"""The launcher without a server: ports, runtime, log extracts, messages for users."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import runtime
from launcher.__main__ import main
from launcher.engines import VISION_MODELS, check_engines, loadable_models
from launcher.errors import EngineMissingError
from launcher.ports import PortInUseError, choose_ports
from launcher.processes import is_stub_of
from launcher.runtime import RuntimeMissingError, debian_packages, find_runtime
from launcher.server import Options, TritonServer, log_extract

LOOPBACK = "127.0.0.1"


@pytest.fixture
def taken_port():
    with socket.create_server((LOOPBACK, 0)) as listener:
        yield listener.getsockname()[1]


def test_free_ports_differ_and_can_be_bound():
    ports = choose_ports(LOOPBACK, {"HTTP": 0, "gRPC": 0, "metrics": 0})
    assert list(ports) == ["HTTP", "gRPC", "metrics"]
    assert len(set(ports.values())) == 3
    for port in ports.values():
        socket.create_server((LOOPBACK, port)).close()


def test_taken_port_is_named(taken_port):
    with pytest.raises(PortInUseError, match=rf"gRPC port {taken_port} .*is taken"):
        choose_ports(LOOPBACK, {"HTTP": 0, "gRPC": taken_port})


def test_port_asked_for_twice_is_named():
    port = choose_ports(LOOPBACK, {"HTTP": 0})["HTTP"]
    with pytest.raises(PortInUseError, match=f"{port} is asked for twice"):
        choose_ports(LOOPBACK, {"HTTP": port, "gRPC": port})


def test_address_of_another_machine_is_refused():
    with pytest.raises(PortInUseError, match=r"cannot listen on 192\.0\.2\.1:0 \(HTTP\)"):
        choose_ports("192.0.2.1", {"HTTP": 0})  # TEST-NET-1: nobody has it


def make_model(repository: Path, name: str) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    return version


def test_missing_engine_names_the_command(tmp_path):
    make_model(tmp_path, "target")
    with pytest.raises(EngineMissingError, match="make engine"):
        check_engines(tmp_path, ["target"], {})
    with pytest.raises(EngineMissingError, match="make engine"):
        TritonServer(Options(repository=tmp_path)).start()


def test_engine_may_lie_elsewhere(tmp_path):
    version = make_model(tmp_path, "target")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "manifest.json").touch()
    check_engines(tmp_path, ["target"], {"TANDEM_TARGET_ENGINE": str(elsewhere)})
    (version / "engine").mkdir()
    (version / "engine" / "manifest.json").touch()
    check_engines(tmp_path, ["target"], {})
    with pytest.raises(EngineMissingError, match="nowhere"):
        check_engines(tmp_path, ["target"], {"TANDEM_TARGET_ENGINE": str(tmp_path / "nowhere")})


def test_models_whose_engines_are_not_built_are_left_out(tmp_path):
    for name in ("generate", "target", "draft", *VISION_MODELS):
        make_model(tmp_path, name)
    assert loadable_models(tmp_path, {}) == ["generate", "target"]  # without target the server does not start
    engine = tmp_path / "resnet50" / "1" / "engine"
    engine.mkdir()
    (engine / "manifest.json").touch()
    served = ["classify", "generate", "image_decoder", "label_ranker", "resnet50", "resnet50_logits", "target"]
    assert loadable_models(tmp_path, {}) == served
    check_engines(tmp_path, ["classify", "image_decoder"], {})
    with pytest.raises(EngineMissingError, match=r"'classify_imagenet' .*efficientnet_lite0.*make engine-vision"):
        check_engines(tmp_path, ["classify_imagenet"], {})


def test_replicas_of_the_target_are_loaded_where_they_are_named(tmp_path):
    for name in ("generate", "target", "target_2", "target_3"):
        make_model(tmp_path, name)
    engine = tmp_path / "target" / "1" / "engine"
    engine.mkdir()
    (engine / "manifest.json").touch()
    assert loadable_models(tmp_path, {}) == ["generate", "target"]
    named = {"TANDEM_TARGET_MODELS": "target, target_3"}
    assert loadable_models(tmp_path, named) == ["generate", "target", "target_3"]
    check_engines(tmp_path, ["target_3"], named)
    with pytest.raises(EngineMissingError, match=r"'target_3' has no engine in .*nowhere: build it with `make engine`"):
        check_engines(tmp_path, ["target_3"], {"TANDEM_TARGET_ENGINE": str(tmp_path / "nowhere")})


LATE_METRICS = """\
import http.server, sys, threading, time

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

def listen(name):
    port = next(int(text.split("=")[1]) for text in sys.argv if text.startswith(f"--{name}-port="))
    http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()

threading.Thread(target=listen, args=["http"]).start()
time.sleep(0.5)
listen("metrics")
"""


def test_started_means_that_metrics_can_be_read(tmp_path):
    """Triton opens that port a few milliseconds after it says over HTTP that it is ready."""
    binary = tmp_path / "tritonserver"
    binary.write_text(f"#!{sys.executable}\n{LATE_METRICS}")
    binary.chmod(0o755)
    options = Options(models=(), log=tmp_path / "log", stop_seconds=5)
    with TritonServer(options, runtime.Runtime(binary, tmp_path)) as server:
        socket.create_connection((LOOPBACK, server.ports["metrics"])).close()


def test_response_cache_is_an_option_of_the_server(tmp_path):
    runtime_with = runtime.Runtime(tmp_path, tmp_path, caches=tmp_path / "caches")
    runtime_without = runtime.Runtime(tmp_path, tmp_path)

    def arguments(megabytes: int, found: runtime.Runtime) -> list[str]:
        server = TritonServer(Options(response_cache_mb=megabytes))
        server.ports = {"HTTP": 1, "gRPC": 2, "metrics": 3}
        return [text for text in server._arguments(found, []) if text.startswith("--cache")]

    size = f"--cache-config=local,size={5 << 20}"
    assert arguments(5, runtime_with) == [f"--cache-directory={tmp_path / 'caches'}", size]
    assert arguments(0, runtime_with) == arguments(5, runtime_without) == []


def test_serve_without_engine_ends_with_a_message(tmp_path, capsys):
    make_model(tmp_path, "target")
    assert main(["serve", "--model-repository", str(tmp_path), "--http-port", "0"]) == 1
    captured = capsys.readouterr()
    assert "make engine" in captured.err
    assert "Traceback" not in captured.err


def test_serve_on_taken_port_ends_with_a_message(tmp_path, capsys, taken_port):
    assert main(["serve", "--model-repository", str(tmp_path), "--http-port", str(taken_port)]) == 1
    assert f"HTTP port {taken_port}" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_serve_refuses_impossible_ports(port, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--http-port", port])
    assert "--http-port" in capsys.readouterr().err


def test_log_extract_keeps_errors_with_their_traceback():
    log = (
        "I1123 04:16:09.177969 1 model_lifecycle.cc:472] loading\n"
        "E1123 04:16:09.177969 1 model_lifecycle.cc:642] failed: ValueError: bad\n"
        "\n"
        "At:\n"
        "  model.py(4): initialize\n"
        "I1123 04:16:09.177969 1 server.cc:1] going on\n"
        "and more of that\n"
        "error: creating server: load failed\n"
    )
    assert log_extract(log).splitlines() == [
        "E1123 04:16:09.177969 1 model_lifecycle.cc:642] failed: ValueError: bad",
        "At:",
        "  model.py(4): initialize",
        "error: creating server: load failed",
    ]


def test_log_extract_leaves_out_what_is_normal_without_a_gpu():
    log = 'E1123 04:16:09.176568 1 server.cc:241] "CudaDriverHelper has not been initialized."\nlast words\n'
    assert log_extract(log, lines=1) == "last words"


def test_missing_libraries_are_those_that_packages_bring(tmp_path, monkeypatch):
    """What `ldd` does not find, without what comes with a GPU's driver: an image is built where there is none."""
    ldd = tmp_path / "ldd"
    ldd.write_text(
        "#!/bin/sh\nprintf '\\tlibcuda.so.1 => not found\\n\\tlibre2.so.9 => not found\\n\\tlibc.so.6 => /x\\n'\n"
    )
    ldd.chmod(0o755)
    monkeypatch.setattr(runtime.sys, "prefix", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert runtime.Runtime(ldd, tmp_path).missing_libraries() == ["libre2.so.9"]


def test_debian_packages():
    libraries = ["libpython3.11.so.1.0", "libz.so.1", "libunheard.so.7"]
    assert debian_packages(libraries) == ["libpython3.11", "libunheard.so.7", "zlib1g"]


def test_backends_are_assembled_once_with_all_three_files(tmp_path):
    env = {"PATH": str(tmp_path)}  # no installed tritonserver in sight
    first = find_runtime(env, cache=tmp_path)
    second = find_runtime(env, cache=tmp_path)
    assert first == second
    names = {file.name for file in (first.backends / "python").iterdir() if file.exists()}
    assert names == {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"}
    assert [entry.name for entry in first.backends.parent.iterdir()] == [first.backends.name]  # no scratch left


def test_installed_server_goes_before_the_wheel(tmp_path):
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    for env in ({"PATH": str(binary.parent)}, {"PATH": "", "TANDEM_TRITONSERVER": str(binary)}):
        found = find_runtime(env)
        assert found.binary == binary
        assert found.backends == tmp_path / "backends"
    binary.chmod(0o644)
    with pytest.raises(RuntimeMissingError, match="TANDEM_TRITONSERVER"):
        find_runtime({"PATH": "", "TANDEM_TRITONSERVER": str(binary)})


def test_environment_puts_the_venv_first_and_keeps_what_the_user_set():
    server = runtime.Runtime(Path("server"), Path("backends"), library_path=(Path("libs"),))
    env = server.environment(
        {"PATH": "p", "LD_LIBRARY_PATH": "l", "GLIBC_TUNABLES": "a=b", "PYTHONHOME": "h", "X": "x"}
    )
    assert env["PATH"] == f"{sys.prefix}/bin:p"
    assert env["LD_LIBRARY_PATH"] == "libs:l"
    assert env["GLIBC_TUNABLES"] == "a=b:glibc.malloc.hugetlb=1"
    assert env["X"] == "x"
    assert "PYTHONHOME" not in env
    chosen = server.environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
    assert chosen["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


@pytest.mark.parametrize(
    ("model", "expected"), [("target", True), ("target_0", False), ("tar", False), ("other_target", False)]
)
def test_stub_is_recognized_by_its_instance_name(model, expected):
    command = [
        "/b/triton_python_backend_stub",
        "/r/target/1/model.py",
        "shm",
        "1",
        "1",
        "7",
        "/b",
        "336",
        "target_0_0",
    ]
    assert is_stub_of(model, [*command, "DEFAULT"]) is expected
    assert not is_stub_of(model, ["python3", *command[1:]])


def test_program_is_not_started_for_a_dead_parent():
    shim = Path(runtime.__file__).with_name("exec_with_parent.py")
    mine = [sys.executable, str(shim), str(os.getpid()), "/bin/echo", "alive"]
    assert subprocess.run(mine, capture_output=True, text=True, check=True).stdout == "alive\n"
    orphan = [sys.executable, str(shim), "1", "/bin/echo", "alive"]
    result = subprocess.run(orphan, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "the launcher is gone" in result.stderr
