"""`python -m client chat`: a conversation in the terminal, or one answer with `--message`."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections.abc import Iterator

from client.errors import ServerError, Unreachable
from client.output import summary, write_stream
from client.request import Parameters
from client.response import Result
from client.sync import Client

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message and start over; without TEXT, remove it
/help           this list
/quit           leave (also Ctrl-D)
Ctrl-C stops an answer that is being written; the chat goes on."""


class Conversation:
    """The messages so far; the system message, if any, comes first."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def answer(self, client: Client, text: str, parameters: Parameters, timeout: float | None) -> Result | None:
        """Ask, write the answer as it comes and keep both; None if Ctrl-C stopped the answer.

        Raises:
            ServerError: the request failed; the question is forgotten, so that it can be asked again.
        """
        self.messages.append({"role": "user", "content": text})
        result = None
        with client.stream(messages=self.messages, timeout=timeout, **parameters) as stream:
            try:
                write_stream(stream)
                result = stream.result()
            except KeyboardInterrupt:
                stream.cancel()
            except BaseException:
                self.messages.pop()
                raise
            self.messages.append({"role": "assistant", "content": stream.text})
        return result


def run_chat(options: Namespace, parameters: Parameters) -> int:
    """Answer `--message` and return, or answer line by line until the input ends.

    Raises:
        ServerError: the one request of `--message` failed, or the server is not there.
    """
    conversation = Conversation(options.system)
    with Client(options.url) as client:
        if options.message is not None:
            result = conversation.answer(client, options.message, parameters, options.timeout)
            print(flush=True)
            if result is None:
                return 130
            print(summary(result), file=sys.stderr)
            return 0
        client.server_ready()
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if interactive:
            print("Type a message; /help lists the commands, Ctrl-D leaves.", file=sys.stderr)
        for line in _lines(interactive):
            if not line.startswith("/"):
                _turn(conversation, client, line, parameters, options.timeout)
            elif not _command(conversation, line):
                break
    return 0


def _turn(conversation: Conversation, client: Client, line: str, parameters: Parameters, timeout: float | None) -> None:
    try:
        result = conversation.answer(client, line, parameters, timeout)
    except Unreachable:
        raise
    except ServerError as error:
        print(f"\n{error.status}: {error.message}", file=sys.stderr)
        return
    print(flush=True)
    print("(stopped)" if result is None else summary(result), file=sys.stderr)


def _command(conversation: Conversation, line: str) -> bool:
    """Carry out a command; False says that the chat is over."""
    name, _, rest = line.partition(" ")
    if name in ("/quit", "/exit"):
        return False
    if name == "/reset":
        conversation.reset()
        print("The conversation starts over.", file=sys.stderr)
    elif name == "/system":
        conversation.system = rest.strip() or None
        conversation.reset()
        print("System message set." if conversation.system else "No system message.", file=sys.stderr)
    else:
        print(HELP, file=sys.stderr)
    return True


def _lines(interactive: bool) -> Iterator[str]:
    """Lines of the input that are not empty, until it ends. Ctrl-C at the prompt drops the line."""
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() editing and a history
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            continue
        if line:
            yield line
