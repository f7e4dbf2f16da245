"""`python -m client cache`: what the server keeps for requests that begin alike, and how to make it forget."""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from client.errors import InvalidRequest
from client.metrics import Reading, read_metrics
from client.sync import Client
from tandem.tiers import TIERS
from tandem.wire import pack

EXECUTORS = ("target", "draft")  # models that have a prefix cache,
REPLICA = "target_"  # and what the names of the target's replicas begin with


@dataclass(frozen=True)
class TierState:
    """One tier since the server's start; `bytes` now, 0 for the pool and for Redis, whose own affair it is."""

    hit_tokens: int
    stored_blocks: int
    restored_blocks: int
    faults: int
    bytes: int


@dataclass(frozen=True)
class CacheState:
    """The target's prefix cache, and whole answers: counts since the server's start, blocks and bytes now."""

    queried_tokens: int
    hit_tokens: int
    cached_blocks: int
    pinned_blocks: int
    total_blocks: int
    evicted_blocks: int
    copied_blocks: int
    answer_hits: int
    answer_misses: int
    answer_bytes: int
    tiers: dict[str, TierState]


def cache_state(reading: Reading) -> CacheState:
    """What a reading of the metrics says of the cache."""

    def by_tier(name: str) -> dict[str, int]:
        return {tier: int(value) for tier, value in reading.by_label(f"tandem_prefix_{name}", "tier").items()}

    columns = {
        "hit_tokens": by_tier("hit_tokens_total"),
        "stored_blocks": by_tier("stored_blocks_total"),
        "restored_blocks": by_tier("restored_blocks_total"),
        "faults": by_tier("faults_total"),
        "bytes": by_tier("bytes"),
    }
    return CacheState(
        queried_tokens=int(reading.value("tandem_prefix_queried_tokens_total")),
        hit_tokens=int(reading.value("tandem_prefix_hit_tokens_total")),
        cached_blocks=int(reading.value("tandem_prefix_blocks")),
        pinned_blocks=int(reading.value("tandem_prefix_pinned_blocks")),
        total_blocks=int(reading.value("tandem_kv_blocks_total")),
        evicted_blocks=int(reading.value("tandem_prefix_evicted_blocks_total")),
        copied_blocks=int(reading.value("tandem_prefix_copied_blocks_total")),
        answer_hits=int(reading.value("tandem_answer_cache_hits_total")),
        answer_misses=int(reading.value("tandem_answer_cache_misses_total")),
        answer_bytes=int(reading.value("tandem_answer_cache_bytes")),
        tiers={
            tier: TierState(**{column: values.get(tier, 0) for column, values in columns.items()}) for tier in TIERS
        },
    )


def reset_cache(client: Client) -> list[str]:
    """Make every executor of the server forget what it keeps for later requests; those that run are not touched.

    Returns:
        The models that were asked.

    Raises:
        ServerError: one of them failed.
    """
    # An empty step that says so: see tandem.step.StepRequest.
    message = pack(
        {
            "rows": np.zeros((0, 4), np.int32),
            "sequences": np.zeros(0, np.int64),
            "tokens": np.zeros(0, np.int32),
            "passes": np.ones(1, np.int32),
            "reset": np.ones(1, np.uint8),
        }
    )
    ready = [
        name
        for name, state in client.models().items()
        if (name in EXECUTORS or name.startswith(REPLICA)) and state == "READY"
    ]
    for name in ready:
        client.infer(name, "step", message)
    # `generate` learns of it with its next step, and then uses none of the answers that it keeps.
    with contextlib.suppress(InvalidRequest):  # from a server that asks for a tenant
        client.generate("-", max_tokens=1, drafter="none")
    return ready


def view(state: CacheState) -> list[Table]:
    """Two tables: the cache as a whole, and its tiers."""
    whole = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    whole.add_column(style="bold", no_wrap=True)
    whole.add_column()
    share = f" ({state.hit_tokens / state.queried_tokens:.0%})" if state.queried_tokens else ""
    whole.add_row("Prompt tokens reused", f"{state.hit_tokens} of {state.queried_tokens}{share}")
    whole.add_row("KV blocks kept", f"{state.cached_blocks} of {state.total_blocks}, {state.pinned_blocks} pinned")
    whole.add_row("Given up, copied", f"{state.evicted_blocks}, {state.copied_blocks}")
    if state.answer_hits or state.answer_misses:
        asked = state.answer_hits + state.answer_misses
        kept = f"{state.answer_bytes / 2**20:.1f} MB kept"
        whole.add_row("Whole answers", f"{state.answer_hits} of {asked} requests that may come again, {kept}")
    tiers = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("tier", "tokens reused", "blocks stored", "restored", "faults", "MB"):
        tiers.add_column(name, justify="left" if name == "tier" else "right")
    for name, tier in state.tiers.items():
        megabytes = f"{tier.bytes / 2**20:.1f}" if tier.bytes else "-"
        counts = (tier.hit_tokens, tier.stored_blocks, tier.restored_blocks, tier.faults)
        tiers.add_row(name, *(str(count) for count in counts), megabytes)
    return [whole, tiers]


def run_cache(options: Namespace) -> int:
    """Print the state, or reset the cache.

    Raises:
        Unreachable: the server or its metrics endpoint does not answer.
        ServerError: the reset failed.
    """
    if options.reset:
        with Client(options.url) as client:
            print(f"forgotten: what {' and '.join(reset_cache(client))} kept")
        return 0
    state = cache_state(read_metrics(options.metrics_url))
    if options.json:
        print(json.dumps(asdict(state)), flush=True)
    else:
        console = Console(soft_wrap=True)
        for table in view(state):
            console.print(table)
    return 0
