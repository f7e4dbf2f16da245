"""One process of soak clients: each sends one request after the other, and leaves many of them on the way.

Writes a line of JSON with its totals to standard output once a second; ends on SIGTERM, after the requests under way.
Arguments: gRPC address, HTTP address, number of clients, seed, and the expected answers as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from client import AsyncClient, Cancelled, InvalidRequest, ServerError, Unavailable

ANSWER_S = 180.0  # in which every request must have ended; more is a hang
WORDS = ("the", "a", "river", "night", "small", "of", "and", "house", "wind", "old", "story", "green", "number")
QUEUE_FULL, OVER = "the queue is full", "the request's time was over"


class Clients:
    """The clients of this process and what they saw."""

    def __init__(self, grpc_url: str, http_url: str, seed: int, expected: dict[str, str]) -> None:
        self._grpc_url, self._http_url = grpc_url, http_url
        self._rng = random.Random(seed)
        self._expected = expected
        self.outcomes: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.tokens = 0
        self.stopping = False

    async def run(self, count: int) -> None:
        """Run until `stopping` is set."""
        async with AsyncClient(self._grpc_url) as client:
            await asyncio.gather(*(self._one_client(client) for _ in range(count)))

    async def _one_client(self, client: AsyncClient) -> None:
        ways: list[tuple[Callable[[AsyncClient], Awaitable[str]], int]] = [
            (self._read_all, 30),
            (self._whole, 10),
            (self._compare, 10),
            (self._cancel, 20),
            (self._time_out, 5),
            (self._malformed, 5),
            (self._http_read_all, 8),
            (self._http_leave, 12),
        ]
        while not self.stopping:
            way = self._rng.choices([way for way, _ in ways], [weight for _, weight in ways])[0]
            name = way.__name__.removeprefix("_")
            try:
                outcome = await asyncio.wait_for(way(client), ANSWER_S)
            except Unavailable as error:
                outcome = "queue full" if error.message.startswith(QUEUE_FULL) else f"{name}: {error.message}"
            except TimeoutError:
                outcome = f"{name}: hangs"
            except (ServerError, OSError, AssertionError, ValueError) as error:
                outcome = f"{name}: {error!r}"
            self._count(outcome)
            if outcome == "queue full":  # as a client with manners would
                await asyncio.sleep(self._rng.uniform(0.2, 2.0))

    def _count(self, outcome: str) -> None:
        (self.unexpected if ":" in outcome else self.outcomes)[outcome] += 1

    def _prompt(self) -> str:
        length = self._rng.choice([1, 5, 20, 60, 200]) if self._rng.random() < 0.97 else 1500
        return " ".join(self._rng.choice(WORDS) for _ in range(length))

    def _options(self) -> dict[str, Any]:
        rng = self._rng
        options: dict[str, Any] = {"max_tokens": rng.choice([1, 8, 30, 60, 120, 200])}
        if rng.random() < 0.6:
            options |= {"temperature": rng.choice([0.5, 1.0, 1.5]), "random_seed": rng.getrandbits(64)}
            options |= {"top_k": rng.choice([0, 20]), "top_p": rng.choice([0.8, 1.0]), "min_p": rng.choice([0.0, 0.05])}
        if rng.random() < 0.2:
            options |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.2}
        if rng.random() < 0.2:
            options |= {"stop_words": ["\n\n", " the"], "bad_words": ["number", "light"]}
        if rng.random() < 0.2:
            options |= {"return_log_probs": True, "return_token_ids": True, "exclude_input_in_output": False}
        if rng.random() < 0.3:
            options["min_length"] = options["max_tokens"]
        if rng.random() < 0.05:
            options["priority"] = rng.randint(1, 100)
        return options

    async def _read_all(self, client: AsyncClient) -> str:
        options = self._options()
        stream = client.stream(self._prompt(), **options)
        result = await stream.result()
        self._take(result.generated_tokens, options)
        return "finished"

    async def _whole(self, client: AsyncClient) -> str:
        options = self._options()
        result = await client.generate(self._prompt(), **options)
        self._take(result.generated_tokens, options)
        return "finished"

    def _take(self, tokens: int, options: dict[str, Any]) -> None:
        assert 1 <= tokens <= options["max_tokens"], f"{tokens} tokens of {options['max_tokens']}"
        self.tokens += tokens

    async def _compare(self, client: AsyncClient) -> str:
        """The load must not change a greedy answer."""
        prompt, wanted = self._rng.choice(sorted(self._expected.items()))
        result = await client.generate(prompt, max_tokens=40, min_length=40)
        self.tokens += result.generated_tokens
        assert result.text == wanted, f"{prompt!r} gave {result.text!r} instead of {wanted!r}"
        return "finished as when alone"

    async def _cancel(self, client: AsyncClient) -> str:
        # So long that it does not end within ten responses: where the processor is short a response has many tokens.
        stream = client.stream(self._prompt(), max_tokens=1000, min_length=1000)
        try:
            if self._rng.random() < 0.5:  # at any moment, perhaps before it is admitted
                asyncio.get_running_loop().call_later(self._rng.uniform(0, 1.0), stream.cancel)
                await stream.result()
            else:
                for _ in range(self._rng.randint(1, 10)):
                    await anext(stream)
                stream.cancel()
                await stream.result()
        except Cancelled:
            return "cancelled"
        raise AssertionError("a cancelled request was answered to its end")

    async def _time_out(self, client: AsyncClient) -> str:
        try:
            await client.generate(self._prompt(), max_tokens=1000, min_length=1000, timeout=self._rng.uniform(0.1, 2))
        except Unavailable as error:
            if error.message.startswith(OVER):
                return "timed out"
            raise
        except ServerError as error:
            if error.status == "DEADLINE_EXCEEDED":  # the client's own deadline, a second later, on a busy machine
                return "timed out"
            raise
        raise AssertionError("1000 tokens came within 2 s")

    async def _malformed(self, client: AsyncClient) -> str:
        wrong = self._rng.choice([{"top_p": 2.0}, {"max_tokens": -1}, {"temperature": float("nan")}])
        try:
            await client.generate(self._prompt(), **wrong)
        except InvalidRequest:
            return "refused"
        raise AssertionError(f"{wrong} was accepted")

    async def _http_read_all(self, _: AsyncClient) -> str:
        reader, writer = await self._http(max_tokens=40)
        body = (await reader.read()).decode()
        writer.close()
        if QUEUE_FULL in body:
            return "queue full"
        assert '"finish_reason"' in body, body[-300:]
        return "finished"

    async def _http_leave(self, _: AsyncClient) -> str:
        """Close the connection, with or without farewell, at any moment."""
        reader, writer = await self._http(max_tokens=400, min_length=400)
        if self._rng.random() < 0.7:
            head = await reader.readuntil(b"\r\n")
            if b" 200 " not in head:
                body = (await reader.read()).decode()
                assert QUEUE_FULL in body, body[-300:]
                return "queue full"
            await asyncio.sleep(self._rng.uniform(0, 0.5))
        if self._rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        return "left"

    async def _http(self, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._http_url.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"text_input": self._prompt(), "stream": True} | fields).encode()
        head = f"POST /v2/models/generate/generate_stream HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        return reader, writer


async def main() -> None:
    grpc_url, http_url, count, seed, expected = sys.argv[1:]
    clients = Clients(grpc_url, http_url, int(seed), json.loads(expected))

    def stop() -> None:
        clients.stopping = True

    def report() -> None:
        totals = {"outcomes": clients.outcomes, "unexpected": clients.unexpected, "tokens": clients.tokens}
        print(json.dumps(totals), flush=True)

    async def report_regularly() -> None:
        while True:
            report()
            await asyncio.sleep(1)

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    reporting = asyncio.create_task(report_regularly())
    await clients.run(int(count))
    reporting.cancel()
    report()


if __name__ == "__main__":
    asyncio.run(main())
