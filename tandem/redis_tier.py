"""KV blocks in a Redis server that several servers of a fleet share.

Redis limits its own memory (`maxmemory` with `maxmemory-policy allkeys-lru`). A server that cannot be reached is left
alone for a while, so that requests do not wait for it.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Iterable

import redis

from tandem.disk_tier import CHECKSUM_BYTES, WAITING, opened, sealed
from tandem.tiers import Block

TIMEOUT_S = 0.25  # of a connection and of an answer
AWAY_S = 5.0  # for which a server that failed is not asked
PREFIX = b"tandem:kv:"

log = logging.getLogger(__name__)


class RedisTier:
    """Implements `tandem.tiers.BlockStore`. Blocks are sent by a thread of its own and fetched by the caller's."""

    name = "redis"
    is_shared = True

    def __init__(self, url: str, identity: bytes) -> None:
        """Connects when it is first used.

        Args:
            url: for example `redis://localhost:6379/0`.
            identity: says what K and V depend on: see `tandem.prefix_index.root_key`.

        Raises:
            ValueError: `url` is none.
        """
        self._redis = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        self._identity = hashlib.blake2b(identity, digest_size=CHECKSUM_BYTES).digest()
        self._away_until = 0.0
        self._sent: set[bytes] = set()  # may have been dropped there since
        self._waiting: queue.Queue[tuple[bytes, Block] | None] = queue.Queue(WAITING)
        self.bytes_used = 0  # the server's own affair
        self.stored_blocks = 0
        self.faults = 0
        self._thread = threading.Thread(target=self._send_all, name="redis-tier", daemon=True)
        self._thread.start()

    def get(self, key: bytes) -> Block | None:
        """See `BlockStore.get`."""
        try:
            content = self._redis.get(PREFIX + key)
        except redis.RedisError as error:
            self._fault(error)
            return None
        if content is None:
            self._sent.discard(key)
            return None
        try:
            return opened(self._identity, key, content)  # type: ignore[arg-type]
        except ValueError as error:
            self.faults += 1
            log.warning("redis tier: a block is not used and deleted: %s", error)
            self.remove(key)
            return None

    def has(self, key: bytes) -> bool:
        """See `BlockStore.has`: only asking can tell."""
        return time.monotonic() >= self._away_until

    def put(self, key: bytes, data: Block) -> list[tuple[bytes, Block]]:
        """See `BlockStore.put`."""
        if key not in self._sent and not self._waiting.full():
            self._sent.add(key)
            self._waiting.put((key, data))
        return []

    def remove(self, key: bytes) -> None:
        """See `BlockStore.remove`."""
        self._sent.discard(key)
        try:
            self._redis.delete(PREFIX + key)
        except redis.RedisError as error:
            self._fault(error)

    def clear(self) -> None:
        """See `BlockStore.clear`: it is not this server's alone, so only what this one sent is deleted."""
        for key in list(self._sent):
            self.remove(key)

    def close(self, last: Iterable[tuple[bytes, Block]] = ()) -> list[tuple[bytes, Block]]:
        """See `BlockStore.close`."""
        self._waiting.put(None)
        self._thread.join()
        self._redis.close()
        return list(last)

    def _send_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            key, data = item
            if time.monotonic() < self._away_until:
                self._sent.discard(key)
                continue
            try:
                self._redis.set(PREFIX + key, sealed(self._identity, key, data))
                self.stored_blocks += 1
            except redis.RedisError as error:
                self._sent.discard(key)
                self._fault(error)

    def _fault(self, error: Exception) -> None:
        self.faults += 1
        self._away_until = time.monotonic() + AWAY_S
        log.warning("redis tier: not used for %g s: %s", AWAY_S, error)
