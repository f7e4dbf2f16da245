"""Two answers beside each other on a terminal, accepted draft tokens coloured by who proposed them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client.response import Chunk

STYLES = {"target": "", "suffix": "green", "draft": "cyan"}
REFRESH_S = 0.1  # drawing takes CPU time from a server on the same machine
FRAME_LINES = 6  # of the terminal's height, beside the text


@dataclass
class Column:
    """One answer as it grows."""

    name: str
    text: Text = field(default_factory=Text)
    tokens: int = 0
    seconds: float = 0.0

    def take(self, chunk: Chunk, seconds: float) -> None:
        """Add a response that came so many seconds after the request."""
        for piece, origin in chunk.pieces():
            self.text.append(piece, STYLES[origin])
        self.tokens += len(chunk.token_ids or ())
        self.seconds = seconds

    @property
    def title(self) -> str:
        rate = f", {self.tokens / self.seconds:.0f} tokens/s" if self.seconds else ""
        return f"{self.name}: {self.tokens} tokens{rate}"


def table(
    columns: Sequence[Column], caption: str | None = None, cut: Callable[[Text], Text] = lambda text: text
) -> Table:
    """The columns, their texts shortened by `cut`."""
    view = Table(expand=True, show_edge=False, pad_edge=False, caption=caption)
    for column in columns:
        view.add_column(column.title, ratio=1, overflow="fold")
    view.add_row(*(cut(column.text) for column in columns))
    return view


def legend() -> Text:
    """What the colours mean."""
    drafters = [(f"  {origin}", style) for origin, style in STYLES.items() if style]
    return Text.assemble("\naccepted tokens drafted by", *drafters, "\n")


class LiveView:
    """Shows the columns while they grow, if there is a terminal; what does not fit is cut from their beginnings."""

    def __init__(self, console: Console, columns: Sequence[Column], caption: str) -> None:
        self._console, self._columns, self._caption = console, columns, caption
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, at_once: bool = False) -> None:
        """Draw the columns as they are, unless that was done just now."""
        now = time.monotonic()
        if self._live and (at_once or now - self._drawn >= REFRESH_S):
            self._drawn = now
            self._live.update(table(self._columns, self._caption, self._tail), refresh=True)

    def _tail(self, text: Text) -> Text:
        lines = text.wrap(self._console, max(1, self._console.width // 2 - 2))
        return Text("\n").join(lines[-max(1, self._console.height - FRAME_LINES) :])
