"""Command line of the load tests: `python -m perf COMMAND`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from build_engines import interrupt
from build_engines.errors import BuildError
from perf import analyzer
from perf.errors import PerfError


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    top = argparse.ArgumentParser(
        prog="python -m perf", description="Load tests of the server with NVIDIA's perf_analyzer."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    binary = commands.add_parser(
        "binary",
        help="print the path of a perf_analyzer that runs here; fetched and verified on first use",
        description=f"{analyzer.OVERRIDE} names another one. Notes on unusable ones go to stderr.",
    )
    binary.set_defaults(run=run_binary)
    profiles = commands.add_parser("profiles", help="list the load profiles")
    profiles.set_defaults(run=run_profiles)
    run = commands.add_parser(
        "run",
        help="run a profile and write its report",
        description="Runs perf_analyzer with a profile, against a given server or one that is started for it.",
    )
    run.add_argument("profile", help="name of a profile, or a file that ends in .yaml")
    run.add_argument("--url", type=_address, help="host:port of a running server's gRPC (default: start one)")
    run.add_argument(
        "--metrics-url", type=_address, help="host:port of that server's metrics (default: its host, port 8002)"
    )
    run.add_argument("--rounds", type=int, help="instead of the profile's")
    run.add_argument(
        "--store-baseline", action="store_true", help="keep the result as what later runs are compared with"
    )
    run.add_argument(
        "--baseline", type=Path, help="summary.json of another run to compare with (default: the stored one, if any)"
    )
    run.add_argument(
        "--against", metavar="COMMIT",
        help="start a server of this commit too, with the engines that are here, measure both in turns, and compare: "
        "the surest way, as a shared machine's moods happen to both",
    )  # fmt: skip
    run.set_defaults(run=run_run)
    dashboard = commands.add_parser(
        "dashboard",
        help="draw the Grafana dashboard's panels from a real Prometheus under load",
        description="Starts a server and a Prometheus, loads the server with a profile, runs every query.",
    )
    dashboard.add_argument("--profile", default="shared-prefix", help="the load (default: %(default)s)")
    dashboard.add_argument("--output", type=Path, default=Path("docs/dashboard.png"), help="default: %(default)s")
    dashboard.set_defaults(run=run_dashboard)
    plan = commands.add_parser(
        "plan",
        help="find the cheapest configuration that keeps service targets",
        description="Measures configurations one setting at a time, predicts what each carries under random arrivals, "
        "checks the best under a real open load, and says what it costs and how many machines a load needs.",
    )
    plan.add_argument("plan", nargs="?", default="chat", help="name of a plan, or a file that ends in .yaml")
    plan.add_argument(
        "--target", type=_target, action="append", metavar="NAME=MS",
        help="such as ttft_p99_ms=300 or itl_p95_ms=40, instead of the plan's; may be given repeatedly",
    )  # fmt: skip
    plan.add_argument("--requests-per-s", type=float, help="the whole load, instead of the plan's")
    plan.add_argument("--price-per-hour", type=float, help="of one machine, instead of the plan's")
    plan.add_argument("--requests", type=int, help="of each measurement, instead of the plan's")
    plan.add_argument(
        "--grid", action="store_true",
        help="measure every configuration of the space, and fail if the search would have chosen one that is more than "
        "10 %% dearer",
    )  # fmt: skip
    plan.add_argument("--apply", action="store_true", help="write the choice where `make serve` reads it")
    plan.set_defaults(run=run_plan)
    return top


def _target(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=milliseconds, such as ttft_p99_ms=300") from None


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if "/" in text or not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port, such as 127.0.0.1:8001")
    return text


def run_profiles(arguments: argparse.Namespace) -> int:
    """Print names and descriptions."""
    from perf import profile

    for name in profile.names():
        print(f"{name:<16} {profile.load(name).description}")
    return 0


def run_run(arguments: argparse.Namespace) -> int:
    """Measure, report, compare: 1 if a figure got worse than the baseline's beyond noise."""
    from perf import session

    return session.run(arguments)


def run_dashboard(arguments: argparse.Namespace) -> int:
    """Draw; 1 if a query gives no data."""
    from perf import watched

    return watched.run(arguments.profile, arguments.output)


def run_plan(arguments: argparse.Namespace) -> int:
    """Search, verify, report."""
    from perf.plan import session

    return session.run(arguments)


def run_binary(arguments: argparse.Namespace) -> int:
    """Print the path; what else there is to say goes to stderr."""
    for note in analyzer.notes():
        print(f"note: {note}", file=sys.stderr)
    program, origin = analyzer.find()
    print(f"perf_analyzer {origin}", file=sys.stderr)
    print(program)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; errors that a user can mend are printed without a traceback."""
    arguments = parser().parse_args(argv)
    interrupt.install()
    try:
        return int(arguments.run(arguments))
    except (PerfError, BuildError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
