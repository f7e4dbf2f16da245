"""`python -m client status`: whether the server is ready and what it is doing, as a table."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table

from client.errors import Restricted
from client.metrics import Reading, mean_between, rate_between, read_metrics
from client.sync import Client

SAMPLE_S = 1.0  # between the two readings that give the present rates; the server publishes twice a second


@dataclass(frozen=True)
class Status:
    """State of the server; rates are per second between two readings, means in seconds since the start."""

    url: str
    ready: bool
    models: dict[str, str] | None  # None where the server tells them only to its operator
    running_sequences: int
    queued_sequences: int
    rows_per_step: float | None  # between the two readings; None where there was no step
    generated_per_s: float
    prompt_per_s: float
    kv_blocks_used: int
    kv_blocks_total: int
    mean_ttft_s: float | None
    mean_inter_token_s: float | None
    requests: dict[str, int]  # by outcome
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    target_restarts: int


def gather(client: Client, url: str, before: Reading, after: Reading) -> Status:
    """Ask the server for its state and put it beside two readings of its metrics.

    Raises:
        Unreachable: nothing answers at the client's address.
    """
    outcomes = after.by_label("tandem_requests_total", "outcome")
    return Status(
        url=url,
        ready=client.server_ready(),
        models=_models(client),
        running_sequences=int(after.value("tandem_running_sequences")),
        queued_sequences=int(after.value("tandem_queued_sequences")),
        rows_per_step=mean_between(before, after, "tandem_step_rows"),
        generated_per_s=rate_between(before, after, "tandem_generated_tokens_total"),
        prompt_per_s=rate_between(before, after, "tandem_prompt_tokens_total"),
        kv_blocks_used=int(after.value("tandem_kv_blocks_used")),
        kv_blocks_total=int(after.value("tandem_kv_blocks_total")),
        mean_ttft_s=mean_between(None, after, "tandem_ttft_seconds"),
        mean_inter_token_s=mean_between(None, after, "tandem_inter_token_latency_seconds"),
        requests={outcome: int(count) for outcome, count in outcomes.items()},
        prompt_tokens=int(after.value("tandem_prompt_tokens_total")),
        generated_tokens=int(after.value("tandem_generated_tokens_total")),
        preemptions=int(after.value("tandem_preemptions_total")),
        target_restarts=int(after.value("tandem_target_restarts_total")),
    )


def _models(client: Client) -> dict[str, str] | None:
    try:
        return client.models()
    except Restricted:
        return None


def table(status: Status) -> Table:
    """Two columns that read well in a terminal and in a pipe."""
    view = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    view.add_column(style="bold", no_wrap=True)
    view.add_column()
    share = status.kv_blocks_used / status.kv_blocks_total if status.kv_blocks_total else 0.0
    rows = "no step just now" if status.rows_per_step is None else f"{status.rows_per_step:.1f}"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(status.requests.items()) if count)
    models = "told to those who have TANDEM_ADMIN_KEY"
    if status.models is not None:
        models = ", ".join(f"{name} {state}" for name, state in sorted(status.models.items()))
    lines = {
        "Server": f"{status.url}, {'ready' if status.ready else 'not ready'}",
        "Models": models,
        "Sequences": f"{status.running_sequences} running, {status.queued_sequences} queued",
        "Batch per step": rows,
        "Tokens/s now": f"{status.generated_per_s:.0f} generated, {status.prompt_per_s:.0f} prompt",
        "KV cache": f"{status.kv_blocks_used} of {status.kv_blocks_total} blocks ({share:.0%})",
        "Mean TTFT": _milliseconds(status.mean_ttft_s),
        "Mean time per token": _milliseconds(status.mean_inter_token_s),
        "Requests": counts or "none yet",
        "Tokens": f"{status.generated_tokens} generated, {status.prompt_tokens} prompt",
        "Preemptions": str(status.preemptions),
        "Engine restarts": str(status.target_restarts),
    }
    for name, text in lines.items():
        view.add_row(name, text)
    return view


def _milliseconds(seconds: float | None) -> str:
    return "none yet" if seconds is None else f"{seconds * 1000:.1f} ms"


def run_status(options: Namespace) -> int:
    """Print the status once, or again and again with `--watch`.

    Raises:
        Unreachable: the server or its metrics endpoint does not answer.
    """
    console = Console(soft_wrap=not options.watch)
    with Client(options.url) as client:
        client.server_ready()
        before = read_metrics(options.metrics_url)
        time.sleep(SAMPLE_S)
        after = read_metrics(options.metrics_url)
        status = gather(client, options.url, before, after)
        if not options.watch:
            _print(console, status, options.json)
            return 0 if status.ready else 1
        live = console.is_terminal and not options.json
        with Live(table(status), console=console, auto_refresh=False) if live else console as view:
            while True:
                if isinstance(view, Live):
                    view.update(table(status), refresh=True)
                else:
                    _print(console, status, options.json)
                time.sleep(options.watch)
                before, after = after, read_metrics(options.metrics_url)
                status = gather(client, options.url, before, after)


def _print(console: Console, status: Status, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(status)), flush=True)
    else:
        console.print(table(status))
