"""The tier that a fleet shares, against a real Redis server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis_process import RedisProcess, redis_process
from serving import wait_until

from tandem import redis_tier
from tandem.redis_tier import PREFIX, RedisTier

KEY = bytes(range(16))
DATA = np.arange(200, dtype=np.uint8)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    with redis_process(tmp_path) as process:
        yield process


def tier(server: RedisProcess, identity: bytes = b"engine") -> RedisTier:
    return RedisTier(server.url, identity)


def test_what_one_server_puts_another_gets(server: RedisProcess) -> None:
    ours, theirs = tier(server), tier(server)
    ours.put(KEY, DATA)
    wait_until(lambda: ours.stored_blocks == 1, "the block is sent")
    found = theirs.get(KEY)
    assert found is not None
    assert found.tolist() == DATA.tolist()
    assert theirs.get(bytes(16)) is None
    assert tier(server, b"another engine").get(KEY) is None
    assert (ours.faults, theirs.faults) == (0, 0)
    for one in (ours, theirs):
        one.close()


def test_a_damaged_block_is_a_miss_and_deleted(server: RedisProcess) -> None:
    ours = tier(server)
    ours.put(KEY, DATA)
    wait_until(lambda: ours.stored_blocks == 1, "the block is sent")
    content = server.client().get(PREFIX + KEY)
    server.client().set(PREFIX + KEY, content[:-1] + bytes([content[-1] ^ 1]))
    assert ours.get(KEY) is None
    assert ours.faults == 1
    assert not server.client().exists(PREFIX + KEY)
    ours.close()


def test_a_server_that_stops_is_left_alone_and_used_again(
    server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_tier, "AWAY_S", 0.5)
    ours = tier(server)
    server.stop()
    assert ours.has(KEY)
    assert ours.get(KEY) is None
    assert ours.faults == 1
    assert not ours.has(KEY), "it is not asked for a while"
    ours.put(KEY, DATA)
    server.start()
    wait_until(lambda: ours.has(KEY), "it is asked again")
    wait_until(lambda: ours.put(KEY, DATA) == [] and ours.stored_blocks == 1, "the block is sent after all")
    assert ours.get(KEY) is not None
    ours.close()


def test_a_reset_deletes_what_this_server_sent(server: RedisProcess) -> None:
    ours, theirs = tier(server), tier(server)
    ours.put(KEY, DATA)
    theirs.put(bytes(16), DATA)
    wait_until(lambda: ours.stored_blocks == theirs.stored_blocks == 1, "the blocks are sent")
    ours.clear()
    assert server.client().keys() == [PREFIX + bytes(16)]
    for one in (ours, theirs):
        one.close()
