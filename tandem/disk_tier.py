"""KV blocks as files in a directory of limited size, which the next process finds again.

A file is written aside and renamed, so that a crash leaves no half of one; it names the format, the engine and the key,
and ends with a checksum. What does not fit is deleted with a warning.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tandem.tiers import Block

MAGIC = b"tandem-kv-1\n"
SUFFIX, UNFINISHED = ".kv", ".kv-new"
CHECKSUM_BYTES = 16
LAST_S = 5.0  # for writing what the pool keeps when the process ends
WAITING = 64  # blocks that may wait to be written; more are dropped: the disk is too slow to keep them

log = logging.getLogger(__name__)


def sealed(identity: bytes, key: bytes, data: Block) -> bytes:
    """A block with what is needed to know it again."""
    body = MAGIC + identity + key + data.tobytes()
    return body + hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


def opened(identity: bytes, key: bytes, content: bytes) -> Block:
    """What was sealed.

    Raises:
        ValueError: damaged, of another format or engine, or not this key's.
    """
    head = MAGIC + identity + key
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no KV block of this version")
    if content[: len(head)] != head:
        raise ValueError("it belongs to another engine or another text")
    body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest() != checksum:
        raise ValueError("its checksum is wrong")
    return np.frombuffer(body, np.uint8, offset=len(head))


class DiskTier:
    """Implements `tandem.tiers.BlockStore`. Files are written by a thread of its own and read by the caller's."""

    name = "disk"
    is_shared = False

    def __init__(self, directory: Path, megabytes: float, identity: bytes) -> None:
        """Find what is there.

        Args:
            directory: is made; only files that end in `.kv` or `.kv-new` are touched.
            megabytes: all files together.
            identity: says what K and V depend on: see `tandem.prefix_index.root_key`.
        """
        self._directory = directory
        self._room = int(megabytes * 2**20)
        self._identity = hashlib.blake2b(identity, digest_size=CHECKSUM_BYTES).digest()
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # the longest unused first
        self._writing: dict[bytes, Block] = {}
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self.bytes_used = 0
        self.stored_blocks = 0
        self.faults = 0
        self._find()
        self._thread = threading.Thread(target=self._write_all, name="disk-tier", daemon=True)
        self._thread.start()

    def get(self, key: bytes) -> Block | None:
        """See `BlockStore.get`."""
        with self._lock:
            waiting = self._writing.get(key)
            if key in self._sizes:
                self._sizes.move_to_end(key)
        if waiting is not None:
            return waiting
        path = self._path(key)
        try:
            content = path.read_bytes()
            path.touch()  # the next process goes by this time
            return opened(self._identity, key, content)
        except (OSError, ValueError) as error:
            self._fault(f"{path.name} is not used and deleted: {error}")
            self.remove(key)
            return None

    def has(self, key: bytes) -> bool:
        """See `BlockStore.has`."""
        return key in self._sizes or key in self._writing

    def put(self, key: bytes, data: Block) -> list[tuple[bytes, Block]]:
        """See `BlockStore.put`."""
        with self._lock:
            if key in self._sizes or key in self._writing or len(self._writing) >= WAITING:
                return []
            self._writing[key] = data
        self._queue.put(key)
        return []

    def remove(self, key: bytes) -> None:
        """See `BlockStore.remove`."""
        with self._lock:
            self.bytes_used -= self._sizes.pop(key, 0)
        self._delete(self._path(key))

    def clear(self) -> None:
        """See `BlockStore.clear`."""
        self._queue.join()
        for key in list(self._sizes):
            self.remove(key)

    def close(self, last: Iterable[tuple[bytes, Block]] = ()) -> list[tuple[bytes, Block]]:
        """See `BlockStore.close`; what takes too long to write is left."""
        self._queue.put(None)
        self._thread.join()
        until = time.monotonic() + LAST_S
        for key, data in last:
            if time.monotonic() > until:
                break
            if key not in self._sizes:
                self._writing[key] = data
                self._write_safely(key)
        return []

    def _path(self, key: bytes) -> Path:
        return self._directory / key.hex()[:2] / f"{key.hex()}{SUFFIX}"

    def _find(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for half in self._directory.glob(f"*/*{UNFINISHED}"):
                self._delete(half)
            found = [(path, path.stat()) for path in self._directory.glob(f"*/*{SUFFIX}")]
        except OSError as error:
            self._fault(f"cannot be read: {error}")
            return
        for path, status in sorted(found, key=lambda item: item[1].st_mtime):
            try:
                self._sizes[bytes.fromhex(path.stem)] = status.st_size
                self.bytes_used += status.st_size
            except ValueError:
                self._fault(f"{path.name} is no KV block and deleted")
                self._delete(path)
        self._make_room(0)

    def _write_all(self) -> None:
        while (key := self._queue.get()) is not None:
            self._write_safely(key)
            self._queue.task_done()

    def _write_safely(self, key: bytes) -> None:
        try:
            self._write(key)
        except OSError as error:
            self._fault(f"a block cannot be written: {error}")
            self._delete(self._path(key).with_suffix(UNFINISHED))
        finally:
            with self._lock:
                self._writing.pop(key, None)

    def _write(self, key: bytes) -> None:
        content = sealed(self._identity, key, self._writing[key])
        if len(content) > self._room:
            return
        self._make_room(len(content))
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(UNFINISHED)
        aside.write_bytes(content)
        aside.replace(path)
        with self._lock:
            self.bytes_used += len(content) - self._sizes.pop(key, 0)
            self._sizes[key] = len(content)
        self.stored_blocks += 1

    def _make_room(self, wanted: int) -> None:
        while self._sizes and self.bytes_used + wanted > self._room:
            self.remove(next(iter(self._sizes)))

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._fault(f"{path.name} cannot be deleted: {error}")

    def _fault(self, what: str) -> None:
        self.faults += 1
        log.warning("disk tier %s: %s", self._directory, what)
