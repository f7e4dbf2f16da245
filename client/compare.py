"""`python -m client compare`: the same request without drafters and with them, in turns."""

from __future__ import annotations

import secrets
import sys
from argparse import Namespace

from rich.console import Console
from rich.text import Text

from client.comparison import Comparison
from client.errors import InvalidRequest
from client.request import Message, Parameters
from client.response import Result
from client.side_by_side import Column, LiveView, legend, table
from client.sync import Client

SEED = 0  # of sampled answers, unless another is given


def run_compare(options: Namespace, parameters: Parameters) -> int:
    """Answer `rounds` times each way, show the answers side by side, and judge.

    Returns:
        0, or 1 if the answers differ.

    Raises:
        ServerError: a request failed.
    """
    prompt, messages = _question(options)
    ways = _ways(parameters)
    comparison = Comparison((ways[0][0], ways[1][0]))
    console = Console(highlight=False)
    with Client(options.url) as client:
        for number in range(1, options.rounds + 1):
            columns = [Column(name) for name, _ in ways]
            results: list[Result] = []
            with LiveView(console, columns, f"round {number} of {options.rounds}") as view:
                for column, (_, wanted) in zip(columns, ways, strict=True):
                    # A salt of its own: what the server may remember of one answer must not help the next.
                    salted: Parameters = {"cache_salt": secrets.token_hex(8), **wanted}
                    with client.stream(prompt, messages=messages, timeout=options.timeout, **salted) as stream:
                        for chunk in stream:
                            column.take(chunk, stream.timing.total_s)
                            view.show()
                        view.show(at_once=True)
                        results.append(stream.result())
            comparison.rounds.append((results[0], results[1]))
            times = ", ".join(f"{column.name} {column.seconds:.2f} s" for column in columns)
            _print(console, f"round {number} of {options.rounds}: {times}")
    _conclude(console, columns, comparison)
    return 0 if comparison.difference() is None else 1


def _question(options: Namespace) -> tuple[str | bytes | None, list[Message] | None]:
    """The prompt as raw text, or as a chat's message."""
    prompt: str | bytes = sys.stdin.buffer.read() if options.prompt == "-" else options.prompt
    if not options.chat:
        return prompt, None
    try:
        text = prompt if isinstance(prompt, str) else prompt.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"prompt: {error}", "INVALID_ARGUMENT") from None
    return None, [{"role": "user", "content": text}]


def _ways(parameters: Parameters) -> list[tuple[str, Parameters]]:
    """Names and parameters of both ways, the plain one first."""
    common: Parameters = {**parameters, "return_token_ids": True}
    if common.get("temperature"):
        common.setdefault("random_seed", SEED)
    drafter = common.get("drafter", "auto")
    name = drafter if drafter != "none" else "none again"  # how much two equal ways differ in time
    return [("none", {**common, "drafter": "none"}), (name, {**common, "drafter": drafter})]


def _conclude(console: Console, columns: list[Column], comparison: Comparison) -> None:
    difference = comparison.difference()
    if console.is_terminal:
        console.print()
        console.print(table(columns), legend())
    else:
        for column in columns if difference else columns[:1]:
            _print(console, column.text.plain)
    for line in comparison.lines():
        _print(console, line, "bold red" if difference and line.startswith("identical") else "")


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)
