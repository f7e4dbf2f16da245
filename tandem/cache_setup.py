"""The prefix cache of an executor as its settings want it."""

from __future__ import annotations

from pathlib import Path

from tandem.engines import Engine
from tandem.sequence_cache import SequenceCache, cache_of
from tandem.settings import TargetSettings
from tandem.tiers import BlockStore, HostTier, TierStack


def build_cache(engine: Engine, settings: TargetSettings) -> SequenceCache:
    """The cache of the target's K and V.

    Raises:
        ValueError: `redis_url` is none, or the engine's memory cannot have tiers.
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
    return cache_of(
        engine,
        reuse=bool(settings.prefix_cache),
        tiers=TierStack(stores),
        tell_answers_apart=not settings.cache_answers,
        most_pinned=int(engine.num_blocks * settings.pinned_share),
    )
