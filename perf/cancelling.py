"""Clients that leave their streams early, beside a load that is measured: perf_analyzer cannot cancel."""

from __future__ import annotations

import random
import threading
from types import TracebackType
from typing import Self

from client import Client, Message, ServerError
from perf import mt_bench
from perf.profile import Cancelling


class CancellingClients:
    """A context manager: so many clients, each of which starts a stream, reads a little of it, leaves and starts anew.

    Attributes:
        cancelled: streams left before their end.
        ended: streams that were over before that.
        failed: streams that ended with an error.
    """

    def __init__(self, url: str, settings: Cancelling) -> None:
        self.cancelled = self.ended = self.failed = 0
        self._settings = settings
        self._client = Client(url)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._texts = mt_bench.prompts()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(settings.clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            wanted = rng.randint(*self._settings.after_tokens)
            message: list[Message] = [{"role": "user", "content": rng.choice(self._texts)}]
            left = False
            try:
                with self._client.stream(messages=message, max_tokens=256, cache_salt="cancelling") as stream:
                    for number, _ in enumerate(stream, 1):
                        if number >= wanted or self._stop.is_set():
                            left = True
                            break
            except ServerError:
                with self._lock:
                    self.failed += 1
                self._stop.wait(0.1)
                continue
            with self._lock:
                self.cancelled += left
                self.ended += not left
