"""Command line of the load tests: `python -m perf COMMAND`."""

from __future__ import annotations

import argparse
import sys

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
    return top


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
    try:
        return int(arguments.run(arguments))
    except PerfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
