"""What a decoding step costs by its width, the number of its tokens: profiled at load and kept up to date.

Steps with drafts come in a few widths only, filled up with padding. Up to the widest graph that the engine has ready,
all steps do. Beyond, a step of another width than the one before costs extra: the runtime prepares its graph for the
new shapes, which on a small model is as much as 40 % of a step (measured with `benchmarks.speculation`); so leaving a
width must pay.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Callable, Sequence

WIDTHS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
DRIFT = 0.1  # how far one observation moves the whole curve: a shared machine is faster in one minute than in the next
LEARNING = 0.1  # how far the first one of a width, after steps of another, moves the two against each other
CHANGE_LEARNING = 0.02  # how far one observation moves the cost of changing the width
# Steps over which the cost of a new width is spread, for one sequence. The more there are, the more what is drafted
# varies from step to step, and the sooner the width changes again.
PATIENCE = 4
REPEATS = 4  # steps of one width in a row while profiling; the first pays for the change


class StepCost:
    """A curve through measured points, linear between and beyond them, and the cost of changing the width.

    Decisions depend on ratios only, and while one width runs nothing is seen of the others: whether it or the machine
    is slower than was thought cannot be told, so the whole curve moves. The first step of another width tells: what
    it differs by from what was expected, with the height just seen, is an error of the shape between the two widths,
    and half of it goes to each. So the widths that are in use never move together against those that are not, which
    would otherwise become cheaper or dearer with every error of the height.
    """

    def __init__(self, widths: Sequence[int], seconds: Sequence[float], change: float = 0.0, ready: int = 0) -> None:
        """At least two points, by ascending width; a wider step is never taken for a cheaper one.

        Args:
            widths: of the points.
            seconds: a step of each takes when the one before was as wide.
            change: seconds that a step takes more after one of another width, if it is wider than `ready`.
            ready: the width up to which the engine has a graph for each of `widths`.
        """
        self._widths = list(widths)
        self._ready = ready
        self._shape = [max(seconds[: index + 1]) for index in range(len(seconds))]
        self._scale = 1.0
        self._change = change
        self._last = 0
        self._before = 0  # the width before that
        self._is_new = False  # nothing of this width was seen yet since it changed

    def __call__(self, width: int) -> float:
        """Seconds of a step of `width` tokens among others like it."""
        index, share = self._place(width)
        return self._scale * (self._shape[index] * (1 - share) + self._shape[index + 1] * share)

    def expected(self, width: int, rows: int = 1) -> float:
        """Seconds of a step of `width` tokens now, with its part in the change to that width if it is one.

        Args:
            width: tokens of the step.
            rows: sequences in it.
        """
        changes = self._changes(self._shape_of(width))
        return self(width) + changes * self._scale * self._change / max(1.0, PATIENCE / rows)

    def wider(self, width: int, most: int) -> list[int]:
        """The widths, of those that steps with drafts have, above `width` and up to the first that is `most`."""
        first = bisect_left(self._widths, width + 1)
        return self._widths[first : bisect_left(self._widths, most) + 1] if most > width else []

    def observe(self, width: int, seconds: float) -> None:
        """A step of `width` tokens took `seconds`. Single outliers, as on a shared machine, move little."""
        shape = self._shape_of(width)
        changes = self._changes(shape)
        if shape != self._last:
            self._is_new, self._before, self._last = self._last > 0, self._last, shape
        if changes:
            extra = min(2.0, max(0.0, seconds / self(width) - 1)) * self(width) / self._scale
            self._change += CHANGE_LEARNING * (extra - self._change)
            return
        ratio = min(2.0, max(0.5, seconds / self(width)))
        if not self._is_new:
            self._scale *= ratio**DRIFT
            return
        self._is_new = False
        self._bend(shape, ratio ** (LEARNING / 2))
        self._bend(self._before, ratio ** (-LEARNING / 2))

    def _bend(self, width: int, factor: float) -> None:
        """Move the curve at one width and nowhere else."""
        index, share = self._place(width)
        for point, weight in ((index, 1 - share), (index + 1, share)):
            if weight > 0:
                self._shape[point] *= factor ** min(weight, 1.0)

    def _shape_of(self, width: int) -> int:
        """The width as the engine runs it: filled up to a graph that it has, and never a single row."""
        return self._widths[bisect_left(self._widths, width)] if width <= self._ready else max(width, self._widths[0])

    def _changes(self, shape: int) -> bool:
        return shape > self._ready and shape != self._last

    def _place(self, width: int) -> tuple[int, float]:
        """The segment in which a width lies, and how far into it; beyond the last point the share is above 1."""
        width = self._shape_of(width)
        index = min(max(bisect_left(self._widths, width) - 1, 0), len(self._widths) - 2)
        low, high = self._widths[index], self._widths[index + 1]
        return index, max(0.0, (width - low) / (high - low))


def profile(run: Callable[[int], float], rounds: int = 2, widths: Sequence[int] = WIDTHS, ready: int = 0) -> StepCost:
    """Time `run(width)`, which returns seconds, for all widths in turn; the fastest steps count."""
    steady, changed = [float("inf")] * len(widths), [float("inf")] * len(widths)
    for _ in range(rounds):
        for index, width in enumerate(widths):
            first, *rest = (run(width) for _ in range(REPEATS))
            changed[index] = min(changed[index], first)
            steady[index] = min(steady[index], *rest)
    extra = [max(0.0, c - s) for width, c, s in zip(widths, changed, steady, strict=True) if width > ready]
    return StepCost(widths, steady, statistics.median(extra) if extra else 0.0, ready)
