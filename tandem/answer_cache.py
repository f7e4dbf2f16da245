"""Whole answers, kept for the same request: for deterministic ones, greedy or with a seed of their own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from tandem.errors import RequestError
from tandem.sequence import Emission, Sequence, Sink

ENTRY_BYTES = 1000  # of an entry, besides its text and tokens
TOKEN_BYTES = 150  # Python objects for id, log-probability, origin and length of one token


class AnswerCache:
    """Bounded; what was not asked for the longest is given up first. Used from several threads."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes` of 0 keeps nothing."""
        self._most_bytes = most_bytes
        self._answers: OrderedDict[Hashable, Emission] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __bool__(self) -> bool:
        return self._most_bytes > 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: Hashable) -> Emission | None:
        """The whole answer to the request of this key, if it is kept. It must not be changed."""
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                self.misses += 1
                return None
            self._answers.move_to_end(key)
            self.hits += 1
            return answer

    def put(self, key: Hashable, answer: Emission) -> None:
        """Keep an answer; one that is larger than the whole cache is not kept."""
        size = _size(answer)
        if size > self._most_bytes:
            return
        with self._lock:
            old = self._answers.pop(key, None)
            self.bytes += size - (_size(old) if old else 0)
            self._answers[key] = answer
            while self.bytes > self._most_bytes:
                self.bytes -= _size(self._answers.popitem(last=False)[1])


def _size(answer: Emission) -> int:
    return ENTRY_BYTES + len(answer.text.encode()) + TOKEN_BYTES * len(answer.token_ids)


class Recorder:
    """A sink that passes everything on, and keeps the answer once it is whole."""

    def __init__(self, sink: Sink, cache: AnswerCache, key: Callable[[], Hashable]) -> None:
        """`key` is asked at the end, as what it depends on may be known only then."""
        self._sink = sink
        self._cache = cache
        self._key = key
        self._answer = Emission()

    def emit(self, sequence: Sequence, emission: Emission) -> None:
        """See `Sink.emit`."""
        self._answer.extend(emission)
        self._sink.emit(sequence, emission)
        if emission.finish_reason is not None:
            self._cache.put(self._key(), self._answer)

    def fail(self, sequence: Sequence, error: RequestError) -> None:
        """See `Sink.fail`."""
        self._sink.fail(sequence, error)
