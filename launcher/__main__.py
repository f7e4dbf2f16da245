"""Command line of the launcher: `python -m launcher serve`, `demo`, `check`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from launcher.admin import KEY_VARIABLE, AdminKeyError, admin_key
from launcher.engines import VISION_MODELS
from launcher.errors import ServerError
from launcher.ports import PortInUseError
from launcher.runtime import RuntimeMissingError, debian_packages, find_runtime
from launcher.server import REPOSITORY, RESPONSE_CACHE_MB, Options, TritonServer
from launcher.settings_file import SETTINGS_FILE, SettingsFileError, read_settings

EXAMPLE = """\
Ready.
  HTTP     http://{server.http_url}
  gRPC     {server.grpc_url}
  metrics  http://{server.metrics_url}/metrics
  log      {server.log}

Try it:
  curl -s http://{server.http_url}/v2/models/generate/generate -d '{{"text_input": "The capital of France is", "max_tokens": 24}}'
  {python} -m client chat --url {server.grpc_url} --message "Why is the sky blue?"
{classify}
Ctrl-C stops it."""  # noqa: E501
CLASSIFY = "  {python} -m client classify photo.jpg --url {server.grpc_url}\n"


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    top = argparse.ArgumentParser(prog="python -m launcher", description="Run the models on the real Triton server.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="start the server and keep it until Ctrl-C")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)"
    )
    serve.add_argument("--http-port", type=_port, default=8000, help="0 picks a free one (default: %(default)s)")
    serve.add_argument("--grpc-port", type=_port, default=8001, help="0 picks a free one (default: %(default)s)")
    serve.add_argument("--metrics-port", type=_port, default=8002, help="0 picks a free one (default: %(default)s)")
    serve.add_argument("--model-repository", type=Path, default=REPOSITORY, help="default: the one of this project")
    serve.add_argument("--model", action="append", dest="models", help="load only this model; may be given repeatedly")
    serve.add_argument(
        "--settings", type=Path, default=SETTINGS_FILE,
        help=f"file of TANDEM_<NAME>=value lines; the environment wins (default: {SETTINGS_FILE.name}, if it is there)",
    )  # fmt: skip
    serve.add_argument(
        "--response-cache-mb",
        type=_size,
        default=RESPONSE_CACHE_MB,
        metavar="MB",
        help="memory for the answers to repeated images; 0 is none (default: %(default)s)",
    )
    serve.add_argument("--log", type=Path, help="log file (default: a new one in .cache/logs)")
    serve.add_argument(
        "--restrict-admin",
        action="store_true",
        help="only clients that send the key in the environment variable "
        f"{KEY_VARIABLE} may load models, map shared memory, trace and change logging; without that variable, nobody",
    )
    serve.set_defaults(run=run_serve)
    demo = commands.add_parser("demo", help="start the server on free ports, show it at work, stop it")
    demo.set_defaults(run=run_demo)
    check = commands.add_parser("check", help="say which server will run, and what it lacks on this machine")
    check.add_argument("--packages", action="store_true", help="print only the Debian packages that are missing")
    check.set_defaults(run=run_check)
    return top


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return number


def _size(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("a size is 0 or more")
    return number


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; 1 if the server ends by itself."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = read_settings(arguments.settings)
    if settings:
        print(f"Settings from {arguments.settings.name}: {', '.join(f'{k}={v}' for k, v in settings.items())}")
    options = Options(
        env={name: value for name, value in settings.items() if name not in os.environ},
        repository=arguments.model_repository.resolve(),
        models=arguments.models,
        host=arguments.host,
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        log=arguments.log,
        admin_key=admin_key(os.environ) if arguments.restrict_admin else None,
        response_cache_mb=arguments.response_cache_mb,
    )
    server = TritonServer(options)
    print(f"Starting the server (log: {server.log}) ...", flush=True)
    try:
        server.start(cancelled=stop.is_set)
        if not stop.is_set():
            python = os.path.relpath(sys.executable) if sys.prefix != sys.base_prefix else "python3"
            served = any(model.startswith("classify") for model in server.models())
            classify = CLASSIFY.format(server=server, python=python) if served else ""
            print(EXAMPLE.format(server=server, python=python, classify=classify), flush=True)
        while not stop.wait(0.5):
            if not server.is_running():
                print(server.describe_end(), file=sys.stderr)
                return 1
    finally:
        print("Stopping ...", flush=True)
        server.stop()
    print("Stopped.", flush=True)
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    """Start the server on free ports and let the demonstration talk to it; its exit code is ours."""
    from launcher import demo  # needs the client libraries, which the other commands do without

    everything = TritonServer().models()
    server = TritonServer(Options(models=[model for model in everything if model not in VISION_MODELS]))
    print(f"Starting the server (log: {server.log}) ...", flush=True)
    with server:
        code = demo.run_demo(server.grpc_url, server.metrics_url)
        print("Stopping ...", flush=True)
    return code


def run_check(arguments: argparse.Namespace) -> int:
    """Report on the runtime; 1 if libraries are missing."""
    runtime = find_runtime()
    libraries = runtime.missing_libraries()
    packages = " ".join(debian_packages(libraries))
    if arguments.packages:
        print(packages)
        return 0
    print(f"server: {runtime.origin}")
    if libraries:
        print(f"missing shared libraries: {', '.join(libraries)}\ninstall them with: apt-get install {packages}")
    return 1 if libraries else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; errors that a user can mend are printed without a traceback."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (AdminKeyError, ServerError, PortInUseError, RuntimeMissingError, SettingsFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
