"""The prefix cache of an executor as its settings want it."""

from __future__ import annotations

from pathlib import Path

from tandem.engines import Engine
from tandem.kv_cache import KvCache
from tandem.settings import TargetSettings
from tandem.tiers import BlockStore, HostTier, TierStack


def build_cache(engine: Engine, settings: TargetSettings) -> KvCache:
    """The cache of the target's blocks.

    Raises:
        ValueError: `redis_url` is none.
    """
    stores: list[BlockStore] = []
    identity = engine.identity.encode()
    if settings.host_cache_mb:
        stores.append(HostTier(settings.host_cache_mb))
    if settings.disk_cache_dir:
        from tandem.disk_tier import DiskTier

        stores.append(DiskTier(Path(settings.disk_cache_dir), settings.disk_cache_mb, identity))
    if settings.redis_url:
        from tandem.redis_tier import RedisTier

        stores.append(RedisTier(settings.redis_url, identity))
    return KvCache(
        engine.num_blocks,
        engine.block_size,
        engine if settings.prefix_cache else None,
        TierStack(stores),
        tell_answers_apart=not settings.cache_answers,
        most_pinned=int(engine.num_blocks * settings.pinned_share),
    )
