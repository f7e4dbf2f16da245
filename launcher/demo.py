"""The demonstration: one chat answer, one completion, then eight requests at a time that share the steps."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client import AsyncClient, Client, Message, Result, ServerError
from client.metrics import mean_between, read_metrics
from client.output import summary, write_stream

CHAT: list[Message] = [{"role": "user", "content": "Why is the sky blue? Answer in three sentences."}]
COMPLETION = "The three things that make a good story are"
PROMPTS = (
    "A recipe for tomato soup:",
    "The history of the bicycle began",
    "Dear Sir or Madam, I am writing to",
    "In the deep sea there lives",
    "How to plant an apple tree:",
    "The night train to Vienna left",
    "Three facts about the moon:",
    "Once upon a time, a small robot",
)
CHAT_TOKENS, COMPLETION_TOKENS, CONCURRENT_TOKENS = 96, 64, 96
REFRESH_S = 0.25
PUBLISH_S = 0.6  # the server publishes its metrics four times a second


@dataclass
class Progress:
    """One of the concurrent streams."""

    prompt: str
    tokens: int = 0
    text: str = ""
    finish_reason: str = ""


def run_demo(grpc_url: str, metrics_url: str) -> int:
    """Show a running server at work.

    Args:
        grpc_url: host and port of its gRPC endpoint.
        metrics_url: host and port of its metrics endpoint, or a whole URL.

    Returns:
        0, or 1 after an error of the server, which is printed.
    """
    console = Console()
    try:
        with Client(grpc_url) as client:
            _title(console, "A chat answer, streamed")
            print(f"> {CHAT[-1]['content']}")
            _answer(client, messages=CHAT, tokens=CHAT_TOKENS)
            _title(console, "A text continued, streamed")
            print(COMPLETION, end="", flush=True)
            single = _answer(client, prompt=COMPLETION, tokens=COMPLETION_TOKENS)
        time.sleep(PUBLISH_S)
        before = read_metrics(metrics_url)
        _title(console, f"{len(PROMPTS)} requests at a time, each up to {CONCURRENT_TOKENS} tokens")
        tokens, seconds = asyncio.run(_run_together(grpc_url, console))
        time.sleep(PUBLISH_S)
        rows = mean_between(before, read_metrics(metrics_url), "tandem_step_rows")
    except ServerError as error:
        print(f"{error.status}: {error.message}", file=sys.stderr)
        return 1
    _title(console, "What this shows")
    print(_conclusion(tokens, seconds, single.generated_tokens / single.timing.total_s, rows))
    return 0


def _title(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold", highlight=False)


def _answer(client: Client, *, prompt: str | None = None, messages: list[Message] | None = None, tokens: int) -> Result:
    with client.stream(prompt, messages=messages, max_tokens=tokens) as stream:
        write_stream(stream)
        result = stream.result()
    print(f"\n{summary(result)}", flush=True)
    return result


async def _run_together(url: str, console: Console) -> tuple[int, float]:
    """Send all prompts at once; the number of tokens that came and the seconds they took."""
    streams = [Progress(prompt) for prompt in PROMPTS]
    started = time.perf_counter()
    async with AsyncClient(url) as client:
        # Ids are asked for to count tokens: a response may carry several of them.
        work = asyncio.gather(*(_follow(client, progress) for progress in streams))
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                await _watch(work, lambda: live.update(_view(streams, started), refresh=True))
        else:
            await _watch(work, lambda: print(_line(streams, started), flush=True))
            for progress in streams:
                print(textwrap.shorten(progress.prompt + progress.text, 100, placeholder=" …"))
    return sum(progress.tokens for progress in streams), time.perf_counter() - started


async def _follow(client: AsyncClient, progress: Progress) -> None:
    async for chunk in client.stream(progress.prompt, max_tokens=CONCURRENT_TOKENS, return_token_ids=True):
        progress.text += chunk.text
        progress.tokens += len(chunk.token_ids or ())
        progress.finish_reason = chunk.finish_reason or ""


async def _watch(work: asyncio.Future[list[None]], show: Callable[[], None]) -> None:
    while not work.done():
        await asyncio.wait([work], timeout=REFRESH_S)
        show()
    await work


def _view(streams: list[Progress], started: float) -> Table:
    view = Table(box=None, show_header=False, pad_edge=False, expand=True, padding=(0, 1, 0, 0))
    view.add_column(width=10, no_wrap=True)
    view.add_column(width=12, no_wrap=True, justify="right")
    view.add_column(ratio=1, no_wrap=True, overflow="crop")
    for progress in streams:
        full = round(10 * progress.tokens / CONCURRENT_TOKENS)
        state = progress.finish_reason or "running"
        # The end of the text is what moves; what does not fit on the line is cropped, so show the tail alone.
        tail = _one_line(progress.prompt + progress.text)[-60:]
        view.add_row("━" * full + "╌" * (10 - full), f"{progress.tokens} {state}", Text(tail))
    view.add_row("", "", Text(_total(streams, started), style="bold"))
    return view


def _line(streams: list[Progress], started: float) -> str:
    counts = " ".join(f"{progress.tokens:3d}" for progress in streams)
    return f"{time.perf_counter() - started:5.2f} s  tokens of each: {counts}   {_total(streams, started)}"


def _total(streams: list[Progress], started: float) -> str:
    tokens = sum(progress.tokens for progress in streams)
    return f"{tokens} tokens, {tokens / (time.perf_counter() - started):.0f} tokens/s together"


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _conclusion(tokens: int, seconds: float, single: float, rows: float | None) -> str:
    together = tokens / seconds
    lines = [
        f"One stream alone ran at {single:.0f} tokens/s.",
        f"{len(PROMPTS)} at a time made {tokens} tokens in {seconds:.2f} s: "
        f"{together:.0f} tokens/s, {together / single:.1f} times the rate of one.",
    ]
    if rows is not None:
        shared = "so the requests shared their steps" if rows > 1.5 else "so the requests hardly shared a step"
        lines.append(f"A step of the model held {rows:.1f} sequences on average, {shared}.")
    return "\n".join(lines)
