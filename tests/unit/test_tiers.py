"""The tiers below the pool: what they keep, what they refuse, and that no fault reaches a request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from table_engine import TableEngine

from tandem import disk_tier
from tandem.disk_tier import DiskTier
from tandem.executor import Executor
from tandem.kv_cache import KvCache
from tandem.step import StepRequest
from tandem.tiers import RETRY, TIERS, HostTier, TierStack

BLOCK_BYTES = 1000
MEGABYTE = 2**20


def block(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, BLOCK_BYTES, np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def settle(tier: DiskTier) -> None:
    tier._queue.join()


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[list[DiskTier]]:
    opened: list[DiskTier] = []
    yield opened
    for tier in opened:
        tier.close()


def disk(tiers: list[DiskTier], directory: Path, blocks: float = 100, identity: bytes = b"engine") -> DiskTier:
    tiers.append(DiskTier(directory, blocks * (BLOCK_BYTES + 60) / MEGABYTE, identity))
    return tiers[-1]


def test_the_host_gives_up_the_longest_unused() -> None:
    tier = HostTier(3 * BLOCK_BYTES / MEGABYTE)
    for number in (1, 2, 3):
        assert tier.put(key(number), block(number)) == []
    assert tier.get(key(1)) is not None
    ((left, data),) = tier.put(key(4), block(4))
    assert (left, data.tolist()) == (key(2), block(2).tolist())
    assert tier.bytes_used == 3 * BLOCK_BYTES


def test_what_the_host_gives_up_goes_to_the_disk(tiers: list[DiskTier], tmp_path: Path) -> None:
    lower = disk(tiers, tmp_path)
    stack = TierStack([HostTier(2 * BLOCK_BYTES / MEGABYTE), lower])
    for number in range(6):
        stack.put(key(number), block(number))
    settle(lower)
    for number, tier in ((0, "disk"), (3, "disk"), (5, "host")):
        data, found = stack.get(key(number))
        assert data is not None
        assert (data.tolist(), TIERS[found]) == (block(number).tolist(), tier)
    assert stack.get(key(9)) == (None, 0)
    assert stack.to_array()[:, 1].tolist() == [0, 1, 2, 0]


def test_the_disk_is_found_again_by_the_next_process(tiers: list[DiskTier], tmp_path: Path) -> None:
    first = DiskTier(tmp_path, 1, b"engine")
    first.put(key(1), block(1))
    first.close([(key(2), block(2))])
    second = disk(tiers, tmp_path)
    for number in (1, 2):
        found = second.get(key(number))
        assert found is not None
        assert found.tolist() == block(number).tolist()
    assert second.bytes_used == sum(path.stat().st_size for path in tmp_path.rglob("*.kv"))


def test_the_disk_is_bounded_and_keeps_what_was_used_last(tiers: list[DiskTier], tmp_path: Path) -> None:
    tier = disk(tiers, tmp_path, blocks=3)
    for number in range(3):
        tier.put(key(number), block(number))
    settle(tier)
    assert tier.get(key(0)) is not None
    tier.put(key(3), block(3))
    settle(tier)
    assert [tier.has(key(number)) for number in range(4)] == [True, False, True, True]
    assert len(list(tmp_path.rglob("*.kv"))) == 3
    smaller = disk(tiers, tmp_path, blocks=1)
    assert len(list(tmp_path.rglob("*.kv"))) == 1
    assert smaller.bytes_used <= BLOCK_BYTES + 60


def test_a_process_that_died_in_a_write_leaves_nothing_half(tiers: list[DiskTier], tmp_path: Path) -> None:
    tier = disk(tiers, tmp_path)
    tier.put(key(1), block(1))
    settle(tier)
    (path,) = tmp_path.rglob("*.kv")
    path.with_suffix(".kv-new").write_bytes(path.read_bytes()[:50])
    again = disk(tiers, tmp_path)
    assert again.get(key(1)) is not None
    assert not list(tmp_path.rglob("*-new")), "what was left half written is gone"


def _flip(content: bytes) -> bytes:
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


DAMAGE = {
    "one bit": _flip,
    "cut off": lambda content: content[:-100],
    "empty": lambda content: b"",
    "another version": lambda content: content.replace(b"tandem-kv-1", b"tandem-kv-0"),
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_miss_and_deleted(
    damage: str, tiers: list[DiskTier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    # Not by caplog: a library that other tests import switches loggers off.
    monkeypatch.setattr(disk_tier.log, "warning", lambda text, *values: warnings.append(text % values))
    tier = disk(tiers, tmp_path)
    tier.put(key(1), block(1))
    settle(tier)
    (path,) = tmp_path.rglob("*.kv")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert tier.get(key(1)) is None
    assert not path.exists()
    assert tier.faults == 1
    assert len(warnings) == 1
    assert "is not used and deleted" in warnings[0]
    assert not tier.has(key(1))


def test_another_engines_file_is_not_used(tiers: list[DiskTier], tmp_path: Path) -> None:
    theirs = disk(tiers, tmp_path, identity=b"another engine")
    theirs.put(key(1), block(1))
    settle(theirs)
    ours = disk(tiers, tmp_path)
    assert ours.get(key(1)) is None
    assert ours.faults == 1


def test_a_file_under_anothers_name_is_not_used(tiers: list[DiskTier], tmp_path: Path) -> None:
    tier = disk(tiers, tmp_path)
    tier.put(key(1), block(1))
    tier.put(key(2), block(2))
    settle(tier)
    shutil.copyfile(tier._path(key(1)), tier._path(key(2)))
    assert tier.get(key(2)) is None
    assert tier.get(key(1)) is not None


def test_a_full_disk_costs_nothing_but_the_block(
    tiers: list[DiskTier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = disk(tiers, tmp_path)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", full)
        tier.put(key(1), block(1))
        settle(tier)
    assert tier.faults == 1
    assert not tier.has(key(1))
    tier.put(key(1), block(1))
    settle(tier)
    assert tier.get(key(1)) is not None


def test_a_directory_that_vanishes_is_made_again(tiers: list[DiskTier], tmp_path: Path) -> None:
    tier = disk(tiers, tmp_path / "cache")
    tier.put(key(1), block(1))
    settle(tier)
    shutil.rmtree(tmp_path / "cache")
    assert tier.get(key(1)) is None
    tier.put(key(1), block(1))
    settle(tier)
    assert tier.get(key(1)) is not None


def test_files_that_are_not_ours_are_left_alone(tiers: list[DiskTier], tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    for name in ("readme.txt", "ab/notes"):
        (tmp_path / name).write_text("mine")
    tier = disk(tiers, tmp_path, blocks=0)
    tier.clear()
    assert (tmp_path / "readme.txt").exists()
    assert (tmp_path / "ab/notes").exists()


class Slow(HostTier):
    """Takes longer than computing does."""

    fetched = 0

    def get(self, key: bytes) -> np.ndarray | None:
        self.fetched += 1
        return super().get(key)


def test_what_is_cheaper_to_compute_is_not_fetched() -> None:
    store = Slow(1)
    stack = TierStack([store])
    stack.put(key(1), block(1))
    assert stack.get(key(1))[0] is not None
    stack.block_s = 0.0
    for _ in range(2 * RETRY):
        stack.get(key(1))
    assert store.fetched == 3, "tried again now and then"
    stack.block_s = 1.0
    assert stack.get(key(1))[0] is not None


def test_warming_up_leaves_the_tiers_alone() -> None:
    engine = TableEngine()
    store = HostTier(1)
    store.put(key(1), block(1))
    executor = Executor(engine, 1, kv_cache=KvCache(64, 4, engine, TierStack([store])))
    executor.warm_up()
    assert store.has(key(1))
    assert executor.kv_cache.cached_blocks == 0
    executor.step(StepRequest(reset=True))
    assert not store.has(key(1))
