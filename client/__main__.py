"""The command line: `python -m client generate|chat|compare|classify|status|cache`."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from argparse import Namespace
from collections.abc import Sequence

from client.arguments import build_parser, parameters_from
from client.cache import run_cache
from client.chat import run_chat
from client.classify import run_classify
from client.compare import run_compare
from client.errors import InvalidRequest, ServerError, Unreachable
from client.output import as_json, summary, write_stream
from client.request import Parameters
from client.response import Result
from client.status import run_status
from client.sync import Client

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_INTERRUPTED = 1, 2, 3, 130


def run_generate(options: Namespace, parameters: Parameters) -> int:
    """Answer one prompt.

    Raises:
        ServerError: the request failed.
    """
    # Bytes as they are: the server names the field if they are not UTF-8.
    prompt = sys.stdin.buffer.read() if options.prompt == "-" else options.prompt
    with Client(options.url) as client:
        if (options.num_return_sequences or 1) > 1:
            _print_samples(client.stream(prompt, timeout=options.timeout, **parameters).results(), options.json)
            return 0
        if options.no_stream:
            result = client.generate(prompt, timeout=options.timeout, **parameters)
            if not options.json:
                print(result.text, flush=True)
        else:
            with client.stream(prompt, timeout=options.timeout, **parameters) as stream:
                if not options.json:
                    try:
                        write_stream(stream)
                    finally:
                        print(flush=True)
                result = stream.result()
    if options.json:
        print(as_json(result, streamed=not options.no_stream), flush=True)
    else:
        print(summary(result, streamed=not options.no_stream), file=sys.stderr)
    return 0


def _print_samples(results: Sequence[Result], json: bool) -> None:
    for index, result in enumerate(results, start=1):
        if json:
            print(as_json(result), flush=True)
        else:
            print(f"{result.text}\n", flush=True)
            print(f"{index} of {len(results)} {summary(result)}\n", file=sys.stderr)


_WITHOUT_REQUEST = {"classify": run_classify, "status": run_status, "cache": run_cache}


def raise_interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """A hook for `sys.unraisablehook`: Python drops, with a traceback, a Ctrl-C that meets it in a destructor."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # Not at once: that would be inside the hook, which swallows it too.
        again = threading.Timer(0.05, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 after an error of the server, or if a comparison finds a difference or one of many images fails; 2 after a
        wrong value, 3 if there is no server, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    try:
        if options.command in _WITHOUT_REQUEST:
            return _WITHOUT_REQUEST[options.command](options)
        run = {"generate": run_generate, "chat": run_chat, "compare": run_compare}[options.command]
        return run(options, parameters_from(options))
    except Unreachable as error:
        print(f"No server at {options.url}; start it with `make serve`.\n({error.message})", file=sys.stderr)
        return EXIT_UNREACHABLE
    except ServerError as error:
        print(f"{error.status}: {error.message}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, InvalidRequest) else EXIT_FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough; without this Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.unraisablehook = raise_interrupt_again
    sys.exit(main())
