"""What the machine is measured with: a network whose passes can be counted, and whose numbers stay numbers."""

from __future__ import annotations

import numpy as np

from perf import yardstick


def test_passes_are_counted_by_both_clocks() -> None:
    found = yardstick.speed(seconds=0.05)
    assert found.wall > 0
    assert found.cpu > 0


def test_values_neither_grow_nor_vanish() -> None:
    network = yardstick._network()
    network.infer()
    values = network.get_output_tensor(0).data
    assert np.isfinite(values).all()
    assert 0.1 < np.abs(values).max() <= 1
